"""Every command of the docs: run here with fewer steps, or by the test that is named, or marked as not run."""

import json
import re
import runpy
import shlex
import sys

import pytest
import sklearn.datasets
from conftest import ROOT

from gan_spark import __main__ as command_line, config, images, models

DOCS = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "benchmarks/README.md", *sorted(ROOT.glob("conf/*.toml")), *sorted(ROOT.glob("dags/*.toml"))]
SMALL = [
    "train.steps=2", "train.batch_size=16", "train.workers=1", "train.launcher=local", "train.checkpoint_every=2", "train.sample_every=2", "model.width=4", "generate.images=40",
    "evaluate.classifier_steps=40", "evaluate.classifier_batch=16", "evaluate.sample=40", "evaluate.kid_subset_size=20", "evaluate.kid_subsets=3",
]  # fmt: skip

# What is run by another test with settings of its own: how the command begins, that test, and what it has to hold of the command.
ELSEWHERE = {
    "uv run pytest tests/test_airflow.py": ("test_airflow.py", "GAN_SPARK_AIRFLOW"),
    "uv run pytest": ("test_docs.py", "def test_"),
    "export AIRFLOW": ("test_airflow.py", "AIRFLOW__CORE__DAGS_FOLDER"),
    "uv run --project dags airflow db migrate": ("test_airflow.py", '"airflow", "db", "migrate"'),
    "uv run --project dags airflow dags test": ("test_airflow.py", '"airflow", "dags", "test"'),
    "uv run jobs/finetune.py": ("test_transfer.py", "transfer.finetune"),
    "uv run jobs/predict.py": ("test_transfer.py", "transfer.predict"),
    "uv run jobs/ingest.py": ("test_cluster.py", '"ingest"'),
    "uv run jobs/lenet.py": ("test_lenet.py", "lenet.lenet"),
    "scala/sbt": ("../.ci/run", "scala/sbt test package"),
    "uv run spark-submit --class": ("test_scala.py", "ganspark.Score"),
    "uv run spark-submit --master": ("test_cluster.py", '"--properties-file"'),
    "export JAVA_HOME": ("test_cluster.py", "JAVA_HOME"),
    "uv run benchmarks/": ("../benchmarks/README.md", "measured"),
}
NOT_RUN = {"databricks bundle": "**Not run here**"}


def commands(text: str) -> list[str]:
    """Lines of fenced blocks, of comments at the head of a config, and in backticks that are commands."""
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)).replace("\\\n", " ")
    lines = fenced.splitlines() + re.findall(r"^#   (.*)", text, re.M) + re.findall(r"`([^`\n]+)`", text)
    lines = [re.sub(r"^[A-Z_]+=\S+ ", "", re.sub(r"\s{2,}#.*", "", line)).strip() for line in lines]
    return [re.sub(r"\s+", " ", line) for line in lines if re.match(r"(uv run|scala/sbt|databricks|export) ", line)]


ALL = sorted({(str(path.relative_to(ROOT)), command) for path in DOCS for command in commands(path.read_text())})
JOBS = [(where, command) for where, command in ALL if "jobs/" in command and "--config" in command]


def test_commands_are_found():
    assert len(ALL) > 40 and len(JOBS) > 30
    assert ("README.md", "uv run jobs/pipeline.py --config conf/quickstart.toml") in ALL
    assert commands("```\nuv run a \\\n  b   # why\n\nX=1 uv run c\n```\nSay `uv run d`, not `d`.") == ["uv run a b", "uv run c", "uv run d"]


@pytest.mark.parametrize("where, command", JOBS)
def test_a_jobs_command_names_a_job_and_a_valid_config(where, command):
    words = shlex.split(command)
    (script,) = [word for word in words if word.startswith("jobs/")]
    assert (ROOT / script).is_file()
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    config.load(str(ROOT / words[words.index("--config") + 1]), changes, models.config_class)


def job(capsys, monkeypatch, command: str, *changes: str) -> dict:
    """The job of a command, with more `--set`: its script under Python, in the session of the tests."""
    words = shlex.split(command)[2:] + [word for change in changes for word in ("--set", change)]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(words[0], run_name="__main__")
    assert stop.value.code == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_commands_of_the_readme_about_runs(capsys, monkeypatch, spark, tmp_path):
    """Its pipelines, on the digits and on a folder of images, and what it does with their runs."""
    lake, folder = tmp_path / "lake", tmp_path / "my-images"
    digits = sklearn.datasets.load_digits()
    for i in range(300):
        inside = folder / str(digits.target[i])
        inside.mkdir(parents=True, exist_ok=True)
        (inside / f"{i}.png").write_bytes(images.encode_png((digits.images[i, :, :, None] * 15).astype("uint8")))
    ran = [command for where, command in ALL if where == "README.md" and ("jobs/pipeline.py" in command or "python -m gan_spark" in command and "$" not in command)]
    pipelines = sorted((command for command in ran if "pipeline" in command), key=len, reverse=True)
    for command, rows in zip(pipelines, (300, 1797), strict=True):
        result = job(capsys, monkeypatch, command.replace("/data/my-images", str(folder)), f"lake={lake}", *SMALL)
        assert result["rows"] == rows and result["images"] == 40 and result["report"]

    def say(command: str) -> str:
        monkeypatch.setattr(sys, "argv", ["gan_spark", *shlex.split(command)[5:], "--lake", str(lake)])
        assert command_line.main() == 0
        return capsys.readouterr().out

    told = {shlex.split(command)[5]: command for command in ran if "gan_spark" in command}
    assert {"runs", "show", "promote", "rollback"} == told.keys()
    assert "quickstart" in say(told["runs"]) and "mine" in say(told["runs"])
    assert result["fingerprint"] in say(told["show"])
    assert re.search(r"promoted +True", say(told["promote"]))
    say(told["promote"].replace("quickstart", "mine").replace("--if-better", ""))
    assert "quickstart" in say(told["rollback"])


def test_every_command_is_run_or_marked():
    here = ("jobs/pipeline.py", "python -m gan_spark ")
    for where, command in ALL:
        known = [start for start in (*ELSEWHERE, *NOT_RUN) if command.startswith(start)]
        assert known or any(each in command for each in here) or where.startswith("conf/"), f"{where}: `{command}` is run by no test and not marked as not run"
    for name, evidence in ELSEWHERE.values():
        assert evidence in (ROOT / "tests" / name).read_text(), f"{name} has no {evidence} any more"
    for start, mark in NOT_RUN.items():
        section = next(part for part in (ROOT / "README.md").read_text().split("\n## ") if start in part)
        assert mark in section
