"""The DAGs in a real Airflow, in an environment of its own (SQLite, one process), with real spark-submit on real
digits.
"""

import contextlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
import time
import types

import psutil
import pytest
from conftest import ROOT

from gan_spark import job
from gan_spark import lake as lakes
from gan_spark.data import schema
from gan_spark.runs import registry
from gan_spark.runs.store import Run

SMALL = {
    "ingest.height": 16,
    "ingest.width": 16,
    "model.image_size": 16,
    "model.width": 4,
    "train.steps": 400,
    "train.batch_size": 16,
    "train.checkpoint_every": 200,
    "train.sample_every": 400,
    "train.log_every": 100,
    "generate.images": 60,
    "evaluate.classifier_steps": 20,
}
RUN = "retrain-20260301"


@pytest.fixture(scope="module")
def airflow(tmp_path_factory):
    """Calls airflow's command line; keyword arguments are environment variables."""
    if not shutil.which("uv"):
        pytest.skip("uv, which makes Airflow's environment, is not on the PATH")
    home = tmp_path_factory.mktemp("airflow")
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYSPARK", "SPARK", "VIRTUAL_ENV", "PYTHONPATH", "HOROVOD"))
    } | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "false",
        "AIRFLOW_CONN_SPARK_DEFAULT": json.dumps({"conn_type": "spark", "host": "local[2]"}),
        "AIRFLOW_VAR_GAN_SPARK_HOME": str(ROOT),
        "AIRFLOW_VAR_GAN_SPARK_LAKE": str(home / "lake"),
        "AIRFLOW_VAR_GAN_SPARK_SET": json.dumps(SMALL),
        "JAVA_HOME": (
            job.java_home()
            or os.environ.get("JAVA_HOME")
            or os.path.dirname(os.path.dirname(os.path.realpath(shutil.which("java"))))
        ),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }

    def call(*arguments: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["uv", "run", "--quiet", "--project", str(ROOT / "dags"), *arguments],
            capture_output=True,
            text=True,
            env=environment | more,
            cwd=home,
        )

    made = call("airflow", "db", "migrate")
    assert made.returncode == 0, made.stderr[-2000:]
    call.lake = str(home / "lake")
    return call


def test_text_reaches_a_task_as_it_was_typed(monkeypatch):
    """Java hands on what the encoding of its locale has."""
    operators = []

    class Variable:
        get = staticmethod(lambda name, default_var=None: default_var)

    stubs = {
        "airflow": {},
        "airflow.models": {"Variable": Variable},
        "airflow.models.baseoperator": {"BaseOperator": object},
        "airflow.providers.apache.spark.operators.spark_submit": {
            "SparkSubmitOperator": lambda **options: operators.append(options)
        },
    }
    for name, attributes in stubs.items():
        stub = types.ModuleType(name)
        vars(stub).update(attributes)
        monkeypatch.setitem(sys.modules, name, stub)
    tasks = runpy.run_path(str(ROOT / "dags/gan_spark_jobs.py"))
    tasks["job"]("generate", "generate", generate__label="grün")
    (options,) = operators
    assert options["env_vars"]["LC_ALL"] == "C.UTF-8" and "generate.label=grün" in options["application_args"]


@pytest.mark.long
@pytest.mark.parametrize("platform", ["spark", "databricks"])
def test_dags_import_without_errors_or_warnings(airflow, platform):
    script = (
        "from airflow.models import DagBag; bag = DagBag(include_examples=False); print(bag.import_errors, [w for found"
        " in bag.captured_warnings.values() for w in found] if hasattr(bag, 'captured_warnings') else []);"
        " print(sorted((dag.dag_id, [type(task).__name__ for task in dag.topological_sort()]) for dag in"
        " bag.dags.values()))"
    )
    found = airflow("python", "-c", script, AIRFLOW_VAR_GAN_SPARK_PLATFORM=platform)
    assert found.returncode == 0, found.stderr[-2000:]
    lines = found.stdout.strip().splitlines()
    assert lines[-2] == "{} []", found.stdout + found.stderr[-2000:]
    operator = {"spark": "SparkSubmitOperator", "databricks": "DatabricksSubmitRunOperator"}[platform]
    assert lines[-1] == str([("gan_spark_generate", [operator]), ("gan_spark_retrain", [operator] * 6)])


def snapshot(root: str) -> dict:
    """What a reader of the lake sees."""
    run = Run(lakes.join(lakes.to_url(root), "runs", RUN))
    return {
        "dataset": schema.read_manifest(lakes.join(lakes.to_url(root), "datasets", "digits")).fingerprint,
        "checkpoints": run.checkpoints(),
        "starts": [line["step"] for line in run.metrics() if line.get("event") == "start"],
        "registry": registry.read(root, "gan_spark_retrain"),
    }


def kill_training_once(root: str, seen: list) -> None:
    """Waits for the run's first checkpoint, notes what a reader of the lake sees, and kills the job that trains."""
    run = Run(lakes.join(lakes.to_url(root), "runs", RUN))
    while not run.checkpoints():
        time.sleep(0.2)
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any(part.endswith("jobs/train.py") for part in command) and f"lake={root}" in command:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    seen.append(snapshot(root))


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_retraining_from_start_to_end_through_a_death(spark, airflow):
    def retrain() -> None:
        done = airflow("airflow", "dags", "test", "gan_spark_retrain", "2026-03-01")
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]

    def images(name: str) -> dict:
        return {
            row["seed"]: bytes(row["image"])
            for row in spark.read.parquet(f"{root}/generated/{name}").select("seed", "image").collect()
        }

    root, seen = airflow.lake, []
    killer = threading.Thread(target=kill_training_once, args=(root, seen), daemon=True)
    killer.start()
    retrain()
    after, made = snapshot(root), images("gan_spark_retrain")
    assert (
        seen
        and seen[0]["dataset"] == after["dataset"]
        and seen[0]["checkpoints"]
        and not seen[0]["registry"]["versions"]
    )  # half-way, what was there was whole
    assert after["checkpoints"] == [200, 400] and after["starts"] in (
        [0, 200],
        [0, 400],
    )  # Airflow tried again, and it went on
    assert after["registry"]["promoted"] == 1 and len(after["registry"]["versions"]) == 1 and len(made) == 60

    retrain()
    again = snapshot(root)
    assert {key: again[key] for key in ("dataset", "checkpoints", "registry")} == {
        key: after[key] for key in ("dataset", "checkpoints", "registry")
    }
    assert images("gan_spark_retrain") == made

    daily = airflow("airflow", "dags", "test", "gan_spark_generate", "2026-03-02", "--conf", '{"images": 20}')
    assert daily.returncode == 0, (daily.stdout + daily.stderr)[-3000:]
    assert sorted(images("daily/2026-03-02")) == list(range(20514 * 1_000_000, 20514 * 1_000_000 + 20))
