"""The jobs through spark-submit on a standalone cluster: a master and two workers of one core each."""

import json
import os
import re
import subprocess
import time

import pytest
from conftest import ROOT, SHORT_LIVED, make_config, write_config
from processes import submit_environment
from test_lakes import WAY

from gan_spark import lake as lakes
from gan_spark.runs.store import Run

pytestmark = pytest.mark.slow


def start(command, environment, pattern, log):
    """A Spark daemon, once its log says `pattern`; returns (process, the match)."""
    with open(log, "w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
    deadline = time.time() + 60
    while time.time() < deadline:
        if match := re.search(pattern, log.read_text()):
            return process, match
        time.sleep(0.2)
    process.kill()
    raise AssertionError(f"no {pattern!r} from {command}: {log.read_text()}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """(URL of the master, environment for spark-submit)."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = submit_environment(SPARK_LOCAL_DIRS=str(folder), SPARK_WORKER_DIR=str(folder / "work"))
    # The daemons say that they are ready at level info, which conf/log4j2.properties leaves out.
    daemons = {**environment, "SPARK_CONF_DIR": str(folder)}
    launcher, processes = os.path.join(environment["SPARK_HOME"], "bin", "spark-class"), []
    try:
        master, found = start(
            [
                launcher,
                "org.apache.spark.deploy.master.Master",
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--webui-port",
                "0",
            ],
            daemons,
            r"Starting Spark master at (spark://\S+)",
            folder / "master.log",
        )
        processes.append(master)
        for index in range(2):
            worker, _ = start(
                [
                    launcher,
                    "org.apache.spark.deploy.worker.Worker",
                    found[1],
                    "--cores",
                    "1",
                    "--memory",
                    "3g",
                    "--host",
                    "127.0.0.1",
                    "--webui-port",
                    "0",
                ],
                daemons,
                "Successfully registered with master",
                folder / f"worker{index}.log",
            )
            processes.append(worker)
        yield found[1], environment
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)


def submit(cluster, folder, script, *arguments):
    url, environment = cluster
    command = [
        os.path.join(environment["SPARK_HOME"], "bin", "spark-submit"),
        "--master",
        url,
        "--properties-file",
        str(ROOT / "conf" / "spark-defaults.conf"),
        "--conf",
        "spark.executor.memory=2g",
        "--conf",
        "spark.driver.host=127.0.0.1",
        "--conf",
        f"spark.executor.extraJavaOptions={SHORT_LIVED}",
        str(script),
        *arguments,
    ]
    # The workers run in folders of their own: a relative lake is one of the driver's.
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
    # spark-submit merges the driver's stderr into its own stdout.
    return answer.returncode, answer.stdout.strip().splitlines()


def way_config(folder):
    train = {
        "steps": 20,
        "workers": 2,
        "launcher": "spark",
        "log_every": 10,
        "checkpoint_every": 20,
        "sample_every": 20,
    }
    sections = {"train": train, "generate": {"images": 30}, "evaluate": {"classifier_steps": 20}}
    return write_config(folder, make_config("lake", run="cluster", **sections))


def test_a_rank_on_each_of_two_workers(cluster, tmp_path):
    (tmp_path / "way.py").write_text(WAY)
    code, out = submit(cluster, tmp_path, tmp_path / "way.py", way_config(tmp_path))
    assert code == 0, out
    result = json.loads(out[-1])
    assert result["rows"] == 1797 and result["steps"] == 20 and result["workers"] == 2 and result["images"] == 30
    assert Run(result["run"]).checkpoints() == [20]


@pytest.mark.long
@pytest.mark.fault(
    "training",
    "a task slot never comes free",
    "refused after `train.start_timeout` with the number of ranks; no run is left",
)
def test_the_whole_way_and_slots_that_there_are_not(cluster, tmp_path):
    config = way_config(tmp_path)
    code, out = submit(cluster, tmp_path, ROOT / "jobs/pipeline.py", "--config", config)
    assert code == 0, out
    result = json.loads(out[-1])
    assert result["rows"] == 1797
    assert result["steps"] == 20 and result["workers"] == 2
    assert result["generated_images"] == 30 and result["fid"] > result["fid_floor"]
    assert Run(result["run"]).checkpoints() == [20]
    assert lakes.exists(result["grid"])

    options = [f"--set={option}" for option in ("run=wide", "train.workers=4", "train.start_timeout=8")]
    code, out = submit(cluster, tmp_path, ROOT / "jobs/train.py", "--config", config, *options)
    assert code == 2
    assert "error: train.workers = 4: not that many free task slots in train.start_timeout = 8 s" in out[-1]
    assert not (tmp_path / "lake" / "runs" / "wide").exists()


@pytest.mark.long
def test_the_doctor_sees_both_executors(cluster, tmp_path):
    config = write_config(tmp_path, make_config("lake", train={"workers": 2, "launcher": "spark"}))
    code, out = submit(cluster, tmp_path, ROOT / "jobs/doctor.py", "--config", config)
    assert code == 0 and json.loads(out[-1])["tasks"] == 2, out
    assert any(line.startswith("ok    ports") for line in out) and any("(2 tasks)" in line for line in out)
