"""The asset bundle, read by the classes that Databricks generates from the bundle's schema."""

import dataclasses
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from conftest import ROOT
from databricks.bundles.jobs import Job

from gan_spark import config, models

BUNDLE = yaml.safe_load((ROOT / "databricks.yml").read_text())
JOBS = BUNDLE["resources"]["jobs"]
TASKS = [(name, task) for name, job in JOBS.items() for task in job["tasks"]]


@pytest.mark.parametrize("name", JOBS)
def test_jobs_are_what_the_schema_allows(name):
    """`from_dict` refuses a field that there is not, or of another type; what comes back is what was written."""
    assert Job.from_dict(JOBS[name]).as_dict() == JOBS[name]


@pytest.mark.parametrize(
    "change", [{"tags": "x"}, {"taks": []}, {"tasks": [{"task_key": "a", "spark_pyton_task": {}}]}]
)
def test_the_schema_would_refuse(change):
    with pytest.raises(ValueError):
        Job.from_dict(JOBS["train"] | change)


def test_variables_are_declared_and_keys_are_the_bundles():
    assert set(BUNDLE) == {"bundle", "variables", "artifacts", "resources", "targets"}
    used = set(re.findall(r"\$\{var\.(\w+)\}", (ROOT / "databricks.yml").read_text()))
    assert used == set(BUNDLE["variables"])


@pytest.mark.parametrize("job, task", TASKS, ids=[f"{name}.{task['task_key']}" for name, task in TASKS])
def test_a_task_runs_a_job_with_a_config_that_loads(job, task):
    assert task["job_cluster_key"] in [each["job_cluster_key"] for each in JOBS[job]["job_clusters"]]
    assert {each["task_key"] for each in task.get("depends_on", [])} <= {
        each["task_key"] for each in JOBS[job]["tasks"]
    }
    python = task["spark_python_task"]
    assert (ROOT / python["python_file"]).is_file()
    values = {f"${{var.{name}}}": str(each.get("default", "")) for name, each in BUNDLE["variables"].items()} | {
        "${workspace.file_path}": str(ROOT)
    }
    given = [re.sub(r"\$\{[\w.]+\}", lambda found: values[found[0]], each) for each in python["parameters"]]
    assert given[::2] == ["--config"] + ["--set"] * (len(given) // 2 - 1)
    loaded = config.load(given[1], given[3::2], models.config_class)
    assert dataclasses.is_dataclass(loaded)
    assert loaded.lake == "dbfs:/gan_spark"


def test_the_init_script_installs_what_the_project_pins():
    script, project = (ROOT / "conf" / "databricks-init.sh").read_text(), (ROOT / "pyproject.toml").read_text()
    pins = re.findall(r'"([\w-]+==[\w.]+)"', script)
    assert len(pins) == 5
    for pin in pins:
        assert f'"{pin}"' in project


@pytest.mark.slow
def test_pip_can_install_the_wheel_into_the_runtimes_spark(tmp_path):
    """What the wheel requires fits together without uv's overrides, and with the runtime's PySpark."""
    if not shutil.which("uv"):
        pytest.skip("no uv to resolve with")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (tmp_path / "requirements.in").write_text("\n".join([*project["project"]["dependencies"], "pyspark==3.5.0"]))
    command = [
        "uv",
        "pip",
        "compile",
        "--no-config",
        "--python-version",
        "3.11",
        "--exclude-newer",
        project["tool"]["uv"]["exclude-newer"],
        "requirements.in",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    assert "pyspark==3.5.0" in answer.stdout and "bigdl" not in answer.stdout
