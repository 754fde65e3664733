"""What may happen to a training: ranks, executors and drivers that die or stand still, damaged checkpoints, runs that
are removed or taken over, clocks that are set back.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest
import tensorflow as tf
from conftest import ROOT, make_config
from horovod.runner.common.util import network as service_network
from horovod.runner.http import http_server
from PIL import Image
from processes import wait_for
from test_cluster import cluster  # noqa: F401 (a fixture)

from gan_spark import lake as lakes
from gan_spark.config import TaskFailure, Train, UserError
from gan_spark.data import ingest, reader
from gan_spark.process import Team
from gan_spark.runs import loading
from gan_spark.runs.store import Run
from gan_spark.training import driver, log, ranks

from .jobs import Training, small_training

# Ranks cannot import this module, so what they run of it travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

# --- checkpoints -----------------------------------------------------------------------


def folder(run: Run, *parts: str) -> Path:
    return Path(lakes.filesystem(run.path(*parts))[1])


def checkpoint(run: Run, step: int) -> Path:
    return folder(run, "checkpoints", f"step-{step:08d}")


@pytest.fixture
def small(tmp_path) -> Run:
    """A run with real checkpoints, of a few bytes, at steps 5 and 10."""
    run = Run(lakes.to_url(str(tmp_path / "runs" / "small")))
    for step in (5, 10):
        model = tf.train.Checkpoint(step=tf.Variable(step))
        run.save_checkpoint(step, model.write, 3)
    return run


def newest(run: Run) -> int:
    variable = tf.Variable(0)
    with run.checkpoint() as (step, prefix):
        tf.train.Checkpoint(step=variable).read(prefix).assert_consumed()
    assert int(variable) == step
    return step


@pytest.mark.fault(
    "training",
    "the newest checkpoint is cut at any byte, or any one of its bytes is another",
    "passed over with a warning that names it; the one before is read",
)
def test_a_checkpoint_that_is_damaged_at_any_byte_is_passed_over(small, caplog):
    """Every byte of every file, the manifest's among them."""
    cases = 0
    for path in sorted(checkpoint(small, 10).iterdir()):
        data = path.read_bytes()
        for offset in range(len(data)):
            changed = data[:offset] + bytes([data[offset] ^ 0x11]) + data[offset + 1 :]
            for damaged in (data[:offset], *([changed] if offset % 3 == 0 else [])):
                if path.name == "manifest.json" and _says_the_same(damaged, data):
                    continue
                path.write_bytes(damaged)
                caplog.clear()
                assert newest(small) == 5, (path.name, offset, damaged)
                assert [message for message in caplog.messages if "at step 10 is damaged" in message]
                cases += 1
        path.write_bytes(data)
    assert newest(small) == 10 and cases > 500


def _says_the_same(damaged: bytes, data: bytes) -> bool:
    """Whether a manifest names the same files after a change, as of its white space or of a key that nobody reads."""
    with contextlib.suppress(ValueError):
        return _files(damaged) == _files(data)
    return False


def _files(data: bytes):
    table = json.loads(data)
    return table.get("files") if isinstance(table, dict) else None


@pytest.mark.slow
@pytest.mark.fault(
    "training",
    "all checkpoints that a run keeps are damaged, and later one is put back",
    "refused with what is wrong with each, and nothing is removed; then training goes on from the one that is whole",
)
def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(spark, lake, digits, tmp_path):
    config = make_config(lake, run="three-damaged", train={"steps": 8})
    driver.train(spark, config)
    run = Run.of(config)
    shutil.copytree(folder(run), tmp_path / "copy")
    assert run.checkpoints() == [4, 6, 8]
    for step in run.checkpoints():
        path = checkpoint(run, step) / "checkpoint.index"
        path.write_bytes(path.read_bytes()[:-1])
    longer = make_config(lake, run="three-damaged", train={"steps": 10})
    with pytest.raises(UserError, match=r"none of its checkpoints is whole \(step 4: checkpoint.index: \d+ bytes, exp"):
        driver.train(spark, longer)
    assert run.checkpoints() == [4, 6, 8]
    shutil.copytree(tmp_path / "copy/checkpoints/step-00000006", checkpoint(run, 6), dirs_exist_ok=True)
    assert driver.train(spark, longer)["steps"] == 10
    assert [line["step"] for line in run.metrics() if line.get("event") == "start"] == [0, 6]


@pytest.mark.slow
@pytest.mark.fault(
    "training",
    "a checkpoint is of a model of another shape",
    "refused at once, with the variable's shapes, and left as it is; no attempt is made again",
)
def test_a_checkpoint_of_another_shape_is_refused_at_once(spark, lake, digits):
    config = make_config(lake, run="other-shape", train={"steps": 2})
    driver.train(spark, config)
    run = Run.of(config)
    record = run.record()
    record["config"]["model"]["width"] = 8
    run.write_record(record)
    wider = make_config(lake, run="other-shape", train={"steps": 4, "restarts": 2})
    wider = dataclasses.replace(wider, model=dataclasses.replace(wider.model, width=8))
    with pytest.raises(UserError, match=r"other-shape: checkpoint at step 2 does not fit the model .*\(.*shape"):
        driver.train(spark, wider)
    (error,) = [line for line in run.metrics() if line.get("event") == "error"]
    assert "does not fit the model" in error["wrong"] and error["attempt"] == 0  # by which the driver makes no other
    assert run.checkpoints() == [2]
    with pytest.raises(UserError, match="does not fit the model"):  # of what a driver carries to tasks, too
        loading._kept(run.url, 2, record, "", lambda model: loading.restore(model, run, 2))


# --- runs that are removed or taken over -----------------------------------------------


@pytest.fixture
def diary(tmp_path):
    """A diary of a run that has begun, with the run."""
    run = Run(lakes.to_url(str(tmp_path / "runs" / "r")))
    job = {"config": {"train": {"batch_size": 2, "workers": 1}}, "attempt": 0, "owner": run.start({"config": {}})}
    diary = log.Diary(run, job, Team(), 0)
    with contextlib.suppress(TaskFailure), diary:
        diary.begin()
        yield diary


WRITES = {
    "log": lambda diary: diary.log(1, {"loss": 1.0}),
    "measured": lambda diary: diary.measured(1, {"loss": 1.0}),
    "warn": lambda diary: diary.warn(1, "odd"),
    "sample": lambda diary: diary.sample(1, tf.zeros([4, 8, 8, 1], tf.uint8).numpy()),
    "save": lambda diary: diary.save(1, tf.train.Checkpoint(step=tf.Variable(1)).write, 3),
    "begin": lambda diary: diary.begin(),
    "end": lambda diary: diary.__exit__(None, None, None),
    "end by an error": lambda diary: diary.__exit__(ValueError, ValueError("odd"), None) or diary._check_owner(),
}


@pytest.mark.parametrize("name", WRITES)
def test_nothing_is_written_to_a_run_that_was_removed(diary, name):
    lakes.remove(diary.run.url)
    with pytest.raises(TaskFailure, match="was taken over by another job, or removed; this one stops"):
        WRITES[name](diary)
    assert not lakes.exists(diary.run.url)


@pytest.mark.slow
@pytest.mark.fault(
    "training", "a run is removed while it is trained", "the job ends and says so, and nothing of the run comes back"
)
def test_a_run_that_is_removed_meanwhile_stays_removed(spark, lake, digits):
    config = make_config(lake, run="removed", train={"steps": 100_000, "checkpoint_every": 50, "log_every": 10})
    run = Run.of(config)

    def remove():
        while not run.checkpoints():
            time.sleep(0.05)
        while folder(run).exists():
            shutil.rmtree(folder(run), ignore_errors=True)

    remover = threading.Thread(target=remove)
    remover.start()
    with pytest.raises(TaskFailure, match="removed was taken over by another job, or removed; this one stops"):
        driver.train(spark, config)
    remover.join()
    assert not folder(run).exists()


def test_what_stands_where_a_removed_run_stood_is_nobodys_to_remove(tmp_path):
    run = Run(lakes.to_url(str(tmp_path / "runs" / "r")))
    token = run.start({"config": {}})
    shutil.rmtree(folder(run))
    folder(run).mkdir()
    (folder(run) / "thesis.txt").write_text("mine")
    driver._remove_if_never_begun(run, token)
    assert (folder(run) / "thesis.txt").exists()


def test_checkpoints_without_a_record_are_nobodys(small):
    with pytest.raises(UserError, match=r"small has checkpoints \(5, 10\) and no config.json"):
        small.check({"config": {}, "dataset": {}}, {})


# --- clocks ----------------------------------------------------------------------------


def test_a_clock_that_is_set_back_makes_no_speed_or_duration_another(diary, monkeypatch):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    diary.log(1, {"loss": 1.0})
    diary.log(2, {"loss": 1.0})
    assert diary.run.metrics()[-1]["images_per_second"] > 0 and 0 <= diary.rate()["seconds"] < 60


# A library that, loaded before all others, sets the clock of a process back an hour once a file is there. What counts
# seconds since the machine was started goes on.
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t back(void) { return access(getenv("SET_BACK"), F_OK) == 0 ? 3600 : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec -= back();
    return answer;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    "training",
    "the clock of all machines is set back an hour in mid-training",
    "training goes on and ends whole; speeds and durations are those of a clock that was not touched",
)
def test_a_clock_that_is_set_back_an_hour_stops_nothing(lake, digits, tmp_path):
    if not shutil.which("cc"):
        pytest.skip("no C compiler here")
    (tmp_path / "clock.c").write_text(CLOCK)
    build = ["cc", "-shared", "-fPIC", "-o", str(tmp_path / "clock.so"), str(tmp_path / "clock.c"), "-ldl"]
    subprocess.run(build, check=True)
    flag = tmp_path / "flag"
    environment = {**os.environ, "LD_PRELOAD": str(tmp_path / "clock.so"), "SET_BACK": str(flag)}
    with Training(small_training(lake, "set-back"), tmp_path, env=environment) as job:
        job.wait_for_checkpoint()
        before = time.time()
        flag.touch()
        answer = job.answer()
    lines = [line for line in job.run.metrics() if "scalars" in line]
    times = [datetime.datetime.fromisoformat(line["time"]).timestamp() for line in lines]
    assert min(times) < before - 3000 < max(times)  # it was set back, for the ranks too
    assert answer["steps"] == 400 and answer["restarts"] == 0 and job.run.checkpoints() == [320, 360, 400]
    assert all(line["images_per_second"] > 0 for line in lines[1:])
    assert answer["images_per_second"] > 0 and 0 < answer["seconds"] < 1800 and 0 < answer["start_seconds"] < 1800
    assert all(0 <= seconds < 1800 for seconds in answer["took"].values())


# --- ranks, executors and drivers that die ---------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.fault(
    "training",
    "rank 0 is killed (SIGKILL)",
    "all ranks start again from the newest checkpoint, and the run ends whole",
)
@pytest.mark.fault(
    "training",
    "rank 1 is killed (SIGKILL)",
    "all ranks start again from the newest checkpoint, and the run ends whole",
)
@pytest.mark.fault(
    "training",
    "both ranks are killed at once (SIGKILL)",
    "they start again from the newest checkpoint, and the run ends whole",
)
def test_ranks_that_are_killed_start_again(lake, digits, tmp_path):
    config = small_training(lake, "killed", steps=600, sample_every=600, restarts=3)
    with Training(config, tmp_path) as job:
        reached = []
        for numbers in ((0,), (1,), (0, 1)):
            reached.append(job.wait_for_checkpoint(beyond=reached[-1] if reached else 0))
            for process in [job.rank(number) for number in numbers]:
                process.kill()
            job.wait_for(lambda: len(job.starts()) == len(reached) + 1, "another start")
        answer = job.answer()
    assert answer["steps"] == 600 and answer["restarts"] == 3
    first, *others = job.starts()
    assert first == 0 and len(others) == 3 and all(a >= b for a, b in zip(others, reached, strict=True))
    check_whole(job.run, [520, 560, 600])


def check_whole(run: Run, steps: list[int]) -> None:
    """The run holds these checkpoints, each of them whole, and a line of metrics for every 20 steps."""
    assert run.checkpoints() == steps
    for step in steps:
        run.read_checkpoint(step)
    assert {line["step"] for line in run.metrics() if "scalars" in line} >= set(range(20, steps[-1] + 1, 20))


def check_started_again(job: Training, answer: dict, reached: int) -> None:
    """The job of 400 steps was started again once, from a checkpoint, and its run is whole."""
    assert answer["steps"] == 400 and answer["restarts"] == 1, job.said()[-2000:]
    assert job.starts()[1] >= reached
    check_whole(job.run, [320, 360, 400])


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    "training",
    "a rank stands still, for a minute or for ever (SIGSTOP)",
    "after 30 s it counts as dead: all start again from the newest checkpoint, and the run ends whole",
)
def test_a_rank_that_stands_still_is_given_up(lake, digits, tmp_path):
    with Training(small_training(lake, "still"), tmp_path) as job:
        reached = job.wait_for_checkpoint()
        stopped = job.rank(1)
        stopped.suspend()
        answer = job.answer()
        assert not stopped.is_running()
    check_started_again(job, answer, reached)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    "training",
    "a rank gets no more memory (RLIMIT_AS)",
    "it ends, all start again from the newest checkpoint, and the run ends whole",
)
def test_a_rank_without_memory_is_started_again(lake, digits, tmp_path):
    with Training(small_training(lake, "no-memory"), tmp_path) as job:
        reached = job.wait_for_checkpoint()
        rank = job.rank(0)
        rank.rlimit(psutil.RLIMIT_AS, (rank.memory_info().vms // 2,) * 2)
        answer = job.answer()
    check_started_again(job, answer, reached)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    "training",
    "a second job trains a run that another one trains",
    "the first ends, says so, and writes nothing more; the second goes on from the newest checkpoint",
)
def test_of_two_jobs_on_one_run_the_second_has_it(lake, digits, tmp_path):
    options = {"steps": 100_000, "log_every": 100, "checkpoint_every": 100, "sample_every": 100_000}
    config = small_training(lake, "two-jobs", **options)
    (tmp_path / "second").mkdir()
    with Training(config, tmp_path) as first:
        reached = first.wait_for_checkpoint()
        with Training(config, tmp_path / "second") as second:
            line = first.ends(code=1)
            assert "was taken over by another job, or removed, while this one trained it" in line
            start = second.wait_for(lambda: second.starts()[1:], "start of the second")[0]
            second.wait_for_checkpoint(beyond=start)
            second.process.terminate()
            last = second.ends(code=128 + signal.SIGTERM)
    assert start >= reached and f"is at step {second.run.checkpoints()[-1]};" in last
    lines = second.run.metrics()
    after = lines[[line.get("event") for line in lines].index("start", 1) :]
    steps = [line["step"] for line in after if "scalars" in line]
    assert steps == sorted(set(steps)) and steps[0] == start + 100  # of the first, nothing any more
    assert [line for line in after if line.get("event") == "error"] == []


@pytest.mark.fault(
    "training",
    "the ports are taken at which Horovod would have ranks meet",
    "others are found, and the ranks meet there",
)
@pytest.mark.long
def test_ranks_meet_where_ports_are_taken(spark, monkeypatch):
    from horovod.runner.util import network

    choices, taken = random.Random(29), []
    for _ in range(20):
        with contextlib.suppress(OSError):  # It is another's already.
            taken.append(socket.create_server(("", 1024 + choices.randrange(0, 65536 - 1024))))
    monkeypatch.setattr(network, "random", random.Random(29))
    find_port, ports = network.find_port, []
    for module in (http_server, service_network):
        monkeypatch.setattr(module, "find_port", lambda factory: ports.append(find_port(factory)) or ports[-1])
    try:
        assert ranks.run(spark, _sum_of_ranks, None, Train(workers=2)) == [1, 1]
        assert ports and not {port for _, port in ports} & {listener.getsockname()[1] for listener in taken}
    finally:
        for listener in taken:
            listener.close()


def _sum_of_ranks(team: Team, _) -> int:
    return round(2 * float(team.reduce([tf.constant(float(team.rank))])[0]))


# --- a cluster -------------------------------------------------------------------------


@pytest.fixture
def spark_submit(request) -> tuple[list[str], dict]:
    """(spark-submit on the cluster of the tests, its environment)."""
    url, environment = request.getfixturevalue("cluster")
    command = [os.path.join(environment["SPARK_HOME"], "bin/spark-submit"), "--master", url]
    command += ["--properties-file", str(ROOT / "conf/spark-defaults.conf")]
    for setting in ("spark.executor.memory=2g", "spark.driver.host=127.0.0.1"):
        command += ["--conf", setting]
    return command, environment


def executor_of(rank: psutil.Process) -> psutil.Process:
    """The JVM that a rank's task is of."""
    (executor,) = [each for each in rank.parents() if "CoarseGrainedExecutorBackend" in " ".join(each.cmdline())]
    return executor


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.fault(
    "training",
    "the JVM of an executor is killed (SIGKILL)",
    "its rank ends with it; all start again on the executors that come in its place, and the run ends whole",
)
def test_an_executor_that_is_killed_takes_its_rank_along_and_training_goes_on(spark_submit, lake, digits, tmp_path):
    command, environment = spark_submit
    config = small_training(lake, "executor-killed")
    with Training(config, tmp_path, [*command, str(ROOT / "jobs/train.py")], env=environment) as job:
        reached = job.wait_for_checkpoint()
        rank = job.rank(1)
        executor_of(rank).kill()
        psutil.wait_procs([rank], timeout=120)
        assert not rank.is_running()
        answer = job.answer()
    assert answer["steps"] == 400 and answer["restarts"] == 1 and job.starts()[1] >= reached
    check_whole(job.run, [320, 360, 400])


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.fault(
    "training",
    "SIGTERM of spark-submit (preemption): Java gets it, Python does not",
    "the ranks save a checkpoint within its grace, before Spark ends them; the same command goes on from there",
)
def test_a_job_of_spark_submit_that_is_preempted_saves_a_checkpoint(spark_submit, lake, digits, tmp_path):
    command, environment = spark_submit
    config = small_training(lake, "preempted", steps=4000, checkpoint_every=4000, sample_every=4000)
    with Training(config, tmp_path, [*command, str(ROOT / "jobs/train.py")], env=environment) as job:
        job.wait_for(lambda: [line for line in job.run.metrics() if line.get("step", 0) >= 40], "progress")
        job.process.terminate()
        job.process.wait(120)
        assert job.process.returncode == 128 + signal.SIGTERM, job.said()[-3000:]
    (step,) = job.run.checkpoints()
    assert 40 <= step < 4000
    job.run.read_checkpoint(step)


LOST = """
import os, pathlib, sys, time
from gan_spark import job
from gan_spark.config import Train
from gan_spark.training import ranks

folder = sys.argv[1]


def function(team, folder):
    pathlib.Path(folder, f"rank-{team.rank}").write_text(str(os.getpid()))
    while team.rank == 0 and not pathlib.Path(folder, "over").exists():
        time.sleep(0.1)
    return team.rank


print("ranks:", ranks.run(job.session("lost"), function, folder, Train(workers=2)))
"""


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.fault(
    "training",
    "an executor is lost after its rank has ended well, while another rank still works",
    "the results of all ranks are there, and nothing starts again",
)
def test_an_executor_that_is_lost_after_its_rank_ended_is_not_missed(spark_submit, tmp_path):
    command, environment = spark_submit
    (tmp_path / "lost.py").write_text(LOST)
    with open(tmp_path / "out", "w") as out:
        job = subprocess.Popen([*command, str(tmp_path / "lost.py"), str(tmp_path)], env=environment, stdout=out)
    try:
        pids = [tmp_path / f"rank-{number}" for number in range(2)]
        wait_for(lambda: job.poll() is not None or all(path.exists() and path.read_text() for path in pids), "ranks")
        first, second = (psutil.Process(int(path.read_text())) for path in pids)
        executor = executor_of(second)
        psutil.wait_procs([second], timeout=120)
        time.sleep(5)  # until its task has ended, which takes Horovod three seconds
        executor.kill()
        assert executor_of(first).is_running()
        time.sleep(5)
        (tmp_path / "over").touch()
        assert job.wait(600) == 0
        assert "ranks: [0, 1]" in (tmp_path / "out").read_text()
    finally:
        job.kill()


# --- what reaches the weights ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.fault(
    "training",
    "a folder of images has files of numbers that are not finite (TIFF of NaN, of infinity)",
    "they are stored as finite pixels, or rejected by name; what is trained on them is finite",
)
def test_images_of_nan_reach_no_weights(spark, tmp_path):
    images, rng = tmp_path / "images", np.random.default_rng(0)
    images.mkdir()
    values = {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf, "huge": 3e38}
    for number in range(32):
        Image.fromarray(rng.integers(0, 255, (16, 16), np.uint8)).save(images / f"{number:02d}.png")
    for name, value in values.items():
        part = rng.random((16, 16), np.float32)
        part[4:8] = value
        Image.fromarray(part).save(images / f"part-{name}.tiff")
        Image.fromarray(np.full((16, 16), value, np.float32)).save(images / f"all-{name}.tiff")
    source = {"source": "folder", "path": str(images), "validation": 0.0, "test": 0.0}
    config = make_config(str(tmp_path / "lake"), run="planted", ingest=source, train={"steps": 6})
    answer = ingest.ingest(spark, config)
    assert answer["rows"] + answer["rejected"] == 32 + 2 * len(values) and answer["rows"] >= 32 + len(values)
    for batch in reader.once(answer["dataset"], "train", 16):
        assert np.isfinite(batch["image"]).all() and np.abs(batch["image"]).max() <= 1
    trained = driver.train(spark, config)
    assert np.isfinite(trained["d_loss"]) and np.isfinite(trained["g_loss"])


@pytest.mark.slow
@pytest.mark.fault(
    "training",
    "weights or losses become NaN (a learning rate without measure)",
    "training stops with the step and the reason; no checkpoint holds them, and those from before stay",
)
def test_a_training_that_explodes_leaves_no_checkpoint_of_it(spark, lake, digits):
    config = make_config(lake, run="explodes-really", train={"steps": 100})
    driver.train(spark, make_config(lake, run="explodes-really", train={"steps": 2}))
    run = Run.of(config)
    model = loading.build(config.model)
    loading.restore(model, run)
    for variable in model.generator.trainable_variables:
        variable.assign(tf.fill(variable.shape, 3e38))
    run.save_checkpoint(2, tf.train.Checkpoint(model=model).write, 3)
    with pytest.raises(driver.TrainingStopped, match="step 4: .*(nan|inf|not finite).*last checkpoint is from before"):
        driver.train(spark, config)
    assert run.checkpoints() == [2]
