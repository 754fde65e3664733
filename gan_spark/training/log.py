"""The log of a training, which rank 0 keeps: metrics, TensorBoard, samples, checkpoints."""

import datetime
import tempfile
import time

from ..data import images
from ..process import Team
from ..runs.store import Run


class Diary:
    """What rank 0 writes down: metrics, TensorBoard, samples, checkpoints. Other ranks keep only the time.

    Each time it looks first whether the run is still this job's, so that one that was removed does not come back:
    `TaskFailure` where it is not.
    """

    def __init__(self, run: Run, job: dict, team: Team, start: int):
        self.run, self.job, self.leads = run, job, team.rank == 0
        self.options = job["config"]["train"]
        self.start = self.logged = start
        self.began = self.mark = self.opened = time.monotonic()
        self.has_begun = False

    def __enter__(self):
        if self.leads:
            import tensorflow as tf

            self.temporary = tempfile.TemporaryDirectory()
            self.writer = tf.summary.create_file_writer(self.temporary.name)
        return self

    def __exit__(self, kind, error, _):
        if self.leads:
            if kind is None and not self.has_begun:  # There was no step left to make.
                self._note_start()
            self.writer.close()
            with self.temporary:
                if kind is None:
                    self._check_owner()
                if kind is None or self.run.is_owner(self.job["owner"]):
                    self.run.put_events(self.temporary.name)
            if isinstance(error, OSError):  # That the run was removed while it was written to says more.
                self._check_owner()

    def begin(self) -> None:
        """The first step is made: from here on the run has begun, and its name is taken."""
        self.has_begun = True
        if self.leads:
            self._note_start()
        self.began = self.mark = time.monotonic()
        self.logged = self.start + 1

    def _note_start(self) -> None:
        self._check_owner()
        self.run.append_metrics(
            {
                "event": "start",
                "step": self.start,
                "attempt": self.job["attempt"],
                "owner": self.job["owner"],
                "workers": self.options["workers"],
                "time": _now(),
            }
        )

    def log(self, step: int, scalars: dict[str, float]) -> None:
        now = time.monotonic()
        speed = (step - self.logged) * self.options["batch_size"] / max(now - self.mark, 1e-9)
        self.mark, self.logged = now, step
        self._write(step, scalars, {"images_per_second": round(speed, 1)} if step > self.start + 1 else {})

    def measured(self, step: int, scalars: dict[str, float]) -> None:
        """What was measured on held-out images, the time for which is not the training's."""
        self._write(step, scalars, {})
        self.mark = time.monotonic()

    def _write(self, step: int, scalars: dict[str, float], more: dict) -> None:
        if not self.leads:
            return
        import tensorflow as tf

        self._check_owner()
        self.run.append_metrics({"step": step, **scalars, "scalars": list(scalars), "time": _now(), **more})
        with self.writer.as_default(step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)

    def warn(self, step: int, text: str | None) -> None:
        if text and self.leads:
            self._check_owner()
            self.run.append_metrics({"event": "warning", "step": step, "text": text, "time": _now()})

    def sample(self, step: int, pixels) -> None:
        import tensorflow as tf

        sheet = images.grid(pixels)
        self._check_owner()
        self.run.save_sample(step, images.encode_png(sheet))
        with self.writer.as_default(step):
            tf.summary.image("samples", sheet[None])

    def save(self, step: int, write, keep: int) -> None:
        import tensorflow as tf

        self._check_owner()
        self.run.save_checkpoint(step, write, keep)
        # TensorBoard reads many files as one; each goes to the lake once.
        self.writer.close()
        self.run.put_events(self.temporary.name)
        self.temporary.cleanup()
        self.temporary = tempfile.TemporaryDirectory()
        self.writer = tf.summary.create_file_writer(self.temporary.name)

    def _check_owner(self) -> None:
        self.run.check_owner(self.job["owner"])

    def rate(self) -> dict:
        """Images a second after the first step, and seconds since the loop was entered."""
        steps = self.logged - self.start - 1
        speed = steps * self.options["batch_size"] / max(self.mark - self.began, 1e-9) if steps > 0 else None
        return {"images_per_second": speed and round(speed, 1), "seconds": round(time.monotonic() - self.opened, 1)}


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
