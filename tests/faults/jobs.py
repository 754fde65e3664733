"""jobs/train.py as a process, to be hurt: its ranks by number, what it said, how it ended."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from conftest import ROOT, make_config, write_config
from processes import ranks_under, wait_for

from gan_spark.config import Config
from gan_spark.runs.store import Run

TRAIN = {
    "steps": 400,
    "workers": 2,
    "launcher": "spark",
    "log_every": 20,
    "checkpoint_every": 40,
    "sample_every": 400,
}


def small_training(lake: str, run: str, **train) -> Config:
    """A config of 400 small steps on two ranks."""
    return make_config(lake, run=run, train={**TRAIN, **train})


class Training:
    """A process that trains; `command` stands before the path of its config."""

    def __init__(self, config: Config, folder: Path, command: list[str] | None = None, **options):
        self.run, self.config = Run.of(config), write_config(folder, config)
        self.errors = folder / f"errors-{time.monotonic_ns()}"
        self.command = [*(command or [sys.executable, str(ROOT / "jobs/train.py")]), "--config", self.config]
        with open(self.errors, "w") as errors:
            options = {"stdout": subprocess.PIPE, "stderr": errors, "text": True, **options}
            self.process = subprocess.Popen(self.command, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        return self.errors.read_text(errors="replace")

    def wait_for(self, condition, what: str):
        """What `condition()` gives once it is true, while the job runs."""

        def is_there():
            value = condition()
            assert value or self.process.poll() is None, self.said()[-3000:]
            return value

        return wait_for(is_there, what)

    def wait_for_checkpoint(self, beyond: int = 0) -> int:
        newest = lambda: next((step for step in reversed(self.run.checkpoints()) if step > beyond), 0)
        return self.wait_for(newest, f"checkpoint beyond step {beyond}")

    def starts(self) -> list[int]:
        """The step at which each attempt of a job began."""
        return [line["step"] for line in self.run.metrics() if line.get("event") == "start"]

    def rank(self, number: int) -> psutil.Process:
        """The process of a rank."""
        # Executors of a standalone cluster are not the job's, but of the daemons that the tests began.
        return (ranks_under(self.process.pid) or ranks_under(os.getpid()))[number]

    def ends(self, code: int = 0) -> str:
        """The last line of its output, or of its errors where `code` is not 0."""
        output, _ = self.process.communicate(timeout=1200)
        assert self.process.returncode == code, self.said()[-3000:]
        return (self.said() if code else output).strip().splitlines()[-1]

    def answer(self) -> dict:
        return json.loads(self.ends())
