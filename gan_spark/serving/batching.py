"""Rows of many requests, computed together.

Threads take what waits, a part each; a row waits a bounded time for others to come, and a bounded number of rows wait.
"""

import collections
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from .refusal import Refused


class _Job:
    """The rows of one request: its future has their results once all are there."""

    def __init__(self, name: str, rows: Sequence, deadline: float):
        self.name, self.rows, self.deadline = name, rows, deadline
        self.arrived = time.monotonic()
        self.future: Future = Future()
        self.future.set_running_or_notify_cancel()  # Nobody takes it back while a thread is about to set it.
        self.results: list[Any] = [None] * len(rows)
        self.left = len(rows)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Batcher:
    """Computes rows by `compute(name, rows)`, which gives a result for each, in `threads` threads.

    `largest` says for each name how many rows at most are computed at once. A row waits up to `wait` seconds for others
    of its name, where there are fewer than `awaited`; where `limit` rows wait, more are refused.
    """

    def __init__(
        self,
        compute: Callable[[str, list], Sequence],
        largest: dict[str, int],
        awaited: dict[str, int],
        threads: int,
        wait: float,
        limit: int,
    ):
        self._compute, self._largest, self._awaited = compute, largest, awaited
        self._wait, self._limit = wait, limit
        self._waiting = {name: collections.deque() for name in largest}
        self._condition = threading.Condition()
        self._idle, self._closed, self._rate = 0, False, 0.0
        self._lock = threading.Lock()  # of jobs, of which several threads may compute parts
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, name: str, rows: Sequence, deadline: float) -> Future:
        """A future of the rows' results, in their order. `Refused` where too many wait; the future's, where they are
        not computed before `deadline`, by time.monotonic().
        """
        job = _Job(name, rows, deadline)
        with self._condition:
            waiting = self.waiting()
            if waiting + len(rows) > self._limit:
                seconds = math.ceil(waiting / self._rate) if self._rate else 1
                raise Refused(503, f"{waiting} images wait already; ask again later", min(max(seconds, 1), 60))
            self._waiting[name].extend((job, place) for place in range(len(rows)))
            self._condition.notify_all()
        return job.future

    def waiting(self) -> int:
        """Rows that wait."""
        return sum(map(len, self._waiting.values()))

    def close(self) -> None:
        """Computes what waits, then ends the threads."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._take():
            jobs = [(job, place) for job, place in batch if not self._is_late(job)]
            if not jobs:
                continue
            began = time.monotonic()
            try:
                results = self._compute(jobs[0][0].name, [job.rows[place] for job, place in jobs])
            except Exception as error:
                for job, _ in jobs:
                    job.fail(error)
                continue
            rate = len(jobs) / max(time.monotonic() - began, 1e-6) * len(self._threads)
            self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate
            for (job, place), result in zip(jobs, results, strict=True):
                job.results[place] = result
            self._finish([job for job, _ in jobs])

    def _finish(self, jobs: list[_Job]) -> None:
        """Hands on the results of those jobs whose last row this was; each is named once a row."""
        with self._lock:
            for job in jobs:
                job.left -= 1
            whole = {id(job): job for job in jobs if job.left == 0}
        for job in whole.values():
            if not job.future.done():
                job.future.set_result(job.results)

    def _is_late(self, job: _Job) -> bool:
        if time.monotonic() <= job.deadline and not job.future.done():
            return False
        job.fail(Refused(503, "not computed in time, since others came before; ask again later", 5))
        return True

    def _take(self) -> list[tuple[_Job, int]]:
        """Rows of one name to compute at once: the idle threads' even share of those that wait. Empty at the end."""
        with self._condition:
            self._idle += 1
            try:
                while not self._closed or self.waiting():
                    name = self._oldest()
                    if name is None:
                        self._condition.wait()
                        continue
                    rows, largest = self._waiting[name], self._largest[name]
                    patience = rows[0][0].arrived + self._wait - time.monotonic()
                    if len(rows) < self._awaited[name] and patience > 0 and not self._closed:
                        self._condition.wait(patience)
                        continue
                    count = min(largest, math.ceil(len(rows) / self._idle))
                    return [rows.popleft() for _ in range(count)]
                return []
            finally:
                self._idle -= 1

    def _oldest(self) -> str | None:
        """The name of the row that has waited longest."""
        names = [name for name, rows in self._waiting.items() if rows]
        return min(names, key=lambda name: self._waiting[name][0][0].arrived, default=None)
