"""How ranks learn that their job is to end: rank 0 looks in the lake, and the ranks tell each other, once a second."""

import logging
import threading
import time

from ..process import Team
from ..runs.store import Run

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds


class Ending:
    """Whether the job that claimed the run by `token` is asked to end.

    Ranks have to agree on the step after which they end. An exchange takes Horovod some milliseconds, as long as a step
    of a small model, so that they make one a second: after as many steps of the ranks' mean length.
    """

    def __init__(self, run: Run, token: str, team: Team, start: int):
        self.run, self.token, self.team = run, token, team
        self._last, self._next, self._since = start, start + 1, time.monotonic()
        self._is_told, self._is_over = threading.Event(), threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)

    def __enter__(self):
        if self.team.rank == 0:
            self._looking.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()

    def is_asked(self, step: int) -> bool:
        """Whether training ends after this step; the same on all ranks, each of which has to ask after every step."""
        if step < self._next:
            return False
        import tensorflow as tf

        now = time.monotonic()
        told, seconds = self._is_told.is_set(), (now - self._since) / (step - self._last)
        means = self.team.reduce([tf.constant([told, seconds], tf.float32)])[0]
        self._last, self._since = step, now
        self._next = step + max(1, int(EVERY / max(float(means[1]), 1e-6)))
        return float(means[0]) > 0

    def _look(self) -> None:
        while not self._is_over.wait(EVERY):
            try:
                if self.run.is_asked_to_end(self.token):
                    self._is_told.set()
                    return
            except Exception as error:  # A store that fails to answer; the next look may go well.
                log.debug("run %s: whether it is to end could not be read", self.run.url, exc_info=error)
