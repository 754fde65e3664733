"""A progress bar on the driver."""

import logging
import sys
import threading
import time

from tqdm import tqdm

from ..config import Config
from ..runs.store import Run
from ..runs.tracking import Tracker

log = logging.getLogger(__name__)


class Progress(threading.Thread):
    """A progress bar on the driver, and MLflow's metrics, fed by the run's metrics: ranks may be on any machine, and
    Horovod hands on their output late.
    """

    def __init__(self, run: Run, config: Config, tracker: Tracker | None = None, start: int = 0):
        super().__init__(daemon=True)
        self.tracker = tracker
        self.run_, self.done, self.offset = run, threading.Event(), run.watch(0)[1]
        tty = sys.stderr.isatty()
        self.bar = tqdm(
            total=config.train.steps,
            initial=start,
            unit="step",
            desc=config.run,
            ncols=150,
            mininterval=0 if tty else 15,
            miniters=1,
            file=sys.stderr if tty else _Lines(),
        )
        self.bar._time = time.monotonic  # By tqdm's own, a clock that is set back would silence it for as long.
        self.bar.start_t = self.bar.last_print_t = time.monotonic()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()
        self.bar.close()

    def run(self) -> None:
        warned = ended = False
        while not ended:
            ended = self.done.wait(1.0)
            try:
                self.show()
            except Exception as error:  # Training does not wait for what follows it, and the next look may go well.
                if not warned:
                    log.warning(
                        "run %s: its metrics could not be followed (%s: %s); trying on",
                        self.run_.url,
                        type(error).__name__,
                        error,
                    )
                warned = True

    def show(self) -> None:
        lines, self.offset = self.run_.watch(self.offset)
        metrics = []
        for line in lines:
            if line.get("event") == "start":
                self.bar.initial = self.bar.n = self.bar.last_print_n = line["step"]
                self.bar.start_t = self.bar.last_print_t = time.monotonic()
            elif line.get("event") == "warning":
                log.warning("%s", line["text"])
            elif "scalars" in line:
                losses = ", ".join(f"{name} {line[name]:.4g}" for name in line["scalars"])
                speed = f"{line['images_per_second']:.0f} images/s, " if "images_per_second" in line else ""
                self.bar.set_postfix_str(speed + losses, refresh=False)
                self.bar.update(line["step"] - self.bar.n)
                metrics.append(
                    (
                        line["step"],
                        {name: line[name] for name in (*line["scalars"], "images_per_second") if name in line},
                    )
                )
        if self.tracker and metrics:
            self.tracker.metrics(metrics)


class _Lines:
    """A progress bar for logs: every refresh is a line of its own."""

    def write(self, text: str) -> None:
        text = text.strip("\r\n")
        if text:
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()
