"""Parts of a job: how far the one that runs is, and how long each took.

What is done of a part is what Spark counts while it runs, so that no data is gone over for it: rows that Python's
workers gave back, or, where they have no part in it, rows of the stage. Executors tell it every ten seconds. Spark's
own pages call these stages by the part's name. On a terminal it is a bar, elsewhere a line of the log every so often.
"""

import contextlib
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

log = logging.getLogger(__name__)
EVERY = 30.0  # seconds between lines of the log
_DESCRIPTION = "spark.job.description"
_NEWEST = 8  # queries that are looked at
_seconds: dict[str, float] = {}


def start() -> None:
    """A job begins, and no part of it has taken any time."""
    _seconds.clear()


def seconds() -> dict[str, float]:
    """Seconds that each part took since `start`, by name, in the order in which they began."""
    return {name: round(took, 1) for name, took in _seconds.items()}


@contextlib.contextmanager
def part(name: str, spark=None, total: int = 0, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """A part of a job. With `total`, it is shown how many `unit` are done, of all: those that pass through the stages
    that the session `spark` runs in this thread meanwhile, or those that the function it gives is told of.
    """
    _seconds.setdefault(name, 0.0)
    began, done = time.monotonic(), [0]

    def add(more: int) -> None:
        done[0] += more

    stages = _Stages(spark, name, total) if spark is not None else None
    with _described(spark, name), _shown(name, total, unit, stages.rows if stages else lambda: (0, done[0])):
        try:
            yield add
        finally:
            _seconds[name] += time.monotonic() - began


@contextlib.contextmanager
def _described(spark, name: str) -> Iterator[None]:
    """Spark's pages call what this thread runs meanwhile by the name."""
    if spark is None:
        yield
        return
    context = spark.sparkContext
    before = context.getLocalProperty(_DESCRIPTION)
    context.setLocalProperty(_DESCRIPTION, name)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # The session may have stopped.
            context.setLocalProperty(_DESCRIPTION, before)


class _Stages:
    """Rows that Spark has counted of the newest stage of a name."""

    def __init__(self, spark, name: str, total: int):
        self._spark, self._name, self._total = spark, name, total
        self._newest = (-1, 0)

    def rows(self) -> tuple[int, int]:
        """(number of the stage, its rows so far)."""
        with contextlib.suppress(Exception):  # Java has gone, or is of a kind that does not tell.
            stages = self._spark.sparkContext._jsc.sc().statusStore().activeStages()
            for stage in _each(stages):
                if stage.description().isDefined() and stage.description().get() == self._name:
                    self._newest = max(self._newest, (stage.stageId(), self._of(stage)))
        return self._newest

    def _of(self, stage) -> int:
        if answered := self._answered():
            return min(self._total, max(answered))
        counted = (stage.inputRecords(), stage.shuffleReadRecords(), stage.outputRecords())
        tasks = self._total * stage.numCompleteTasks() // max(stage.numTasks(), 1)
        return min(self._total, max(*counted, tasks))

    def _answered(self) -> list[int]:
        """Rows that Python's workers gave back, by the steps that they do of the queries of the name that run."""
        store, answered = self._spark._jsparkSession.sharedState().statusStore(), []
        executions = store.executionsList(max(0, store.executionsCount() - _NEWEST), _NEWEST)
        for execution in _each(executions):
            if execution.description() != self._name or execution.completionTime().isDefined():
                continue
            values = store.executionMetrics(execution.executionId())
            for node in _each(store.planGraph(execution.executionId()).allNodes()):
                if re.search("Python|Pandas", node.name()):
                    metrics = [each for each in _each(node.metrics()) if each.name() == "number of output rows"]
                    told = [values.get(metric.accumulatorId()) for metric in metrics]
                    answered += [int(re.sub(r"\D", "", each.get() if each.isDefined() else "0")) for each in told]
        return answered


def _each(sequence) -> Iterator:
    """Of one of Scala's."""
    return map(sequence.apply, range(sequence.size()))


@contextlib.contextmanager
def _shown(name: str, total: int, unit: str, read: Callable[[], tuple[int, int]]) -> Iterator[None]:
    if not total:
        yield
        return
    ended = threading.Event()
    show = _bar if sys.stderr.isatty() else _lines
    thread = threading.Thread(target=show, args=(name, total, unit, read, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _bar(name: str, total: int, unit: str, read: Callable, ended: threading.Event) -> None:
    from tqdm import tqdm  # Not at the top: the service imports this module, and has no tqdm.

    stage, is_last = -1, False
    with tqdm(total=total, desc=name, unit=f" {unit}", file=sys.stderr, leave=False, dynamic_ncols=True) as bar:
        while not is_last:
            is_last = ended.wait(0.5)
            newest, done = read()
            if newest != stage:
                stage = newest
                bar.reset(total)
            bar.update(done - bar.n)


def _lines(name: str, total: int, unit: str, read: Callable, ended: threading.Event) -> None:
    stage, began = -1, time.monotonic()
    while not ended.wait(EVERY):
        newest, done = read()
        now = time.monotonic()
        if newest != stage:  # It began since the look before.
            stage, began = newest, now - EVERY
        rate = done / (now - began)
        left = f", about {(total - done) / rate:,.0f} s left" if rate else ""
        log.info(
            "%s: %s of %s %s (%d%%), %.4g/s%s", name, f"{done:,}", f"{total:,}", unit, 100 * done // total, rate, left
        )
