"""Every command of the docs: run here with fewer steps, or by the test that is named, or marked as not run.

And that every link and picture leads somewhere."""

import json
import pkgutil
import re
import runpy
import shlex
import sys

import pytest
import sklearn.datasets
from conftest import ROOT

from gan_spark import __main__ as command_line
from gan_spark import config, models
from gan_spark.data import images

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
CONFIGS = [*sorted(ROOT.glob("conf/*.toml")), *sorted(ROOT.glob("dags/*.toml"))]
DOCS = [*PAGES, ROOT / "benchmarks/README.md", *CONFIGS]
SMALL = [
    "train.steps=2",
    "train.batch_size=16",
    "train.workers=1",
    "train.launcher=local",
    "train.checkpoint_every=2",
    "train.sample_every=2",
    "model.width=4",
    "generate.images=40",
    "evaluate.classifier_steps=40",
    "evaluate.classifier_batch=16",
    "evaluate.sample=40",
]

# What is run by another test with settings of its own, or by CI: how the command begins, where, and what that has to
# hold of the command.
ELSEWHERE = {
    "uv run pytest -m long": ("tests/test_airflow.py", "pytest.mark.long"),
    "uv run pytest": (".ci/run", "uv run pytest"),
    "uv run ruff format": (".ci/run", "ruff format"),
    "uv run ruff check": (".ci/run", "ruff check"),
    "uv run lint-imports": (".ci/run", "lint-imports"),
    "uv run pyright": (".ci/run", "pyright"),
    "uv run --group docs mkdocs build": (".ci/run", "mkdocs build"),
    "uv run pre-commit install": (".pre-commit-config.yaml", "ruff"),
    "export AIRFLOW": ("tests/test_airflow.py", "AIRFLOW__CORE__DAGS_FOLDER"),
    "uv run --project dags airflow db migrate": ("tests/test_airflow.py", '"airflow", "db", "migrate"'),
    "uv run --project dags airflow dags test": ("tests/test_airflow.py", '"airflow", "dags", "test"'),
    "uv run jobs/finetune.py": ("tests/test_transfer.py", "finetune.finetune"),
    "uv run jobs/predict.py": ("tests/test_transfer.py", "predict.predict"),
    "uv run jobs/ingest.py": ("tests/test_signals.py", '"ingest"'),
    "uv run jobs/train.py": ("tests/test_cluster.py", '"train"'),
    "uv run jobs/lenet.py": ("tests/test_lenet.py", "bigdl.lenet"),
    "scala/sbt": (".ci/run", "scala/sbt test package"),
    "uv run spark-submit --class": ("tests/test_scala.py", "ganspark.Score"),
    "uv run spark-submit --master": ("tests/test_cluster.py", '"--properties-file"'),
    "uv run spark-submit --master yarn": ("tests/test_hdfs.py", '"--master", "yarn"'),
    "export HADOOP_CONF_DIR": ("tests/test_hdfs.py", "HADOOP_CONF_DIR"),
    "export PYSPARK_PYTHON": ("tests/test_hdfs.py", "PYSPARK_PYTHON"),
    "export JAVA_HOME": ("tests/processes.py", "JAVA_HOME"),
    "uv run benchmarks/": ("benchmarks/README.md", "measured"),
    "uv run jobs/stream.py": ("tests/test_stream.py", '"stream.py"'),
    "uv run jobs/verdict.py": ("tests/test_verdict_page.py", '"verdict.py"'),
    "uv run jobs/score.py": ("tests/test_score.py", '"score.py"'),
    "gan-spark doctor": ("tests/test_doctor.py", "doctor.doctor"),
    "gan-spark export": ("tests/test_export.py", "command_line.main"),
    "gan-spark challenge": ("tests/test_challenge.py", '"challenge", "--end"'),
    "gan-spark verdict": ("tests/test_challenge.py", '"verdict", "--lake"'),
    "gan-spark serve": ("tests/service.py", '"serve"'),
    "gan-spark datasets": ("tests/test_snapshots.py", 'say("datasets")'),
    "gan-spark show mine": ("tests/test_snapshots.py", 'say("show", "digits")'),
    "gan-spark compact": ("tests/test_snapshots.py", 'run_command("compact"'),
    "gan-spark expire": ("tests/test_snapshots.py", 'say("expire"'),
    "gan-spark download": ("tests/test_downloads.py", "download("),
    # docs/extending.md, from a folder of its own.
    "export PYTHONPATH": ("tests/test_extending.py", "PYTHONPATH"),
    "gan-spark check": ("tests/test_extending.py", "extending.md"),
    "gan-spark ingest": ("tests/test_extending.py", "extending.md"),
    "gan-spark train": ("tests/test_extending.py", "extending.md"),
    "gan-spark generate": ("tests/test_extending.py", "extending.md"),
}
NOT_RUN = {"uv run --with pre-commit": "no test runs it", "databricks bundle": "**Not run here**"}
# Subcommands that are run here: of docs/promotion.md on the lake of a pipeline, and those that need no lake.
ABOUT_RUNS = ("runs", "show", "promote", "rollback")
ALONE = ("models", "reference", "init")


def commands(text: str) -> list[str]:
    """Lines of fenced blocks, of comments at the head of a config, and in backticks that are commands."""
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    prose = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = fenced.splitlines() + re.findall(r"^#   (.*)", text, re.MULTILINE) + re.findall(r"`([^`\n]+)`", prose)
    lines = [re.sub(r"^[A-Z_]+=\S+ ", "", re.sub(r"\s{2,}#.*", "", line)).strip() for line in lines]
    lines = [line.replace("python3 bootstrap.py run ", "uv run ") for line in lines]
    lines = [re.sub(r"^(uv run )?(python -m gan_spark|gan-spark) ", "gan-spark ", line) for line in lines]
    lines = [line for line in lines if re.match(r"(uv run|scala/sbt|databricks|export|gan-spark) ", line)]
    return [re.sub(r"\s+", " ", line) for line in lines]


def subcommand(command: str) -> str:
    return shlex.split(command)[1] if command.startswith("gan-spark ") else ""


ALL = sorted({(str(path.relative_to(ROOT)), command) for path in DOCS for command in commands(path.read_text())})
JOBS = [each for each in ALL if "--config" in each[1] and re.search(r"jobs/|^gan-spark ", each[1])]
SUBCOMMANDS = sorted({subcommand(command) for _, command in ALL} - {""})


def test_commands_are_found():
    assert len(ALL) > 40 and len(JOBS) > 30
    assert ("README.md", "uv run jobs/pipeline.py --config conf/quickstart.toml") in ALL
    fenced = "```\nuv run a \\\n  b   # why\n\nX=1 uv run c\nuv run gan-spark e\n```\n"
    text = fenced + "Say `uv run d`, not `d`, and `python -m gan_spark f`."
    assert commands(text) == ["uv run a b", "uv run c", "gan-spark e", "uv run d", "gan-spark f"]


@pytest.mark.parametrize("where, command", JOBS)
def test_a_jobs_command_names_a_job_and_a_valid_config(where, command):
    words = shlex.split(command)
    name = words[words.index("--config") + 1]
    script = next((word for word in words if word.startswith("jobs/")), f"jobs/{words[1]}.py")
    assert (ROOT / script).is_file()
    if name == "lsgan.toml":  # which docs/extending.md holds, and its test loads
        return
    path = ROOT / name if "/" in name else ROOT / "conf" / name  # without a folder: what `gan-spark init` writes
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    config.load(str(path), changes, models.config_class)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_subcommand_of_the_docs_is_one(capsys, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", ["gan-spark", name, "--help"])
    with pytest.raises(SystemExit) as stop:
        command_line.main()
    assert stop.value.code == 0 and name in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted({command for _, command in ALL if subcommand(command) in ALONE}))
def test_a_command_that_needs_no_lake_runs(capsys, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    words = ["dcgan" if word == "NAME" else word for word in shlex.split(command.partition(" > ")[0])]
    monkeypatch.setattr(sys, "argv", words)
    assert not command_line.main()
    assert capsys.readouterr().out.strip()
    if words[1:] == ["init", "quickstart"]:
        assert config.load(str(tmp_path / "quickstart.toml"), (), models.config_class).run == "quickstart"


def job(capsys, monkeypatch, command: str, *changes: str) -> dict:
    """The job of a command, with more `--set`: its script under Python, in the session of the tests."""
    words = shlex.split(command)[2:] + [word for change in changes for word in ("--set", change)]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(words[0], run_name="__main__")
    assert stop.value.code == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_the_commands_about_runs(capsys, monkeypatch, spark, tmp_path):
    """The pipelines of README.md and docs/images.md, on digits and on a folder; docs/promotion.md on their runs."""
    lake, folder = tmp_path / "lake", tmp_path / "my-images"
    digits = sklearn.datasets.load_digits()
    for i in range(300):
        inside = folder / str(digits.target[i])
        inside.mkdir(parents=True, exist_ok=True)
        (inside / f"{i}.png").write_bytes(images.encode_png((digits.images[i, :, :, None] * 15).astype("uint8")))
    pages = ("README.md", "docs/images.md")
    pipelines = [command for where, command in ALL if where in pages and "jobs/pipeline.py" in command]
    pipelines = sorted(pipelines, key=len, reverse=True)
    for command, rows in zip(pipelines, (300, 1797), strict=True):
        result = job(capsys, monkeypatch, command.replace("/data/my-images", str(folder)), f"lake={lake}", *SMALL)
        assert result["rows"] == rows and result["images"] == 40 and result["report"]

    def say(command: str) -> str:
        monkeypatch.setattr(sys, "argv", [*shlex.split(command), "--lake", str(lake)])
        assert not command_line.main()
        return capsys.readouterr().out

    # `gan-spark promote` alone stands in the text, for the job of that name.
    told = [command for where, command in ALL if where == "docs/promotion.md" and command != "gan-spark promote"]
    told = {subcommand(command): command for command in told}
    assert set(ABOUT_RUNS) == told.keys()
    assert "quickstart" in say(told["runs"]) and "mine" in say(told["runs"])
    assert result["fingerprint"] in say(told["show"])
    assert re.search(r"promoted +True", say(told["promote"]))
    say(told["promote"].replace("quickstart", "mine").replace("--if-better", ""))
    assert "quickstart" in say(told["rollback"])


def test_every_command_is_run_or_marked():
    for where, command in ALL:
        known = [start for start in (*ELSEWHERE, *NOT_RUN) if command.startswith(start)]
        here = "jobs/pipeline.py" in command or subcommand(command) in (*ABOUT_RUNS, *ALONE, "pipeline")
        assert known or here or where.startswith("conf/"), f"{where}: `{command}` is run by no test and not marked so"
    for name, evidence in ELSEWHERE.values():
        assert evidence in (ROOT / name).read_text(), f"{name} has no {evidence} any more"
    for start, mark in NOT_RUN.items():
        sections = [section for path in PAGES for section in re.split(r"^## ", path.read_text(), flags=re.MULTILINE)]
        sections = [section for section in sections if any(each.startswith(start) for each in commands(section))]
        assert sections, f"no page has {start} any more"
        assert all(mark in section for section in sections), f"`{start}` is not marked where it stands"


def test_names_of_the_package_in_the_docs_are_there():
    for path in PAGES:
        for name in re.findall(r"(?<![\w./-])gan_spark(?:\.[A-Za-z_]\w*)+", path.read_text()):
            assert name.endswith((".json", ".py")) or pkgutil.resolve_name(name), f"{path.name}: {name}"


def links(text: str) -> list[str]:
    """Targets of links and pictures outside of code: relative ones."""
    prose = re.sub(r"`[^`\n]*`", "", re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'<img src="([^"]+)"', prose)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What a heading is linked to by, as Git hosts and MkDocs make it."""
    prose = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.*)", prose, re.MULTILINE)
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(path):
    for target in links(path.read_text()):
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        assert other.is_file(), f"{path.name}: {target} is not there"
        assert not anchor or anchor in anchors(other.read_text()), f"{path.name}: {target}: no such heading"


def test_links_are_found():
    text = '[a](b.md#c) ![d](e.png) `[f](g)` [h](https://i)\n```\n[j](k)\n```\n<img src="l.png" width="1">'
    assert links(text) == ["b.md#c", "e.png", "l.png"]


def test_pictures_of_the_docs_are_shown_somewhere():
    shown = {(path.parent / target).resolve() for path in PAGES for target in links(path.read_text())}
    assert set(ROOT.glob("docs/images/*.png")) <= shown


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
