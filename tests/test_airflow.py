"""The DAGs in a real Airflow, in an environment of its own (SQLite, one process), with real spark-submit on real
digits.
"""

import contextlib
import http.server
import json
import os
import resource
import runpy
import shutil
import subprocess
import sys
import threading
import time
import types
from typing import ClassVar

import psutil
import pytest
import sklearn.datasets
from conftest import ROOT
from PIL import Image

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

    class SparkSubmitOperator:
        def __init__(self, **options):
            operators.append(options)

    stubs = {
        "airflow": {},
        "airflow.exceptions": {"AirflowSkipException": Exception},
        "airflow.models": {"Variable": Variable},
        "airflow.models.baseoperator": {"BaseOperator": object},
        "airflow.providers.apache.spark.operators.spark_submit": {"SparkSubmitOperator": SparkSubmitOperator},
    }
    for name, attributes in stubs.items():
        stub = types.ModuleType(name)
        vars(stub).update(attributes)
        monkeypatch.setitem(sys.modules, name, stub)
    tasks = runpy.run_path(str(ROOT / "dags/gan_spark_jobs.py"))
    tasks["job"]("generate", "generate", generate__label="grün")
    (options,) = operators
    assert options["env_vars"]["LC_ALL"] == "C.UTF-8" and "generate.label=grün" in options["application_args"]
    printed = ["warning", '{"rows": 1}', '{"rows": 2, "added": 0}\n', "{not JSON}", "the end"]
    assert tasks["answer_in"](printed) == {"rows": 2, "added": 0} and tasks["answer_in"](printed[3:]) is None


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
    operator = {"spark": "SparkJob", "databricks": "DatabricksJob"}[platform]
    expected = [("gan_spark_generate", [operator]), ("gan_spark_retrain", [operator] * 6)]
    assert lines[-1] == str([*expected, ("gan_spark_verdict", [operator])])


@pytest.mark.long
@pytest.mark.parametrize(
    "conf, words",
    [
        ({}, ["run=retrain-20260301", "train.start_from=promoted:gan_spark_retrain"]),
        ({"begin": "fresh"}, ["run=retrain-20260301", "train.start_from="]),
        ({"run": "mine"}, ["run=mine", "train.start_from=promoted:gan_spark_retrain"]),
    ],
)
def test_a_parameter_chooses_what_a_run_begins_with(airflow, conf, words):
    script = (
        "import json, sys; from airflow.models import DagBag; dag ="
        " DagBag(include_examples=False).dags['gan_spark_retrain']; task = dag.get_task('train'); params ="
        " {name: param.value for name, param in dag.params.items()} | json.loads(sys.argv[1]); from"
        " airflow.utils.context import Context; from airflow.models.variable import Variable;"
        " var = {'value': type('V', (), {'__getattr__': lambda self, key: Variable.get(key), 'get': lambda self, key,"
        " default=None: Variable.get(key, default_var=default)})()};"
        " task.render_template_fields(Context(params=params, dag=dag, ds_nodash='20260301', var=var));"
        " print(json.dumps(task.application_args))"
    )
    found = airflow("python", "-c", script, json.dumps(conf))
    assert found.returncode == 0, found.stderr[-2000:]
    arguments = json.loads(found.stdout.splitlines()[-1])
    assert [word for word in arguments if word.startswith(("run=", "train.start_from="))] == words


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


class Databricks(http.server.BaseHTTPRequestHandler):
    """As much of Databricks' API as a submitted run takes; it answers what a job printed."""

    answers: ClassVar = {
        "/api/2.1/jobs/runs/submit": {"run_id": 7},
        "/api/2.1/jobs/runs/get": {
            "run_id": 7,
            "run_page_url": "http://127.0.0.1/7",
            "state": {"life_cycle_state": "TERMINATED", "result_state": "SUCCESS", "state_message": ""},
            "tasks": [{"task_key": "main", "run_id": 8}],
        },
    }
    asked: ClassVar = []
    printed = ""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        path = self.path.partition("?")[0]
        self.asked.append((path, self.path, self.rfile.read(length).decode()))
        answer = {"logs": self.printed} if path.endswith("get-output") else self.answers[path]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    do_GET = do_POST = _answer

    def log_message(self, *_) -> None:
        pass


@pytest.mark.long
@pytest.mark.parametrize("added, state", [(0, "skipped"), (3, "success")])
def test_databricks_is_asked_what_the_job_printed(airflow, monkeypatch, added, state):
    """Against a server that speaks its API: there was no workspace."""
    answer = {"rows": 9, "added": added, "known": 9 - added, "snapshot": 2}
    monkeypatch.setattr(Databricks, "printed", f"a line\n{json.dumps(answer)}\n")
    monkeypatch.setattr(Databricks, "asked", [])
    with http.server.HTTPServer(("127.0.0.1", 0), Databricks) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connection = {"conn_type": "databricks", "host": "127.0.0.1", "schema": "http", "port": server.server_port}
        tested = airflow(
            *("airflow", "tasks", "test", "gan_spark_retrain", "ingest", "2026-03-01"),
            AIRFLOW_VAR_GAN_SPARK_PLATFORM="databricks",
            AIRFLOW_VAR_GAN_SPARK_CLUSTER="a-cluster",
            AIRFLOW_CONN_DATABRICKS_DEFAULT=json.dumps({**connection, "password": "token"}),
        )
        server.shutdown()
    assert tested.returncode == 0, (tested.stdout + tested.stderr)[-3000:]
    assert f"Marking task as {state.upper()}" in tested.stdout, (tested.stdout + tested.stderr)[-3000:]
    (submitted,) = [json.loads(body) for path, _, body in Databricks.asked if path.endswith("submit")]
    assert "ingest.mode=append" in submitted["spark_python_task"]["parameters"]
    assert any(path.endswith("get-output") and "8" in full + body for path, full, body in Databricks.asked)


def write_digits(folder, first: int, last: int) -> None:
    """Digits number `first` to `last` of scikit-learn's, as files of 16x16 in a folder a class."""
    digits = sklearn.datasets.load_digits()
    for number in range(first, last):
        place = folder / str(digits.target[number])
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((digits.images[number] * 15.9).astype("uint8")).resize((16, 16))
        image.save(place / f"{number:04d}.png")


# One rank, and next to no steps, for runs of which the outcome does not matter.
QUICK = {"train.launcher": "local", "train.workers": 1, "train.steps": 20, "train.checkpoint_every": 20}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.fault(
    "orchestration",
    "the job of an Airflow task is killed midway (SIGKILL)",
    "Airflow tries again, and it goes on from its checkpoint; readers of the lake see what was there before, whole",
)
def test_retraining_from_start_to_end_through_a_death(spark, airflow, tmp_path):
    arriving = tmp_path / "arriving"
    write_digits(arriving, 0, 900)
    source = {"ingest.source": "folder", "ingest.path": str(arriving)}

    def retrain(date: str, more: dict | None = None, **conf) -> tuple[float, set[str]]:
        """(Processor seconds, states of the tasks) of the DAG's run of a date."""
        settings = {"AIRFLOW_VAR_GAN_SPARK_SET": json.dumps({**SMALL, **source, **(more or {})})}
        start, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
        tested = airflow("airflow", "dags", "test", "gan_spark_retrain", date, "--conf", json.dumps(conf), **settings)
        seconds, after = time.time() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        assert tested.returncode == 0, (tested.stdout + tested.stderr)[-3000:]
        listed = airflow("airflow", "tasks", "states-for-dag-run", "gan_spark_retrain", date, "--output", "json")
        states = {task["state"] for task in json.loads(listed.stdout.splitlines()[-1])}
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{date}: {states} in {seconds:.0f} s, {processor:.0f} of a processor")
        return processor, states

    def images(name: str) -> dict:
        return {
            row["seed"]: bytes(row["image"])
            for row in spark.read.parquet(f"{root}/generated/{name}").select("seed", "image").collect()
        }

    root, seen = airflow.lake, []
    killer = threading.Thread(target=kill_training_once, args=(root, seen), daemon=True)
    killer.start()
    assert retrain("2026-03-01")[1] == {"success"}
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
    assert Run(lakes.join(lakes.to_url(root), "runs", RUN)).record()["started_from"] is None

    # Nothing has arrived: less than a minute's work, however busy the machine is.
    seconds, states = retrain("2026-03-08")
    assert states == {"skipped"} and seconds < 60
    assert snapshot(root) == after and images("gan_spark_retrain") == made

    # Something has: a run begins with the promoted one's weights.
    write_digits(arriving, 900, 1000)
    assert retrain("2026-03-15", QUICK)[1] == {"success"}
    url = lakes.join(lakes.to_url(root), "datasets", "digits")
    assert schema.read_manifest(url).number == 2 and sum(schema.read_manifest(url).rows.values()) == 1000
    further = Run(lakes.join(lakes.to_url(root), "runs", "retrain-20260315")).record()
    assert further["started_from"]["url"].endswith(f"/runs/{RUN}") and further["started_from"]["step"] == 400
    assert further["dataset"]["snapshot"] == 2
    assert len(registry.read(root, "gan_spark_retrain")["versions"]) == 2

    daily = airflow("airflow", "dags", "test", "gan_spark_generate", "2026-03-02", "--conf", '{"images": 20}')
    assert daily.returncode == 0, (daily.stdout + daily.stderr)[-3000:]
    assert sorted(images("daily/2026-03-02")) == list(range(20514 * 1_000_000, 20514 * 1_000_000 + 20))
