"""Versions of a registered model: which is served, which is loaded beside it, which cannot be.

The registry is looked at again and again. A version that is promoted is loaded and warmed up while the one before
answers; then requests go to it, and what the one before has begun it finishes. A version that cannot be loaded is told,
and the one before stays. A challenger answers its share of the requests, by a hash of their keys.
"""

import asyncio
import contextlib
import gc
import hashlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from ..config import UserError
from ..data import images
from ..runs import challenge, registry
from ..runs.store import Run
from .batching import Batcher
from .functions import Answers, answers, exact, with_parts
from .limits import Limits
from .metrics import Metrics
from .refusal import Refused

log = logging.getLogger(__name__)
POLL = 1.0  # seconds between looks at the registry
AGAIN = 30.0  # seconds, after which a version that could not be loaded is tried again

Row = dict[str, np.ndarray | int | bytes]


class Version:
    """A loaded version, which answers rows."""

    def __init__(
        self, number: int, run: str, step: int, answered: Answers, limits: Limits, threads: int, metrics: Metrics
    ):
        self.number, self.run, self.step, self.answers = number, run, step, answered
        self.calls = answered.calls()
        plain = exact(answered)
        self._functions = with_parts(answered, plain)
        self._metrics, self._leases, self._retired = metrics, 0, False
        self.sizes = {name: list(functions) for name, functions in self._functions.items()}
        self._batcher = Batcher(
            self._compute,
            {name: max(sizes) for name, sizes in self.sizes.items()},
            {name: max(sizes) for name, sizes in plain.items()},
            threads,
            limits.batch_milliseconds / 1000,
            limits.max_waiting,
        )

    async def ask(self, name: str, rows: Sequence[Row], deadline: float) -> list[np.ndarray]:
        """What the call `name` gives of each row: an image, uint8, or the probabilities of classes."""
        return await asyncio.wrap_future(self._batcher.submit(name, rows, deadline))

    def waiting(self) -> int:
        return self._batcher.waiting()

    def _compute(self, name: str, rows: list[Row]) -> list[np.ndarray]:
        """In batches of a number of rows that changes nothing, the last row again where there are fewer."""
        functions = self._functions[name]
        size = min((size for size in functions if size >= len(rows)), default=max(functions))
        filled = [*rows, *[rows[-1]] * (size - len(rows))]
        kinds = {"seed": tf.int64, "label": tf.int32, "caption": tf.string, "embedding": tf.float32, "image": tf.uint8}
        columns = {}
        for column in self.calls[name].columns:
            values = [row[column] for row in filled]
            columns[column] = tf.constant(
                np.stack(values) if column in ("embedding", "image") else values, kinds[column]
            )
        outputs = functions[size](columns).numpy()[: len(rows)]
        self._metrics.batches.labels(name).observe(len(rows))
        self._metrics.images.labels(name, str(self.number)).inc(len(rows))
        return list(outputs if name == "classify" else images.to_pixels(outputs))

    @contextlib.contextmanager
    def lease(self) -> Iterator["Version"]:
        """Keeps the version answering, though it be retired meanwhile. In the event loop's thread alone."""
        self._leases += 1
        try:
            yield self
        finally:
            self._leases -= 1
            self._close_if_done()

    def retire(self) -> None:
        """Lets the version go once nobody asks it any more. In the event loop's thread alone."""
        self._retired = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._retired and not self._leases:
            threading.Thread(target=self.close, daemon=True).start()

    def close(self) -> None:
        self._batcher.close()
        self._functions = {}
        gc.collect()


class Versions:
    """The versions of the registered model `name` of the lake at `root`: the promoted one, and its challenger."""

    def __init__(self, root: str, name: str, limits: Limits, threads: int, metrics: Metrics):
        self.root, self.name = root, name
        self._limits, self._threads, self._metrics = limits, threads, metrics
        self.current: Version | None = None
        self.challenger: Version | None = None
        self.share = 0.0  # of the requests, which the challenger answers
        self.refused: dict[tuple, float] = {}  # versions that cannot be loaded, and when that was tried
        self._is_reachable = True

    @contextlib.contextmanager
    def lease(self, key: str = "", version: str = "") -> Iterator[Version]:
        """The version that answers a request from its beginning to its end, though another be promoted meanwhile: by
        the request's `key`, or the one whose number is `version`.

        `Refused` with 404 where no such version is served. In the event loop's thread alone.
        """
        with self._chosen(key, version).lease() as chosen:
            yield chosen

    def _chosen(self, key: str, version: str) -> Version:
        if version:
            chosen = next((one for one in self._served() if str(one.number) == version), None)
            if chosen is None:
                numbers = " and ".join(str(one.number) for one in self._served())
                raise Refused(404, f"no such version; served is {numbers}")
            return chosen
        if self.challenger is not None and place(f"{self.name}/{self.challenger.number}/{key}") < self.share:
            return self.challenger
        return self.current

    def _served(self) -> list[Version]:
        return [version for version in (self.current, self.challenger) if version is not None]

    def waiting(self) -> int:
        return sum(version.waiting() for version in self._served())

    def load_first(self) -> None:
        """Loads the promoted version; `UserError` where there is none, or it cannot be loaded."""
        entry = registry.current(self.root, self.name)
        if entry is None:
            raise UserError(
                f"model {self.name!r}: no version of it is promoted in {self.root} (registered:"
                f" {', '.join(registry.models(self.root)) or 'none'}); promote one with `gan-spark promote`"
            )
        self._put(self._load(entry), None, 0.0)

    def _load(self, entry: dict) -> Version:
        began = time.monotonic()
        answered = answers(Run.named(self.root, entry["run"]), entry["step"])
        version = Version(
            entry["version"], entry["run"], entry["step"], answered, self._limits, self._threads, self._metrics
        )
        log.info(
            "version %d, run %s at step %d, is loaded (%.1f s); exact numbers of rows: %s",
            version.number,
            version.run,
            version.step,
            time.monotonic() - began,
            version.sizes,
        )
        return version

    def _put(self, current: Version, challenger: Version | None, share: float) -> None:
        """Serves these from now on."""
        before = self._served()
        if (current, challenger, share) == (self.current, self.challenger, self.share):
            return
        self.current, self.challenger, self.share = current, challenger, share
        self._metrics.version.clear()
        for version, part in ((current, 1 - share), (challenger, share)):
            if version is not None:
                self._metrics.version.labels(str(version.number), version.run, str(version.step)).set(part)
                log.info("version %d answers %.4g of the requests", version.number, part)
        for version in before:
            if version not in self._served():
                version.retire()
                log.info("version %d is let go", version.number)

    async def watch(self) -> None:
        """Follows the registry until it is cancelled."""
        while True:
            await asyncio.sleep(POLL)
            try:
                await self.look()
            except Exception:  # Whatever it is, what is served is served on, and the registry looked at again.
                log.exception("the registry could not be followed")

    async def look(self) -> None:
        """Looks at the registry once, and loads what it names and is not served yet."""
        try:
            entry, challenger = await asyncio.to_thread(challenge.served, self.root, self.name)
        except Exception as error:  # of the store, of any type
            self._tell_reachable(error)
            return
        self._tell_reachable(None)
        current = await self._version(entry)
        rival = await self._version(challenger)
        self._put(current or self.current, rival, challenger["share"] if rival else 0.0)
        self._metrics.refused.set(len(self.refused))

    async def _version(self, entry: dict | None) -> Version | None:
        """The version of an entry of the registry, loaded unless it is served already; None where it cannot be."""
        if entry is None:
            return None
        key = (entry["version"], entry["run"], entry["step"])
        for version in self._served():
            if key == (version.number, version.run, version.step):
                return version
        if time.monotonic() < self.refused.get(key, -AGAIN) + AGAIN:
            return None
        try:
            version = await asyncio.to_thread(self._load, entry)
        except Exception as error:  # A checkpoint that is gone or damaged, a model that does not fit, a full memory.
            self.refused[key] = time.monotonic()
            log.error("version %d, run %s at step %d, cannot be loaded and is not served: %s", *key, error)
            return None
        self.refused.pop(key, None)
        return version

    def _tell_reachable(self, error: Exception | None) -> None:
        if self._is_reachable != (error is None):
            self._is_reachable = error is None
            self._metrics.unreachable.set(0 if error is None else 1)
            if error is not None:
                log.warning("the registry cannot be read; what is served stays: %s: %s", type(error).__name__, error)
            else:
                log.info("the registry can be read again")


def place(text: str) -> float:
    """A number in [0, 1) that follows from the text, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
