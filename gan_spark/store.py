"""A run in the lake, `<lake>/runs/<run>`:

    best.json                 step and value of the checkpoint that was best on split validation
    config.json               resolved config, dataset and its fingerprint, versions
    checkpoints/step-NNNNNNNN TensorFlow checkpoint files and manifest.json, which is written last
    metrics.jsonl             one JSON object a line, and one for every start
    samples/step-NNNNNNNN.png images from fixed seeds
    events/                   TensorBoard

A checkpoint is whole if its manifest is there and every file has the size and SHA-256 sum
that it names; anything else is passed over, with a warning.
"""

import contextlib
import hashlib
import json
import logging
import os
import posixpath
import tempfile
import uuid
from collections.abc import Callable, Iterator

from . import lake
from .config import Config, UserError, differences

log = logging.getLogger(__name__)

# What may change between a start and a resume, since none of it changes what is learnt.
RESUMABLE = (
    *(f"config.train.{key}" for key in ("steps", "log_every", "sample_every", "checkpoint_every", "keep", "patience", "restarts", "start_timeout", "threads")),
    "config.lenet.epochs",
)


class Run:
    def __init__(self, url: str):
        self.url = url

    @classmethod
    def of(cls, config: Config) -> "Run":
        return cls(lake.join(lake.to_url(config.lake), "runs", config.run))

    def path(self, *parts: str) -> str:
        return lake.join(self.url, *parts)

    # --- identity ---

    def record(self) -> dict:
        """config.json; `UserError` where there is no such run."""
        try:
            return lake.read_json(self.path("config.json"))
        except FileNotFoundError:
            raise UserError(f"no run at {self.url}: expected config.json there; train it with jobs/train.py") from None

    def check(self, record: dict, defaults: dict[str, dict]) -> None:
        """Refuses to resume a run that was started with another config or dataset, listing the differences.

        `defaults`, by section of the config, stand for options that there were not when the run was started.
        """
        if not lake.exists(self.path("config.json")):
            return
        found = self.record()
        found["config"] |= {name: {**values, **found["config"].get(name, {})} for name, values in defaults.items()}
        keys = ("config", "dataset")
        changed = differences({key: found.get(key) for key in keys}, {key: record[key] for key in keys}, RESUMABLE)
        if changed:
            raise UserError(f"run {self.url} exists with another config; name another run, or restore these: " + "; ".join(changed))

    def start(self, record: dict) -> str:
        """Writes config.json if it is not there, and claims the run; returns the token of its new owner."""
        if not lake.exists(self.path("config.json")):
            lake.write_json(self.path("config.json"), record)
        token = uuid.uuid4().hex
        lake.write_json(self.path("owner.json"), {"token": token})
        return token

    def check_owner(self, token: str) -> None:
        """Stops a job that was left behind by a dead driver, once another has taken the run over."""
        if lake.read_json(self.path("owner.json"))["token"] != token:
            raise RuntimeError(f"run {self.url} was taken over by another job; this one stops")

    # --- checkpoints ---

    def checkpoints(self) -> list[int]:
        """Steps with a manifest, oldest first."""
        fs, path = lake.filesystem(self.path("checkpoints"))
        found = fs.glob(f"{path}/step-*/manifest.json")
        return sorted(int(posixpath.basename(posixpath.dirname(name)).removeprefix("step-")) for name in found)

    def save_checkpoint(self, step: int, write: Callable[[str], object], keep: int) -> None:
        """`write(prefix)` makes local files, which are put in the lake; the manifest goes last. All but the newest `keep` and the best are removed."""
        folder = self._checkpoint(step)
        lake.remove(folder)
        fs, path = lake.filesystem(folder)
        fs.makedirs(path, exist_ok=True)
        files = {}
        with tempfile.TemporaryDirectory() as temporary:
            write(os.path.join(temporary, "checkpoint"))
            for name in sorted(os.listdir(temporary)):
                local = os.path.join(temporary, name)
                files[name] = {"bytes": os.path.getsize(local), "sha256": _sha256(local)}
                fs.put_file(local, f"{path}/{name}")
        lake.write_json(lake.join(folder, "manifest.json"), {"step": step, "files": files})
        best = (self.best() or {}).get("step")
        for old in self.checkpoints()[:-keep]:
            if old == best:
                continue
            # The manifest first: a half-removed checkpoint must not look whole.
            lake.remove(lake.join(self._checkpoint(old), "manifest.json"))
            lake.remove(self._checkpoint(old))

    def best(self) -> dict | None:
        """{"step", the value that it was measured by} of the checkpoint that was best on split validation; None where none was measured."""
        return lake.read_json(self.path("best.json")) if lake.exists(self.path("best.json")) else None

    def preferred(self, step: int = 0) -> int:
        """Step of the checkpoint to use where `step` was asked for: for 0 the best on split validation, or else the newest whole one.

        `UserError` where there is none.
        """
        best = self.best()
        with self.checkpoint(step or (best["step"] if best else 0)) as found:
            if found is None:
                raise UserError(f"run {self.url}: no whole checkpoint yet; train it with jobs/train.py")
            return found[0]

    def save_best(self, best: dict) -> None:
        lake.write_json(self.path("best.json"), best)

    @contextlib.contextmanager
    def checkpoint(self, step: int = 0) -> Iterator[tuple[int, str] | None]:
        """(step, local prefix) of checkpoint `step`, or of the newest whole one for 0; None where there is none."""
        steps = self.checkpoints()
        if step and step not in steps:
            raise UserError(f"run {self.url}: no checkpoint at step {step} (there are: {', '.join(map(str, steps)) or 'none'})")
        with tempfile.TemporaryDirectory() as temporary:
            for candidate in [step] if step else reversed(steps):
                problem = self._fetch(candidate, temporary)
                if problem is None:
                    yield candidate, os.path.join(temporary, "checkpoint")
                    return
                log.warning("run %s: checkpoint at step %d is damaged (%s) and is passed over", self.url, candidate, problem)
                if step:
                    raise UserError(f"run {self.url}: checkpoint at step {step} is damaged: {problem}")
            yield None

    def _checkpoint(self, step: int) -> str:
        return self.path("checkpoints", f"step-{step:08d}")

    def _fetch(self, step: int, temporary: str) -> str | None:
        try:
            manifest = lake.read_json(lake.join(self._checkpoint(step), "manifest.json"))
            for name, expected in manifest["files"].items():
                fs, path = lake.filesystem(lake.join(self._checkpoint(step), posixpath.basename(name)))
                local = os.path.join(temporary, posixpath.basename(name))
                fs.get_file(path, local)
                found = {"bytes": os.path.getsize(local), "sha256": _sha256(local)}
                if found != expected:
                    return f"{name}: {found['bytes']} bytes, expected {expected['bytes']}" if found["bytes"] != expected["bytes"] else f"{name}: another checksum"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return str(error)
        return None

    # --- what is looked at ---

    def append_metrics(self, *lines: dict) -> None:
        fs, path = lake.filesystem(self.path("metrics.jsonl"))
        fs.makedirs(posixpath.dirname(path), exist_ok=True)
        with fs.open(path, "ab") as stream:
            stream.write("".join(json.dumps(line) + "\n" for line in lines).encode())

    def metrics(self) -> list[dict]:
        """Lines of metrics.jsonl, in order; a last line that was cut off is left out."""
        return self.watch(0)[0]

    def watch(self, offset: int) -> tuple[list[dict], int]:
        """Whole lines of metrics.jsonl from byte `offset` on, and the offset behind them."""
        fs, path = lake.filesystem(self.path("metrics.jsonl"))
        try:
            if fs.size(path) <= offset:
                return [], offset
        except FileNotFoundError:
            return [], offset
        whole = fs.cat_file(path, start=offset).rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()], offset + len(whole) + (1 if whole else 0)

    def save_sample(self, step: int, png: bytes) -> str:
        url = self.path("samples", f"step-{step:08d}.png")
        lake.write_bytes(url, png)
        return url

    def put_events(self, folder: str, part: str = "") -> None:
        """Copies TensorBoard files from a local folder to events/, or to events/`part`."""
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as stream:
                lake.write_bytes(self.path("events", *([part] if part else []), name), stream.read())


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
