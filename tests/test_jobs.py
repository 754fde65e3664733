"""The command line: arguments, exit codes, the result line, and errors that leave nothing behind."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, make_config, write_config
from pyspark.sql import functions as F

from gan_spark import job
from gan_spark import lake as lakes
from gan_spark.data import splits
from gan_spark.pipeline import pipeline
from gan_spark.training import driver


@pytest.fixture
def toml(tmp_path, lake):
    quality = {"classifier_steps": 100, "classifier_batch": 32, "sample": 40, "kid_subset_size": 20, "kid_subsets": 3}
    return write_config(tmp_path, make_config(lake, run="job", generate={"images": 40}, evaluate=quality))


def run(capsys, step, *arguments):
    """Exit code, last line of stdout, stderr."""
    try:
        code = job.main(step, "A job.", list(arguments))
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out.strip().splitlines()[-1:], captured.err


def test_dry_run_prints_the_resolved_config_and_does_nothing(capsys, toml):
    code = job.main(
        driver.train, "A job.", ["--config", toml, "--set", "train.steps=7", "--set", "run=other", "--dry-run"]
    )
    config = json.loads(capsys.readouterr().out)
    assert code == 0
    assert config["train"]["steps"] == 7 and config["run"] == "other" and config["model"]["average"] == 0.999


@pytest.mark.parametrize("name", ["ingest", "train", "generate", "evaluate", "pipeline"])
def test_help_says_what_the_job_does(name):
    answer = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), "--help"], capture_output=True, text=True
    )
    assert answer.returncode == 0
    assert all(option in answer.stdout for option in ("--config", "--set", "--dry-run", "--verbose"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ("train.stepz=5", "train.stepz: unknown key; did you mean train.steps\\?"),
        ("train.steps=many", "train.steps = 'many': expected int, got str"),
        ("train.workers=0", "train.workers = 0: expected at least 1"),
        (
            "train.batch_size=15 train.workers=2 train.launcher=spark",
            "train.batch_size = 15 does not divide by train.workers = 2",
        ),
        ("model.name=dcgam", "did you mean 'dcgan'"),
        (
            "dataset=nothing",
            "no dataset at file:.*/nothing: expected _gan_spark.json there; make it with jobs/ingest.py",
        ),
        ("model.image_size=28", r"ask for images of \(28, 28, 1\); dataset .* holds \(16, 16, 1\)"),
        ("train.workers=8 train.launcher=spark", "train.workers = 8, but local.* has . task slots"),
        ("train", "--set train: expected key=value"),
    ],
)
def test_a_wrong_request_is_one_clear_error_with_exit_code_2_and_writes_nothing(
    capsys, spark, digits, toml, lake, changes, message
):
    before = sorted(os.listdir(lake))
    arguments = [part for change in changes.split() for part in ("--set", change)]
    code, _, errors = run(capsys, driver.train, "--config", toml, "--set", "run=wrong", *arguments)
    assert code == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.search(message, line)
    assert sorted(os.listdir(lake)) == before and not os.path.exists(f"{lake}/runs/wrong")


def test_missing_and_unknown_arguments_exit_with_2(capsys, toml):
    assert run(capsys, driver.train)[0] == 2
    assert run(capsys, driver.train, "--config", toml, "--sett", "a=b")[0] == 2
    assert run(capsys, driver.train, "--config", "/nowhere.toml")[0] == 2


def test_an_unforeseen_failure_exits_with_1_and_its_traceback(capsys, spark, toml):
    def breaks(spark, config):
        raise ValueError("the disk is on fire")

    code, out, errors = run(capsys, breaks, "--config", toml)
    assert (code, out) == (1, [])
    assert errors.splitlines()[-1] == "error: ValueError: the disk is on fire"
    assert "Traceback (most recent call last)" in errors and "in breaks" in errors


def test_a_users_error_is_told_without_a_traceback_but_with_verbose(capsys, spark, toml, caplog):
    arguments = ["--config", toml, "--set", "train.workers=8", "--set", "train.launcher=spark"]
    code, _, errors = run(capsys, driver.train, *arguments, "--set", "dataset=nothing")
    assert code == 2 and "Traceback" not in errors
    assert logging.getLogger("gan_spark").level == logging.INFO
    caplog.clear()
    assert run(capsys, driver.train, *arguments, "--set", "dataset=nothing", "--verbose")[0] == 2
    assert logging.getLogger("gan_spark").level == logging.DEBUG
    assert any(record.levelno == logging.DEBUG and record.exc_info for record in caplog.records)


def test_a_task_that_raises_is_told_by_the_last_line_of_its_python(capsys, spark, toml):
    def fails(row):
        raise ValueError(f"row {row} is not an image\nand more of that")

    def of_rdd(spark, config):
        return spark.sparkContext.parallelize([3], 1).map(fails).collect()

    def of_udf(spark, config):
        return spark.range(3, 4).select(F.udf(fails)("id")).collect()

    for step in (of_rdd, of_udf):
        code, out, errors = run(capsys, step, "--config", toml)
        assert (code, out) == (1, [])
        assert errors.splitlines()[-1] == "error: ValueError: row 3 is not an image"
        assert "in fails" in errors  # the worker's traceback, which stands in Java's message
        assert "in of_" in errors


def test_a_python_worker_that_dies_is_told_so(capsys, spark, toml):
    def dies(spark, config):
        return spark.sparkContext.parallelize([3], 1).map(lambda row: os._exit(3)).collect()

    code, _, errors = run(capsys, dies, "--config", toml)
    assert code == 1 and re.match("error: SparkException: Python worker exited", errors.splitlines()[-1])


def test_a_table_that_is_not_there_is_named(capsys, spark, toml, tmp_path):
    for read, name in (
        (lambda: spark.table("nothing"), "nothing"),
        (lambda: spark.read.parquet("/no/table"), "/no/table"),
    ):
        code, _, errors = run(capsys, lambda spark, config, read=read: read(), "--config", toml)
        line = errors.splitlines()[-1]
        assert code == 1 and line.startswith("error: AnalysisException: ") and name in line


def damaged(tmp_path, digits: str, start: int, end: int) -> tuple[str, str]:
    """A lake with a copy of the dataset, and the name of the one file whose bytes from `start` to `end` are 0xff."""
    folder = tmp_path / "lake" / "datasets" / "digits"
    shutil.copytree(digits.removeprefix("file:"), folder)
    path = Path(splits.files(f"file:{folder}", "train")[0].removeprefix("file:"))
    (path.parent / f".{path.name}.crc").unlink(missing_ok=True)
    content = bytearray(path.read_bytes())
    content[start:end] = b"\xff" * len(content[start:end])
    path.write_bytes(content)
    return f"{tmp_path}/lake", path.name


def test_a_damaged_file_of_a_dataset_is_named_by_the_job_that_reads_it(capsys, spark, digits, toml, tmp_path):
    reads = lambda spark, config: splits.frame(spark, lakes.dataset_url(config), "train").collect()
    lake, name = damaged(tmp_path, digits, 4, 400)  # in the first page of the first column
    code, out, errors = run(capsys, reads, "--config", toml, "--set", f"lake={lake}")
    line = errors.splitlines()[-1]
    assert (code, out) == (1, []) and re.match(r"error: \w+: .+ \(file:/", line) and name in line
    assert "An error occurred while calling" not in line


@pytest.mark.slow
def test_a_session_that_has_stopped_can_still_say_what_failed(digits, toml, tmp_path):
    lake, name = damaged(tmp_path, digits, -8, None)  # the length and the magic number at the end
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\n"
        "from gan_spark import job, lake\n"
        "from gan_spark.data import splits\n"
        "def reads(spark, config):\n"
        "    splits.frame(spark, lake.dataset_url(config), 'train').collect()\n"
        "sys.exit(job.main(reads, 'Read a dataset.'))\n"
    )
    arguments = [sys.executable, str(script), "--config", toml, "--set", f"lake={lake}"]
    answer = subprocess.run(arguments, capture_output=True, text=True)
    line = answer.stderr.strip().splitlines()[-1]
    assert answer.returncode == 1 and answer.stdout == "" and "in reads" in answer.stderr
    assert re.match(rf"error: \w+: .*{name} is not a Parquet file", line)


def test_a_resume_with_another_config_lists_the_differences(capsys, spark, digits, toml):
    assert run(capsys, driver.train, "--config", toml, "--set", "run=resumed")[0] == 0
    code, _, errors = run(
        capsys,
        driver.train,
        "--config",
        toml,
        "--set",
        "run=resumed",
        "--set",
        "model.width=8",
        "--set",
        "train.seed=1",
    )
    assert code == 2
    assert (
        "exists with another config" in errors
        and "config.model.width: was 4, is 8; config.train.seed: was 0, is 1" in errors
    )


@pytest.mark.slow
def test_the_pipeline_goes_all_the_way_and_says_where_everything_is(capsys, spark, toml):
    code, (line,), _ = run(capsys, pipeline, "--config", toml, "--set", "run=whole", "--set", "dataset=whole-digits")
    result = json.loads(line)
    assert code == 0
    assert result["rows"] == 1797 and result["rejected"] == 0 and result["steps"] == 4 and result["images"] == 40
    assert {"fid", "fid_floor", "kid", "precision", "recall", "score", "classifier_accuracy"} <= result.keys()
    assert all(lakes.exists(result[key]) for key in ("dataset", "rejects", "run", "table", "grid", "report"))
    again = json.loads(
        run(capsys, pipeline, "--config", toml, "--set", "run=whole", "--set", "dataset=whole-digits")[1][0]
    )
    assert again["checksum"] == result["checksum"] and again["fid"] == result["fid"] and "rows" not in again


def test_a_pipeline_that_could_not_be_evaluated_is_told_so_before_it_trains(capsys, spark, toml, lake):
    code, _, errors = run(
        capsys,
        pipeline,
        "--config",
        toml,
        "--set",
        "run=early",
        "--set",
        "dataset=whole-digits",
        "--set",
        "evaluate.dataset=nothing",
    )
    assert code == 2 and "no dataset at" in errors and "/nothing: expected" in errors
    assert not os.path.exists(f"{lake}/runs/early")


def test_java_is_the_packaged_one_where_the_machine_has_none_that_fits(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    home = job.java_home()
    answer = subprocess.run([f"{home}/bin/java", "-version"], capture_output=True, text=True).stderr
    assert 'version "17' in answer
    monkeypatch.setenv("JAVA_HOME", home)
    assert job.java_home() is None


def test_a_java_that_is_too_new_is_not_used(monkeypatch, tmp_path):
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"25.0.1\"' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert job.java_home() is not None
