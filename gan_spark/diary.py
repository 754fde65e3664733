"""What is told of a training while it goes on: a progress bar on the driver, the run's metrics, samples and checkpoints, and signs of a collapse."""

import datetime
import logging
import sys
import tempfile
import threading
import time

from tqdm import tqdm

from . import images
from .config import Config
from .launch import Team
from .store import Run
from .tracking import Tracker

log = logging.getLogger(__name__)


class Monitor:
    """Signs of a collapse, each told once: a discriminator that is never wrong, and images that become alike."""

    LOW_LOSS, TIMES, FALL = 0.05, 3, 1 / 3
    DISCRIMINATOR_AIDS = ("real_target", "discriminator_above", "discriminator_rate", "spectral_norm", "generator_noise", "dropout", "noise")
    VARIETY_AIDS = ("minibatch", "feature_matching", "historical_averaging", "discriminator_rate", "gamma")

    def __init__(self, config):
        self.config, self.low, self.highest, self.told = config, 0, 0.0, set()

    def losses(self, step: int, scalars: dict[str, float]) -> str | None:
        """A warning where `d_loss` was under LOW_LOSS for TIMES logs in a row."""
        self.low = self.low + 1 if scalars.get("d_loss", 1.0) < self.LOW_LOSS else 0
        if self.low < self.TIMES:
            return None
        return self._tell("discriminator", f"step {step}: the discriminator's loss was under {self.LOW_LOSS} {self.TIMES} times: it is never wrong, and the generator learns nothing from it", self.DISCRIMINATOR_AIDS)

    def variety(self, step: int, pixels) -> str | None:
        """A warning where the deviation between the images of one batch, uint8 [n, h, w, c], fell to FALL of the highest yet."""
        deviation = float(pixels.std(axis=0).mean())
        self.highest = max(self.highest, deviation)
        if deviation >= self.FALL * self.highest:
            return None
        return self._tell("variety", f"step {step}: images of the fixed seeds differ by {deviation:.1f} of 255, after {self.highest:.1f}: the generator may have collapsed", self.VARIETY_AIDS)

    def _tell(self, sign: str, text: str, aids: tuple[str, ...]) -> str | None:
        if sign in self.told:
            return None
        self.told.add(sign)
        there = [f"model.{aid}" for aid in aids if hasattr(self.config, aid)]
        return text + (f". What may help: {', '.join(there)}" if there else "")


class Progress(threading.Thread):
    """A progress bar on the driver, and MLflow's metrics, fed by the run's metrics: ranks may be on any machine, and Horovod hands on their output late."""

    def __init__(self, run: Run, config: Config, tracker: Tracker | None = None):
        super().__init__(daemon=True)
        self.tracker = tracker
        self.run_, self.done, self.offset = run, threading.Event(), run.watch(0)[1]
        tty = sys.stderr.isatty()
        self.bar = tqdm(
            total=config.train.steps, unit="step", desc=config.run, ncols=150,
            mininterval=0 if tty else 15, file=sys.stderr if tty else _Lines(),
        )  # fmt: skip

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()
        self.bar.close()

    def run(self) -> None:
        told = ended = False
        while not ended:
            ended = self.done.wait(1.0)
            try:
                self.show()
            except Exception as error:  # Training does not wait for what follows it, and the next look may go well.
                if not told:
                    log.warning("run %s: its metrics could not be followed (%s: %s); trying on", self.run_.url, type(error).__name__, error)
                told = True

    def show(self) -> None:
        lines, self.offset = self.run_.watch(self.offset)
        told = []
        for line in lines:
            if line.get("event") == "start":
                self.bar.initial = self.bar.n = self.bar.last_print_n = line["step"]
                self.bar.start_t = self.bar.last_print_t = time.time()
            elif line.get("event") == "warning":
                log.warning("%s", line["text"])
            elif "scalars" in line:
                losses = ", ".join(f"{name} {line[name]:.4g}" for name in line["scalars"])
                speed = f"{line['images_per_second']:.0f} images/s, " if "images_per_second" in line else ""
                self.bar.set_postfix_str(speed + losses, refresh=False)
                self.bar.update(line["step"] - self.bar.n)
                told.append((line["step"], {name: line[name] for name in (*line["scalars"], "images_per_second") if name in line}))
        if self.tracker and told:
            self.tracker.metrics(told)


class _Lines:
    """A progress bar for logs: every refresh is a line of its own."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


class Diary:
    """What rank 0 writes down: metrics, TensorBoard, samples, checkpoints. Other ranks keep only the time."""

    def __init__(self, run: Run, job: dict, team: Team, start: int):
        self.run, self.job, self.leads = run, job, team.rank == 0
        self.options = job["config"]["train"]
        self.start = self.logged = start
        self.began = self.mark = self.opened = time.time()

    def __enter__(self):
        if self.leads:
            import tensorflow as tf

            self.temporary = tempfile.TemporaryDirectory()
            self.writer = tf.summary.create_file_writer(self.temporary.name)
            self.note("start")
        return self

    def __exit__(self, *_):
        if self.leads:
            self.writer.close()
            self.run.put_events(self.temporary.name)
            self.temporary.cleanup()

    def begin(self) -> None:
        self.began = self.mark = time.time()
        self.logged = self.start + 1

    def note(self, event: str) -> None:
        self.run.append_metrics({"event": event, "step": self.start, "attempt": self.job["attempt"], "workers": self.options["workers"], "time": _now()})

    def log(self, step: int, scalars: dict[str, float]) -> None:
        now = time.time()
        speed = (step - self.logged) * self.options["batch_size"] / max(now - self.mark, 1e-9)
        self.mark, self.logged = now, step
        self._write(step, scalars, {"images_per_second": round(speed, 1)} if step > self.start + 1 else {})

    def measured(self, step: int, scalars: dict[str, float]) -> None:
        """What was measured on held-out images, the time for which is not the training's."""
        self._write(step, scalars, {})
        self.mark = time.time()

    def _write(self, step: int, scalars: dict[str, float], more: dict) -> None:
        if not self.leads:
            return
        import tensorflow as tf

        self.run.append_metrics({"step": step, **scalars, "scalars": list(scalars), "time": _now(), **more})
        with self.writer.as_default(step):
            for name, value in scalars.items():
                tf.summary.scalar(name, value)

    def warn(self, step: int, text: str | None) -> None:
        if text and self.leads:
            self.run.append_metrics({"event": "warning", "step": step, "text": text, "time": _now()})

    def sample(self, step: int, pixels) -> None:
        import tensorflow as tf

        sheet = images.grid(pixels)
        self.run.save_sample(step, images.encode_png(sheet))
        with self.writer.as_default(step):
            tf.summary.image("samples", sheet[None])

    def save(self, step: int, write, keep: int) -> None:
        import tensorflow as tf

        self.run.check_owner(self.job["owner"])
        self.run.save_checkpoint(step, write, keep)
        # TensorBoard reads many files as one; each goes to the lake once.
        self.writer.close()
        self.run.put_events(self.temporary.name)
        self.temporary.cleanup()
        self.temporary = tempfile.TemporaryDirectory()
        self.writer = tf.summary.create_file_writer(self.temporary.name)

    def rate(self) -> dict:
        """Images a second after the first step, and seconds since the loop was entered."""
        steps = self.logged - self.start - 1
        speed = steps * self.options["batch_size"] / max(self.mark - self.began, 1e-9) if steps > 0 else None
        return {"images_per_second": speed and round(speed, 1), "seconds": round(time.time() - self.opened, 1)}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
