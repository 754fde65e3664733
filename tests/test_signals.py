"""Ctrl-C and SIGTERM of jobs as real processes: their exit codes, one line, and nothing left behind."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import tensorflow as tf
from conftest import ROOT, make_config, write_config

from gan_spark import failures, job, process
from gan_spark import lake as lakes
from gan_spark.config import Train
from gan_spark.runs.store import Run
from gan_spark.training import driver, ending, ranks

SIGNALS = [
    (signal.SIGINT, 130, "interrupted"),
    (signal.SIGTERM, 143, "stopped by SIGTERM"),
    (signal.SIGHUP, 129, "stopped by SIGHUP"),
]


@pytest.fixture(scope="module")
def large(tmp_path_factory, spark, lake, digits) -> dict[str, list[str]]:
    """Arguments of jobs that take minutes, by name."""
    made = make_config(
        lake,
        run="signals",
        ingest={"source": "shapes", "height": 64, "width": 64, "channels": 3, "count": 8_000, "encoding": "png"},
        generate={"images": 3_000_000, "partitions": 8},
    )
    driver.train(spark, make_config(lake, run="signals"))
    path = write_config(tmp_path_factory.mktemp("signals"), made)
    arguments = {"ingest": ["--set", "dataset=shapes", "--set", "model.channels=3"], "generate": []}
    return {name: ["--config", path, *more] for name, more in arguments.items()}


def staged(lake: str, name: str) -> list[Path]:
    folder = Path(lake, {"ingest": "datasets", "generate": "generated"}[name])
    return [path for path in folder.glob(".*") if path.is_dir()]


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, number, code, words",
    [
        ("ingest", *SIGNALS[0]),
        pytest.param("ingest", *SIGNALS[1], marks=pytest.mark.long),
        pytest.param("generate", *SIGNALS[0], marks=pytest.mark.long),
        pytest.param("generate", *SIGNALS[1], marks=pytest.mark.long),
    ],
)
@pytest.mark.fault(
    "orchestration",
    "Ctrl-C or SIGTERM of an ingest or a generate, sent twice",
    "exit code 130 or 143, one line, no process and nothing half-written left behind",
)
def test_a_signal_ends_a_job_and_leaves_nothing(large, lake, name, number, code, words):
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *large[name]]
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    # Until tasks write: a file of theirs is there.
    while not any(file.is_file() for path in staged(lake, name) for file in path.rglob("*part-*")):
        assert begun.poll() is None and time.time() < deadline, begun.communicate()[1]
        time.sleep(0.1)
    others = descendants(begun.pid)
    assert any("java" in process.name() for process in others)
    begun.send_signal(number)
    with contextlib.suppress(ProcessLookupError):
        begun.send_signal(number)  # Some send it twice.
    output, errors = begun.communicate(timeout=60)
    assert (begun.returncode, output) == (code, ""), errors
    assert errors.splitlines()[-1] == f"error: {words}" and "Traceback" not in errors, errors
    assert psutil.wait_procs(others, timeout=20)[1] == []
    assert staged(lake, name) == []


@pytest.mark.long
@pytest.mark.fault("training", "Ctrl-C before the first step", "exit code 130, and the name of the run is free again")
def test_a_training_that_is_interrupted_before_its_first_step_frees_its_name(lake, digits, tmp_path):
    train = {"steps": 1500, "workers": 2, "launcher": "spark"}
    path = write_config(tmp_path, make_config(lake, run="too-early", train=train))
    begun = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs/train.py"), "--config", path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run, deadline = Path(lake, "runs/too-early"), time.time() + 120
    while not (run / "owner.json").exists():
        assert begun.poll() is None and time.time() < deadline, begun.communicate()[1]
        time.sleep(0.05)
    begun.send_signal(signal.SIGINT)
    output, errors = begun.communicate(timeout=60)
    assert (begun.returncode, output) == (130, ""), errors
    assert errors.splitlines()[-1] == "error: interrupted" and not run.exists()


# --- whose the signals are -------------------------------------------------------------


def handlers() -> list:
    return [signal.getsignal(number) for number, *_ in SIGNALS]


def test_a_borrowed_session_and_another_thread_keep_their_signals(spark):
    before, inside = handlers(), []

    def look():
        with job._Signals() as signals:
            signals.take()
            inside.append(handlers())
            assert signals.number(KeyboardInterrupt()) is None

    look()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert inside == [before, before]


@pytest.fixture
def not_under_nohup():
    """SIGHUP is not ignored, whatever these tests were started by."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("not_under_nohup")
@pytest.mark.parametrize("number, code, words", SIGNALS)
def test_a_process_of_the_jobs_own_takes_them_and_gives_them_back(monkeypatch, capsys, number, code, words):
    monkeypatch.setattr(job, "running_session", lambda: None)
    monkeypatch.setattr(job, "_cancel", lambda: None)
    before = handlers()
    with job._Signals() as signals:
        with pytest.raises(SystemExit) as stop:
            signal.raise_signal(number)
        signal.raise_signal(number)  # The job unwinds; the second one ends nothing.
        assert signals.number(ValueError("of what unwinds")) == number
        stop.value.add_note("the run r is at step 4; the same command goes on")
        assert failures.stopped(stop.value, number) == code
    assert handlers() == before
    assert capsys.readouterr().err == f"error: {words}; the run r is at step 4; the same command goes on\n"


def test_no_signal_is_no_signal(monkeypatch):
    monkeypatch.setattr(job, "running_session", lambda: None)
    with job._Signals() as signals:
        assert signals.number(ValueError()) is None and signals.number(SystemExit(2)) is None
        assert signals.number(KeyboardInterrupt()) == signal.SIGINT  # raised by Horovod's handler
        assert signals.number(SystemExit(143)) == signal.SIGTERM
        assert signals.number(SystemExit(129)) == signal.SIGHUP


def test_a_process_that_nohup_started_goes_on(monkeypatch):
    monkeypatch.setattr(job, "running_session", lambda: None)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with job._Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.received is None and signal.getsignal(signal.SIGTERM) == signals._end
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# --- ranks are asked first -------------------------------------------------------------


class Rank:
    """A rank in this process, which a signal reaches while it works, and which may take `patience` seconds to end."""

    def __init__(self, number: int, patience: float):
        self.number, self.patience = number, patience
        self.asked, self.has_ended = threading.Event(), False

    def __call__(self, team, argument):
        signal.raise_signal(self.number)
        self.asked.wait(60)
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            time.sleep(0.01)
        self.has_ended = True


@pytest.mark.usefixtures("not_under_nohup")
@pytest.mark.parametrize("number, code, words", SIGNALS)
def test_a_rank_that_is_asked_ends_by_itself(spark, number, code, words):
    rank, before = Rank(number, 0.2), handlers()
    with pytest.raises((SystemExit, KeyboardInterrupt)) as stop:
        ranks.run(spark, rank, None, Train(launcher="local"), lambda: rank.asked.set() or True)
    assert rank.has_ended and handlers() == before
    assert getattr(stop.value, "code", 130) == code


def test_a_rank_that_does_not_end_in_time_is_ended(spark, monkeypatch):
    monkeypatch.setattr(ranks, "GRACE", 0.2)
    rank = Rank(signal.SIGTERM, 600)
    with pytest.raises(SystemExit, match="143"):
        ranks.run(spark, rank, None, Train(launcher="local"), lambda: rank.asked.set() or True)
    assert not rank.has_ended


def test_a_rank_that_has_nothing_to_save_is_ended_at_once(spark):
    rank = Rank(signal.SIGTERM, 600)
    with pytest.raises(SystemExit, match="143"):
        ranks.run(spark, rank, None, Train(launcher="local"))
    assert not rank.has_ended


def test_ranks_agree_about_once_a_second_and_on_the_same_step(tmp_path, monkeypatch):
    run, now, exchanges = Run(lakes.to_url(str(tmp_path / "r"))), [0.0], []

    def reduce(values):
        exchanges.append(float(values[0][0]))
        return [tf.constant([exchanges[-1] / 2, 0.04])]  # the other rank is not told, and as fast

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    ranks_end = ending.Ending(run, "token", process.Team(0, 2, reduce=reduce), 100)
    for step in range(101, 201):
        now[0] += 0.04
        assert not ranks_end.is_asked(step)
    assert len(exchanges) == 4  # after the first step, and then every 25
    ranks_end._is_told.set()
    assert next(step for step in range(201, 301) if ranks_end.is_asked(step)) == 201 and exchanges[-1] == 1.0


def test_who_is_asked_to_end_is_the_job_that_has_the_run(tmp_path):
    run = Run(lakes.to_url(str(tmp_path / "r")))
    assert not run.is_asked_to_end("one")
    run.ask_to_end("one")
    assert run.is_asked_to_end("one") and not run.is_asked_to_end("two")
