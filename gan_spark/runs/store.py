"""Store of a run in the lake, `<lake>/runs/<run>`:

    best.json                 step and value of the checkpoint that was best on split validation
    config.json               resolved config, dataset and its fingerprint, versions
    owner.json                the job that trains it; end.json asks that job to end
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
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from .. import lake
from ..config import Config, TaskFailure, UserError, differences

log = logging.getLogger(__name__)

# What may change between a start and a resume, since none of it changes what is learnt.
RESUMABLE = (
    *(
        f"config.train.{key}"
        for key in (
            "steps",
            "workers",  # Where it would change something, training refuses it.
            "log_every",
            "sample_every",
            "checkpoint_every",
            "keep",
            "validate_every",
            "patience",
            "restarts",
            "start_timeout",
            "threads",
            "launcher",
            "snapshot",  # To which a number leads, dataset.fingerprint tells.
        )
    ),
    "config.lenet.epochs",
    "dataset.fit",  # What it makes of the images, the fingerprint tells.
    "dataset.snapshot",
    "dataset.url",  # Wherever a copy of it is, the fingerprint tells whether it is the same.
)
# What a run holds at its first level.
_CONTENTS = {
    *("best.json", "config.json", "owner.json", "end.json", "metrics.jsonl", "network.h5"),
    *("checkpoints", "samples", "events"),
}
_HALF_WRITTEN = re.compile(r"^\.(.+)\.[0-9a-f]{8}$")
_STEP = re.compile(r"step-(\d{8}|[1-9]\d{8,})")
# Databricks mounts them as folders, to whose files nothing can be appended.
_NO_APPENDS = ("file:///dbfs/", "file:///Volumes/")


class Run:
    """The run at a URL: its record, checkpoints, metrics, samples and events."""

    def __init__(self, url: str):
        self.url = url

    @classmethod
    def of(cls, config: Config) -> "Run":
        return cls.named(config.lake, config.run)

    @classmethod
    def named(cls, root: str, name: str) -> "Run":
        """The run `name` of the lake at `root`, a path or URL."""
        return cls(lake.run_url(root, name))

    def path(self, *parts: str) -> str:
        return lake.join(self.url, *parts)

    @property
    def root(self) -> str:
        """URL of the lake that the run is in."""
        return self.url.rsplit("/", 2)[0]

    def names(self) -> list[str]:
        """What stands for the run in tables: the reference that its lake has, and URLs of now and of before the lake
        was moved, as former versions wrote them.
        """
        former = lake.former_root(self._read("config.json") or {})
        places = [self.url, *([lake.join(former, *self.url.rsplit("/", 2)[1:])] if former else [])]
        return [lake.relative(self.root, self.url), *(url for place in places for url in lake.spellings(place))]

    # --- identity ---

    def record(self) -> dict:
        """The record of the run, config.json; `UserError` where there is no such run."""
        record = self._record()
        if record is None:
            raise UserError(
                f"no run at {self.url}: expected config.json there; train it with jobs/train.py, or name it where its"
                " lake is now"
            )
        return record

    def write_record(self, record: dict) -> None:
        lake.write_record(self.root, self.path("config.json"), record)

    def _record(self) -> dict | None:
        record = self._read("config.json")
        return None if record is None else lake.absolute(self.root, record)

    def check(self, record: dict, defaults: dict[str, dict]) -> None:
        """Refuses to resume a run that was started with another config or dataset, listing the differences.

        `defaults`, by section of the config, stand for options that there were not when the run was started.
        """
        former = self._record()
        if former is None:
            self.check_is_run()
            if steps := self.checkpoints():
                raise UserError(
                    f"run {self.url} has checkpoints ({', '.join(map(str, steps))}) and no config.json that says of"
                    " what model and dataset; put it back, remove the run, or name another one"
                )
            return
        former["config"] |= {name: {**values, **former["config"].get(name, {})} for name, values in defaults.items()}
        keys = ("config", "dataset")
        self._name_alike(former["config"].get("model") or {}, record["config"].get("model") or {})
        changed = differences({key: former.get(key) for key in keys}, {key: record[key] for key in keys}, RESUMABLE)
        if changed:
            never_began = "" if self.has_begun() else " (it has made no step; if no job runs it, its folder can go)"
            raise UserError(
                f"run {self.url} exists with another config{never_began}; name another run, or restore these: "
                + "; ".join(changed)
            )

    def has_begun(self) -> bool:
        """Whether the run has made a step."""
        return bool(self.checkpoints()) or any(line.get("event") == "start" for line in self.metrics())

    def _name_alike(self, former: dict, model: dict) -> None:
        """Gives the files of the lake that a former version's record names by their paths the URLs that `model` has."""
        for name, url in model.items():
            path = former.get(name)
            if isinstance(url, str) and isinstance(path, str) and lake.absolute(self.root, lake.to_url(path)) == url:
                former[name] = url

    def check_is_run(self) -> None:
        """`UserError` where something else than a run is at its URL."""
        fs, path = lake.filesystem(self.url)
        if not fs.exists(path):
            return
        entries = fs.ls(path, detail=False) if fs.isdir(path) else ["a file"]
        # A file is written under another name first, which a job that was killed leaves.
        entries = [entry.rstrip("/") for entry in entries if entry.rstrip("/") != path.rstrip("/")]
        names = {_HALF_WRITTEN.sub(r"\1", posixpath.basename(entry)) for entry in entries}
        if strangers := sorted(names - _CONTENTS):
            raise UserError(
                f"{self.url} is there, and is no run of gan_spark's: found {strangers[0]} in it; name another run"
                " (run = ...), or move it away yourself"
            )

    def start(self, record: dict, token: str = "") -> str:
        """Writes config.json if it is not there, or to say where the run's dataset is now, and claims the run; returns
        the token of its new owner, which is `token` where one is given.
        """
        former, url = self._record(), record.get("dataset", {}).get("url")
        if former is None:
            self.write_record(record)
        elif url and former.get("dataset", {}).get("url") != url:
            self.write_record({**former, "dataset": {**former.get("dataset", {}), "url": url}})
        token = token or uuid.uuid4().hex
        lake.write_json(self.path("owner.json"), {"token": token})
        return token

    def is_owner(self, token: str | None) -> bool:
        """Whether no other job has claimed the run since `start` gave `token`, and nobody has removed it; of None,
        whether no job has.
        """
        return (self._read("owner.json") or {}).get("token") == token

    def ask_to_end(self, token: str) -> None:
        """Asks the ranks of the job that claimed the run by `token` to save a checkpoint and end."""
        lake.write_json(self.path("end.json"), {"token": token})

    def is_asked_to_end(self, token: str) -> bool:
        return (self._read("end.json") or {}).get("token") == token

    def check_owner(self, token: str) -> None:
        """Stops a job that was left behind by a dead driver, once another has taken the run over, and one whose run was
        removed: `TaskFailure`.
        """
        if not self.is_owner(token):
            raise TaskFailure(f"run {self.url} was taken over by another job, or removed; this one stops")

    def _read(self, name: str) -> dict | None:
        """A JSON file of the run; None where it is missing.

        `lake.exists` would call it missing too where the store does not answer.
        """
        try:
            return lake.read_json(self.path(name))
        except FileNotFoundError:
            return None

    # --- checkpoints ---

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints that have a manifest, oldest first."""
        fs, path = lake.filesystem(self.path("checkpoints"))
        try:
            names = [posixpath.basename(name.rstrip("/")) for name in fs.ls(path, detail=False)]
        except FileNotFoundError:
            return []
        steps = []
        for match in filter(None, map(_STEP.fullmatch, names)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                fs.info(f"{path}/{match[0]}/manifest.json")
                steps.append(int(match[1]))
        return sorted(steps)

    def save_checkpoint(self, step: int, write: Callable[[str], object], keep: int) -> None:
        """Puts in the lake the local files that `write(prefix)` makes, the manifest last.

        All checkpoints but the newest `keep` and the best are removed. Those of later steps go first, and best.json
        with them where it names one: the run has gone back before them, which it does where they are damaged, and as
        the newest they would be kept in place of this one.
        """
        best = (self.best() or {}).get("step", 0)
        if best > step:
            lake.remove(self.path("best.json"))
        for later in self.checkpoints():
            if later > step:
                self._remove(later)
        folder = self._checkpoint(step)
        lake.remove(folder)
        try:
            self._write_checkpoint(step, write)
        except BaseException:
            with contextlib.suppress(Exception):  # A store that does not answer may leave it: it has no manifest.
                lake.remove(folder)
            raise
        for old in self.checkpoints()[:-keep]:
            if old != best:
                self._remove(old)

    def _write_checkpoint(self, step: int, write: Callable[[str], object]) -> None:
        folder = self._checkpoint(step)
        fs, path = lake.filesystem(folder)
        files = {}
        with tempfile.TemporaryDirectory() as temporary:
            with lake.writing(temporary):
                write(os.path.join(temporary, "checkpoint"))
            with lake.writing(folder):
                fs.makedirs(path, exist_ok=True)
                for name in sorted(os.listdir(temporary)):
                    local = os.path.join(temporary, name)
                    files[name] = {"bytes": os.path.getsize(local), "sha256": _sha256(local)}
                    fs.put_file(local, f"{path}/{name}")
        lake.write_json(lake.join(folder, "manifest.json"), {"step": step, "files": files})

    def best(self) -> dict | None:
        """{"step", the value that it was measured by} of the checkpoint that was best on split validation.

        None where none was measured.
        """
        return self._read("best.json")

    def preferred(self, step: int = 0) -> int:
        """Step of checkpoint `step`, or for 0 of the best on split validation, or else of the newest whole one.

        `UserError` where there is none.
        """
        best = self.best()
        return self.checkpoint_step(step or (best["step"] if best else 0))

    def checkpoint_step(self, step: int = 0) -> int:
        """Step of checkpoint `step`, or for 0 of the newest whole one; `UserError` where there is none."""
        with self._whole_checkpoint(step) as (step, _):
            return step

    def checkpoint_hash(self, step: int) -> str:
        """What tells the weights of a checkpoint from all others."""
        files = lake.read_json(lake.join(self._checkpoint(step), "manifest.json"))["files"]
        digests = "".join(f"{name}:{files[name]['sha256']}," for name in sorted(files))
        return hashlib.sha256(digests.encode()).hexdigest()[:16]

    def read_checkpoint(self, step: int = 0) -> tuple[int, dict[str, bytes]]:
        """(Step, files by name) of checkpoint `step`, or for 0 of the newest whole one; `UserError` where there is
        none.
        """
        with self._whole_checkpoint(step) as (step, prefix):
            return step, {path.name: path.read_bytes() for path in sorted(Path(prefix).parent.iterdir())}

    @contextlib.contextmanager
    def _whole_checkpoint(self, step: int) -> Iterator[tuple[int, str]]:
        with self.checkpoint(step) as checkpoint:
            if checkpoint is None:
                raise UserError(f"run {self.url}: no whole checkpoint yet; train it first")
            yield checkpoint

    def save_best(self, best: dict) -> None:
        lake.write_json(self.path("best.json"), best)

    @contextlib.contextmanager
    def checkpoint(self, step: int = 0) -> Iterator[tuple[int, str] | None]:
        """(step, local prefix) of checkpoint `step`, or of the newest whole one for 0; None where there is none at all.

        `UserError` where `step` is missing or damaged, and where all are damaged: to begin anew would remove them.
        """
        steps, tried, damaged = self.checkpoints(), [], {}
        if step and step not in steps:
            raise self._no_checkpoint(step, steps)
        with tempfile.TemporaryDirectory() as temporary:
            while untried := [candidate for candidate in ([step] if step else steps) if candidate not in tried]:
                candidate = untried[-1]
                tried.append(candidate)
                problem = self._fetch(candidate, temporary)
                if problem is None:
                    yield candidate, os.path.join(temporary, "checkpoint")
                    return
                steps = self.checkpoints()  # A training may have removed it while it was read, and saved a newer one.
                if candidate in steps:
                    damaged[candidate] = problem
                    log.warning(
                        "run %s: checkpoint at step %d is damaged (%s) and is passed over", self.url, candidate, problem
                    )
                if step:
                    refusal = UserError(f"run {self.url}: checkpoint at step {step} is damaged: {problem}")
                    raise refusal if step in steps else self._no_checkpoint(step, steps)
            if damaged:
                problems = "; ".join(f"step {candidate}: {problem}" for candidate, problem in sorted(damaged.items()))
                raise UserError(
                    f"run {self.url}: none of its checkpoints is whole ({problems}); put one back from a copy, or"
                    f" remove {self.path('checkpoints')} to begin anew"
                )
            yield None

    def _no_checkpoint(self, step: int, steps: list[int]) -> UserError:
        return UserError(
            f"run {self.url}: no checkpoint at step {step} (there are: {', '.join(map(str, steps)) or 'none'})"
        )

    def _checkpoint(self, step: int) -> str:
        return self.path("checkpoints", f"step-{step:08d}")

    def _remove(self, step: int) -> None:
        # The manifest first: a half-removed checkpoint must not look whole.
        lake.remove(lake.join(self._checkpoint(step), "manifest.json"))
        lake.remove(self._checkpoint(step))

    def _fetch(self, step: int, temporary: str) -> str | None:
        """Copies the checkpoint's files to the local folder `temporary`; returns what is damaged about it.

        A store that fails to answer is no damage: its error is raised, and the checkpoint may be whole at the next try.
        """
        fs, folder = lake.filesystem(self._checkpoint(step))
        try:
            manifest = fs.cat_file(f"{folder}/manifest.json")
        except FileNotFoundError:
            return "manifest.json: missing"
        try:
            files = {
                posixpath.basename(name): (expected["bytes"], expected["sha256"])
                for name, expected in json.loads(manifest)["files"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return f"manifest.json: {type(error).__name__}: {error}"
        for name, (size, digest) in files.items():
            local = os.path.join(temporary, name)
            try:
                fs.get_file(f"{folder}/{name}", local)
            except FileNotFoundError:
                return f"{name}: missing"
            if os.path.getsize(local) != size:
                return f"{name}: {os.path.getsize(local)} bytes, expected {size}"
            if _sha256(local) != digest:
                return f"{name}: another checksum"
        return None

    # --- what is looked at ---

    def append_metrics(self, *lines: dict) -> None:
        """Adds lines to metrics.jsonl; they start on a line of their own where its last one was cut off.

        Only a local disk appends. Elsewhere the file is written anew, and of two processes that do so at once one loses
        its lines.
        """
        url, data = self.path("metrics.jsonl"), "".join(json.dumps(line) + "\n" for line in lines).encode()
        local = lake.mounted(url)
        if not local.startswith("file:") or local.startswith(_NO_APPENDS):
            try:
                former = lake.read_bytes(url)
            except FileNotFoundError:
                former = b""
            lake.write_bytes(url, former + _newline_after(former[-1:]) + data)
            return
        fs, path = lake.filesystem(url)
        with lake.writing(url):
            fs.makedirs(posixpath.dirname(path), exist_ok=True)
            with open(path, "a+b") as stream:
                stream.seek(max(stream.tell() - 1, 0))
                stream.write(_newline_after(stream.read()[-1:]) + data)

    def metrics(self) -> list[dict]:
        """Lines of metrics.jsonl, in order; those that were cut off are left out."""
        return self.watch(0)[0]

    def watch(self, offset: int) -> tuple[list[dict], int]:
        """Whole lines of metrics.jsonl from byte `offset` on, and the offset behind them.

        What does not parse is left out, with a warning.
        """
        fs, path = lake.filesystem(self.path("metrics.jsonl"))
        try:
            size = fs.size(path)
            if size is not None and size <= offset:
                return [], offset
            data = cast(bytes, fs.cat_file(path, start=offset))
        except FileNotFoundError:
            return [], offset
        end = data.rfind(b"\n") + 1
        lines, broken = [], []
        for line in filter(None, data[:end].splitlines()):
            try:
                lines.append(json.loads(line))
            except ValueError:
                broken.append(line)
        if broken:
            log.warning(
                "run %s: metrics.jsonl has %d lines that were cut off; they are left out, the first is %.80r",
                self.url,
                len(broken),
                broken[0],
            )
        return lines, offset + end

    def save_sample(self, step: int, png: bytes) -> str:
        url = self.path("samples", f"step-{step:08d}.png")
        lake.write_bytes(url, png)
        return url

    def put_events(self, folder: str, part: str = "") -> None:
        """Copies TensorBoard files from a local folder to events/, or to events/`part`."""
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as stream:
                lake.write_bytes(self.path("events", *([part] if part else []), name), stream.read())


def _newline_after(last: bytes) -> bytes:
    return b"" if last in (b"", b"\n") else b"\n"


def _sha256(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
