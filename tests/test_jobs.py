"""The command line: arguments, exit codes, the result line, and errors that leave nothing behind."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, make_config, write_config

from gan_spark import job
from gan_spark import lake as lakes
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
    assert all(option in answer.stdout for option in ("--config", "--set", "--dry-run"))


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


def test_an_unforeseen_failure_exits_with_1(capsys, spark, toml):
    def breaks(spark, config):
        raise ValueError("the disk is on fire")

    code, out, errors = run(capsys, breaks, "--config", toml)
    assert (code, out) == (1, []) and "error: ValueError: the disk is on fire" in errors


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
