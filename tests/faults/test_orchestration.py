"""What may happen to whatever starts the jobs: a terminal that is closed, ten days at once."""

import concurrent.futures
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import termios
import threading
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, make_config
from processes import ranks_under, submit_environment

from gan_spark import lake as lakes
from gan_spark.runs import registry
from gan_spark.sampling import generate
from gan_spark.training import driver

from .jobs import Training, small_training

# --- terminals -------------------------------------------------------------------------


class Terminal:
    """A terminal for one command, until it is closed."""

    def __init__(self):
        self._ours, self.theirs = pty.openpty()
        self._is_over = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def options(self) -> dict:
        """How a process is started that has this terminal for its own."""
        return {
            **dict.fromkeys(("stdin", "stdout", "stderr"), self.theirs),
            "start_new_session": True,
            "preexec_fn": self._take,
        }

    @staticmethod
    def _take() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is ignored where these tests are under nohup

    def close(self) -> None:
        self._is_over.set()
        self._reader.join()
        os.close(self.theirs)
        os.close(self._ours)

    def _read(self) -> None:
        while not self._is_over.is_set():
            if select.select([self._ours], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    os.read(self._ours, 65536)


def submitted_in_a_terminal(config, folder: Path, *before: str) -> tuple[Training, Terminal]:
    """jobs/train.py by spark-submit on this machine, as somebody types it."""
    environment = submit_environment()
    home = environment["SPARK_HOME"]
    submit = [f"{home}/bin/spark-submit", "--master", "local[2]", "--conf", "spark.driver.host=127.0.0.1"]
    terminal = Terminal()
    command = [*before, *submit, str(ROOT / "jobs/train.py")]
    return Training(config, folder, command, env=environment, cwd=folder, **terminal.options()), terminal


def half_written(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if re.fullmatch(r"\..+\.[0-9a-f]{8}", path.name)]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    "orchestration",
    "the terminal is closed from which spark-submit trains (SIGHUP)",
    "the ranks save a checkpoint, all processes end, and nothing half-written is left; the same command goes on",
)
def test_a_terminal_that_is_closed_ends_a_training_with_a_checkpoint(lake, digits, tmp_path):
    config = small_training(lake, "hung-up", steps=4000, checkpoint_every=4000, sample_every=4000)
    job, terminal = submitted_in_a_terminal(config, tmp_path)
    with job:
        job.wait_for(lambda: [line for line in job.run.metrics() if line.get("step", 0) >= 40], "progress")
        others = psutil.Process(job.process.pid).children(recursive=True)
        assert len(ranks_under(job.process.pid)) == 2
        terminal.close()
        assert job.process.wait(120) == 128 + signal.SIGHUP
    assert psutil.wait_procs(others, timeout=120)[1] == []
    (step,) = job.run.checkpoints()
    assert 40 <= step < 4000 and job.run.read_checkpoint(step)[0] == step
    assert half_written(Path(lakes.filesystem(job.run.url)[1])) == []


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    "orchestration",
    "the terminal is closed from which spark-submit trains under nohup",
    "training goes on to its end",
)
def test_a_training_under_nohup_outlives_its_terminal(lake, digits, tmp_path):
    job, terminal = submitted_in_a_terminal(small_training(lake, "nohup"), tmp_path, "nohup")
    with job:
        job.wait_for_checkpoint()
        terminal.close()
        assert job.process.wait(1200) == 0
    answer = json.loads((tmp_path / "nohup.out").read_text().strip().splitlines()[-1])
    assert answer["steps"] == 400 and answer["restarts"] == 0 and job.run.checkpoints() == [320, 360, 400]


# --- many days at once -----------------------------------------------------------------

FIRST_SEED = {day: day * 1_000_000 for day in range(10)}


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.fault(
    "orchestration",
    "ten days are generated at the same time, and one of them twice",
    "every day has its own table, whole and with its own seeds; of one day's two jobs one may be refused by name",
)
def test_ten_days_at_once_are_ten_whole_tables(spark, lake, digits):
    config = make_config(lake, run="of-ten-days")
    driver.train(spark, config)
    registry.promote(lake, config.run, "of-ten-days")

    def day(number: int) -> dict:
        options = {
            "model": "of-ten-days",
            "images": 20,
            "first_seed": FIRST_SEED[number],
            "table": lakes.join(lakes.to_url(lake), "generated", "days", str(number)),
            "partitions": 2,
        }
        of_day = make_config(lake, run=config.run, generate=options)
        return generate.generate(spark, of_day)

    with concurrent.futures.ThreadPoolExecutor(11) as threads:
        futures = [threads.submit(day, number) for number in (*range(10), 0)]
        errors = [error for future in futures if (error := future.exception())]
    assert len(errors) <= 1 and all("days/0" in str(error) for error in errors), errors
    for number, first in FIRST_SEED.items():
        rows = spark.read.parquet(lakes.join(lakes.to_url(lake), "generated", "days", str(number))).collect()
        assert sorted(row["seed"] for row in rows) == list(range(first, first + 20))
        assert all(row["image"] for row in rows)
    hidden = [path for path in Path(lake, "generated", "days").glob(".*")]
    assert not [path for path in hidden if path.is_dir() and "whole" not in path.name], hidden
