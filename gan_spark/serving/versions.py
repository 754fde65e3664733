"""Versions of a registered model: which is served, which is loaded beside it, which cannot be.

The registry is looked at again and again. A version that is promoted is loaded and warmed up while the one before
answers; then requests go to it, and what the one before has begun it finishes. A version that cannot be loaded is told,
and the one before stays.
"""

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from ..config import UserError
from ..data import images
from ..runs import registry
from ..runs.store import Run
from .batching import Batcher
from .functions import Answers, answers, exact
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
        self._functions = exact(answered)
        self._metrics, self._leases, self._retired = metrics, 0, False
        self.sizes = {name: list(functions) for name, functions in self._functions.items()}
        self._batcher = Batcher(
            self._compute,
            {name: max(sizes) for name, sizes in self.sizes.items()},
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
    """The versions of the registered model `name` of the lake at `root`."""

    def __init__(self, root: str, name: str, limits: Limits, threads: int, metrics: Metrics):
        self.root, self.name = root, name
        self._limits, self._threads, self._metrics = limits, threads, metrics
        self.current: Version | None = None
        self.refused: dict[tuple, tuple[str, float]] = {}  # why, and when it was tried
        self._is_reachable = True

    @contextlib.contextmanager
    def lease(self, version: str = "") -> Iterator[Version]:
        """The version that answers a request from its beginning to its end, though another be promoted meanwhile.

        `Refused` with 404 where `version` names another one. In the event loop's thread alone.
        """
        if version not in ("", str(self.current.number)):
            raise Refused(404, f"no such version; version {self.current.number} is served")
        with self.current.lease() as current:
            yield current

    def waiting(self) -> int:
        return self.current.waiting()

    def load_first(self) -> None:
        """Loads the promoted version; `UserError` where there is none, or it cannot be loaded."""
        entry = registry.current(self.root, self.name)
        if entry is None:
            raise UserError(
                f"model {self.name!r}: no version of it is promoted in {self.root} (registered:"
                f" {', '.join(registry.models(self.root)) or 'none'}); promote one with `gan-spark promote`"
            )
        self._put(self._load(entry))

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

    def _put(self, version: Version) -> None:
        before, self.current = self.current, version
        self._metrics.version.clear()
        self._metrics.version.labels(str(version.number), version.run, str(version.step)).set(1)
        if before is not None:
            before.retire()
            log.info("version %d is served, in place of version %d", version.number, before.number)

    async def watch(self) -> None:
        """Follows the registry until it is cancelled."""
        while True:
            await asyncio.sleep(POLL)
            await self.look()

    async def look(self) -> None:
        """Looks at the registry once, and loads the promoted version where it is another."""
        try:
            entry = await asyncio.to_thread(registry.current, self.root, self.name)
        except Exception as error:  # of the store, of any type
            self._tell_reachable(error)
            return
        self._tell_reachable(None)
        if entry is None:
            return
        key = (entry["version"], entry["run"], entry["step"])
        if self.current is not None and key == (self.current.number, self.current.run, self.current.step):
            return
        if key in self.refused and time.monotonic() < self.refused[key][1] + AGAIN:
            return
        try:
            version = await asyncio.to_thread(self._load, entry)
        except Exception as error:  # A checkpoint that is gone or damaged, a model that does not fit, a full memory.
            self.refused[key] = (f"{type(error).__name__}: {error}", time.monotonic())
            log.error("version %d, run %s at step %d, cannot be loaded and is not served: %s", *key, error)
        else:
            self.refused.pop(key, None)
            self._put(version)
        self._metrics.refused.set(len(self.refused))

    def _tell_reachable(self, error: Exception | None) -> None:
        if self._is_reachable != (error is None):
            self._is_reachable = error is None
            self._metrics.unreachable.set(0 if error is None else 1)
            if error is not None:
                log.warning("the registry cannot be read; what is served stays: %s: %s", type(error).__name__, error)
            else:
                log.info("the registry can be read again")
