"""The Scala application by spark-submit: its predictions are Python's, row for row."""

import json
import os
import subprocess

import numpy as np
import pyspark
import pytest
from conftest import ROOT
from test_lenet import lenet_config

from gan_spark import job
from gan_spark.ml import bigdl
from gan_spark.runs.store import Run

pytestmark = pytest.mark.slow

JAR = ROOT / "target" / "scala-2.12" / "gan-spark_2.12-0.1.0.jar"


def submit(*arguments: str) -> subprocess.CompletedProcess:
    if not JAR.exists():
        pytest.skip(f"no {JAR.name}: scala/sbt package makes it")
    java, spark = job.java_home(), os.path.dirname(pyspark.__file__)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYSPARK_")} | (
        {"JAVA_HOME": java} if java else {}
    )
    environment |= {"SPARK_HOME": spark, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_CONF_DIR": str(ROOT / "conf")}
    command = [
        os.path.join(spark, "bin", "spark-submit"),
        "--master",
        "local[2]",
        "--class",
        "ganspark.Score",
        "--jars",
        ",".join(bigdl.jars()),
        str(JAR),
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_scala_predicts_what_python_predicts(spark, lake, digits, tmp_path):
    trained = bigdl.lenet(spark, lenet_config(lake, run="scala", epochs=1))
    prefix = f"{trained['run']}/checkpoints/step-00000001/checkpoint"
    assert Run(trained["run"]).checkpoints() == [1]
    done = submit(
        "--model", prefix, "--shape", "16,16,1", "--input", f"{digits}/split=test", "--output", str(tmp_path / "scored")
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().splitlines()[-1])["images"] == trained["images"]
    ours = {row["id"]: row for row in spark.read.parquet(trained["predictions"]).collect()}
    theirs = {row["id"]: row for row in spark.read.parquet(str(tmp_path / "scored")).collect()}
    assert ours.keys() == theirs.keys()
    for id, row in ours.items():
        assert theirs[id]["prediction"] == row["prediction"]
        np.testing.assert_allclose(theirs[id]["log_probabilities"], row["log_probabilities"], atol=1e-4)


def test_a_wrong_request_is_one_line_and_exit_code_2():
    done = submit("--model", "none", "--shape", "16,16,1", "--input", "nowhere", "--output", "out")
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        "error: nowhere: no such folder"
    ]
