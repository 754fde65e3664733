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
from conftest import ROOT, make_config, write_config

from gan_spark import failures, job
from gan_spark.training import driver

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


@pytest.mark.slow
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
