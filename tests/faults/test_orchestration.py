"""What may happen to whatever starts the jobs: a terminal that is closed, Airflow's scheduler that dies, ten days at
once.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import re
import select
import signal
import sqlite3
import subprocess
import termios
import threading
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, make_config
from processes import ranks_under, submit_environment, wait_for
from test_airflow import airflow  # noqa: F401 (a fixture)

from gan_spark import lake as lakes
from gan_spark.data import ingest
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


# --- Airflow ---------------------------------------------------------------------------


@pytest.fixture
def daily(request, spark):
    """(Airflow's command line, its lake with a model that DAG `gan_spark_generate` draws from)."""
    call = request.getfixturevalue("airflow")
    if not lakes.exists(lakes.join(lakes.to_url(call.lake), "models")):
        config = dataclasses.replace(make_config(call.lake, run="for-days"), lake=call.lake)
        ingest.ingest(spark, config)
        driver.train(spark, config)
        registry.promote(call.lake, config.run, "gan_spark_retrain")
    return call


def seeds_of(spark, root: str, date: str) -> list[int]:
    table = lakes.join(lakes.to_url(root), "generated", "daily", date)
    return sorted(row["seed"] for row in spark.read.parquet(table).select("seed").collect())


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.fault(
    "orchestration",
    "Airflow backfills ten days of `gan_spark_generate`, and then one of them again",
    "every day has its own table, whole and with its own seeds; the day that is done again has the same images",
)
def test_a_backfill_of_ten_days(spark, daily):
    conf = ["--conf", json.dumps({"images": 5})]
    backfill = ("airflow", "dags", "backfill", "gan_spark_generate", *conf)
    done = daily(*backfill, "-s", "2026-03-01", "-e", "2026-03-10")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    for day in range(1, 11):
        first = (20512 + day) * 1_000_000  # days since 1970
        assert seeds_of(spark, daily.lake, f"2026-03-{day:02d}") == list(range(first, first + 5))
    table = lakes.join(lakes.to_url(daily.lake), "generated", "daily", "2026-03-05")
    images = lambda: {row["seed"]: bytes(row["image"]) for row in spark.read.parquet(table).collect()}
    before = images()
    again = daily(*backfill, "-s", "2026-03-05", "-e", "2026-03-05", "--reset-dagruns", "--yes")
    assert again.returncode == 0, (again.stdout + again.stderr)[-3000:]
    assert images() == before


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.fault(
    "orchestration",
    "Airflow's scheduler is killed (SIGKILL) while a job runs, and started again",
    "the job ends well, what was waiting is run, and each job once",
)
def test_a_scheduler_that_is_killed_and_started_again(spark, daily, tmp_path):
    dag, dates = "gan_spark_generate", ("2026-04-01", "2026-04-02")
    script = "import json, os, sys; print(json.dumps([sys.executable, dict(os.environ)]))"
    python, environment = json.loads(daily("python", "-c", script).stdout.splitlines()[-1])
    environment["AIRFLOW__SCHEDULER__USE_JOB_SCHEDULE"] = "False"  # what is triggered, and no day of the calendar
    database = sqlite3.connect(f"{environment['AIRFLOW_HOME']}/airflow.db", timeout=60)
    for command in (("reserialize",), ("unpause", dag), *(("trigger", dag, "-e", f"{date}T00:00:00+00:00", "--conf",
                    json.dumps({"images": 40})) for date in dates)):  # fmt: skip
        done = daily("airflow", "dags", *command)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]

    def states(table: str) -> list[str]:
        where = "execution_date >= '2026-04-01'" if table == "dag_run" else "run_id LIKE 'manual__2026-04-%'"
        rows = database.execute(f"SELECT state FROM {table} WHERE dag_id = '{dag}' AND {where}").fetchall()
        return sorted(str(state) for (state,) in rows)

    def scheduler() -> subprocess.Popen:
        command = [python, "-m", "airflow", "scheduler", "--skip-serve-logs"]
        with open(tmp_path / "scheduler", "a") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)

    def job() -> psutil.Process | None:
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if f"lake={daily.lake}" in command and any(part.endswith("jobs/generate.py") for part in command):
                return process
        return None

    first = scheduler()
    try:
        working = wait_for(job, "job")
        first.kill()
        first.wait()
        psutil.wait_procs([working], timeout=600)
        assert states("dag_run") != ["success", "success"]
        second = scheduler()
        try:
            wait_for(
                lambda: states("dag_run") == ["success", "success"], f"end of both: {states('task_instance')}", 1500
            )
        finally:
            second.terminate()
            second.wait(120)
    finally:
        first.kill()
    tries = database.execute(
        f"SELECT try_number FROM task_instance WHERE dag_id = '{dag}' AND run_id LIKE 'manual__2026-04-%'"
    ).fetchall()
    assert tries == [(1,), (1,)]
    for number, date in enumerate(dates):
        first_seed = (20544 + number) * 1_000_000
        assert seeds_of(spark, daily.lake, date) == list(range(first_seed, first_seed + 40))
