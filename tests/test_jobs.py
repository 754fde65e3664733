"""The command line: arguments, exit codes, the result line, and errors that leave nothing behind."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, SHORT_LIVED, make_config, write_config
from pyspark.sql import functions as F

from gan_spark import job
from gan_spark import lake as lakes
from gan_spark.config import NotFetched, UserError, replaced
from gan_spark.data import ingest, splits
from gan_spark.pipeline import pipeline
from gan_spark.quality import evaluate
from gan_spark.sampling import generate
from gan_spark.training import driver, ranks


@pytest.fixture
def toml(tmp_path, lake):
    quality = {"classifier_steps": 100, "classifier_batch": 32, "sample": 40}
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
        (
            "train.workers=8 train.launcher=spark",
            "train.workers = 8, but local.* has . task slots: .*MASTER=local\\[8\\] in the environment, or spark-submit"
            " --master local\\[8\\]$",
        ),
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


@pytest.mark.parametrize(
    "names, change, message",
    [
        ("ingest train finetune generate promote", "evaluate.classifier_batch=63", None),
        ("evaluate pipeline", "evaluate.classifier_batch=63", "evaluate.classifier_batch = 63 does not divide"),
        ("evaluate", "evaluate.classifier_batch=63 evaluate.features=InceptionV3", None),
        ("ingest generate evaluate", "train.batch_size=15", None),
        ("train finetune pipeline", "train.batch_size=15", "train.batch_size = 15 does not divide"),
        ("train evaluate", "ingest.test=0.9", None),
        ("ingest pipeline", "ingest.test=0.9", "ingest.validation + ingest.test = 1: expected less than 1"),
    ],
)
def test_a_job_is_not_refused_for_options_that_it_does_not_read(capsys, toml, names, change, message):
    changes = ["train.workers=2", "train.launcher=spark", "ingest.validation=0.1", *change.split()]
    for name in names.split():
        code = job.script(name, ["--config", toml, "--dry-run", *(f"--set={change}" for change in changes)])
        error = capsys.readouterr().err
        assert (code, message is None or f"error: {message}" in error) == (0 if message is None else 2, True), name


def test_a_step_that_is_called_by_itself_checks_what_it_reads_too(spark, tmp_path):
    made = make_config(str(tmp_path), train={"workers": 2, "launcher": "spark", "batch_size": 15})
    with pytest.raises(UserError, match="train.batch_size = 15 does not divide"):
        driver.train(spark, made)
    odd = make_config(str(tmp_path), train={"workers": 2, "launcher": "spark"}, evaluate={"classifier_batch": 63})
    for step in (evaluate.evaluate, pipeline):
        with pytest.raises(UserError, match="evaluate.classifier_batch = 63 does not divide"):
            step(spark, odd)
    with pytest.raises(UserError, match="ingest.validation . ingest.test = 1"):
        ingest.ingest(spark, make_config(str(tmp_path), ingest={"validation": 0.5, "test": 0.5}))
    assert os.listdir(tmp_path) == []


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


@pytest.mark.slow
def test_a_task_that_raises_is_told_by_the_last_line_of_its_python(capsys, spark, toml, caplog):
    def fails(row):
        raise ValueError(f"row {row} is not an image\nand more of that")

    def of_rdd(spark, config):
        return spark.sparkContext.parallelize([3], 1).map(fails).collect()

    def of_udf(spark, config):
        return spark.range(3, 4).select(F.udf(fails)("id")).collect()

    for step in (of_rdd, of_udf):
        caplog.clear()
        code, out, errors = run(capsys, step, "--config", toml)
        assert (code, out) == (1, [])
        assert errors.splitlines()[-1] == "error: ValueError: row 3 is not an image (--verbose shows more)"
        assert "Traceback" not in errors and "in fails" not in caplog.text
        code, _, errors = run(capsys, step, "--config", toml, "--verbose")
        assert code == 1 and errors.splitlines()[-1].startswith("error: ValueError: row 3 is not an image")
        assert "in fails" in caplog.text  # the worker's traceback, which stands in Java's message
        assert "in of_" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("kind", [UserError, NotFetched])
def test_a_users_error_in_a_task_is_one(capsys, spark, toml, kind):
    def refuses(*_):
        raise kind("captions = ['?']: expected text, found none: write some")

    def refuses_batches(batches):
        for _ in batches:
            refuses()
        yield from ()

    def refuses_series(series: pd.Series) -> pd.Series:
        return refuses(series)

    def of_rdd(spark, config):
        spark.sparkContext.parallelize([3], 1).map(refuses).collect()

    def of_udf(spark, config):
        spark.range(3, 4).select(F.udf(refuses)("id")).collect()

    def of_pandas_udf(spark, config):
        spark.range(3, 4).select(F.pandas_udf(refuses_series, "long")("id")).collect()

    def of_map_in_arrow(spark, config):
        spark.range(3, 4).mapInArrow(refuses_batches, "id long").write.format("noop").mode("overwrite").save()

    for step in (of_rdd, of_udf, of_pandas_udf, of_map_in_arrow):
        code, out, errors = run(capsys, step, "--config", toml)
        lines = [line for line in errors.splitlines() if "INFO" not in line]
        assert (code, out, lines) == (2, [], ["error: captions = ['?']: expected text, found none: write some"])


def test_a_rank_that_fails_is_told_in_one_line(capsys, spark, toml):
    def fails(spark, config):
        raise ranks.RankFailure("run r: 1 attempts failed, the last one: rank 0: ValueError: odd")

    code, _, errors = run(capsys, fails, "--config", toml)
    line = "error: RankFailure: run r: 1 attempts failed, the last one: rank 0: ValueError: odd (--verbose shows more)"
    assert code == 1 and errors.splitlines()[-1] == line and "Traceback" not in errors


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


@pytest.mark.fault(
    "lake",
    "bytes of a dataset's file are damaged",
    "the job ends with one line that names the file",
)
def test_a_damaged_file_of_a_dataset_is_named_by_the_job_that_reads_it(capsys, spark, digits, toml, tmp_path):
    reads = lambda spark, config: splits.frame(spark, lakes.dataset_url(config), "train").collect()
    lake, name = damaged(tmp_path, digits, 4, 400)  # in the first page of the first column
    code, out, errors = run(capsys, reads, "--config", toml, "--set", f"lake={lake}")
    line = errors.splitlines()[-1]
    assert (code, out) == (1, []) and re.match(r"error: \w+: .+ \(file:/", line) and name in line
    assert "An error occurred while calling" not in line


@pytest.mark.long
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
    arguments = [sys.executable, str(script), "--config", toml, "--set", f"lake={lake}", "--verbose"]
    answer = subprocess.run(arguments, capture_output=True, text=True)
    line = answer.stderr.strip().splitlines()[-1]
    assert answer.returncode == 1 and answer.stdout == "" and "in reads" in answer.stderr
    assert re.match(rf"error: \w+: .*{name} is not a Parquet file", line)


@pytest.mark.slow
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


@pytest.mark.long
@pytest.mark.slow
def test_the_pipeline_goes_all_the_way_and_says_where_everything_is(capsys, spark, toml):
    code, (line,), _ = run(capsys, pipeline, "--config", toml, "--set", "run=whole", "--set", "dataset=whole-digits")
    result = json.loads(line)
    assert code == 0
    assert result["rows"] == 1797 and result["rejected"] == 0 and result["steps"] == 4 and result["images"] == 40
    assert {"fid", "fid_floor", "kid", "precision", "recall", "score", "classifier_accuracy"} <= result.keys()
    parts = ["start of Spark", "listing", "writing images", "training", "generating", "features of generated images"]
    assert [part for part in result["took"] if part in parts] == parts and min(result["took"].values()) >= 0
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


@pytest.mark.parametrize(
    "model, changes, message",
    [
        ("dcgan", {"generate": {"label": "3"}}, "generate.label = '3': model 'dcgan' of run 'early' takes seeds alone"),
        ("dcgan", {"generate": {"captions": ("a cat",)}}, "generate.captions = .*: model 'dcgan' .* leave it out"),
        ("dcgan", {"generate": {"part": "a"}}, "generate.part = 'a': model 'dcgan' .* leave it out"),
        ("dcgan", {"generate": {"checkpoint": 3}}, "generate.checkpoint = 3: run 'early' will have those at 2, 4"),
        ("dcgan", {"generate": {"append": True}}, "generate.append = true with tables = 'parquet'"),
        ("dcgan", {"generate": {"model": "nobody"}}, "generate.model = 'nobody': no version of it is promoted"),
        ("dcgan", {"generate": {"images": 3}}, "evaluate.neighbours = 3 with 3 generated images: expected more"),
        (
            "dcgan",
            {"ingest": {"height": 32}},
            r"ask for images of \(16, 16, 1\); section \[ingest\] makes \(32, 16, 1\)",
        ),
        ("dcgan", {"evaluate": {"dataset": "nothing"}}, "no dataset at .*/nothing: expected"),
        ("dcgan", {"train": {"validate_every": 2}}, "model 'dcgan' has nothing that is measured on held-out images"),
        (
            "dcgan",
            {"evaluate": {"features": "InceptionV3", "weights": "/nowhere/w.h5"}},
            "evaluate.weights = '/nowhere/w.h5': no such file",
        ),
        ("lenet", {}, "run 'early': model 'lenet' does not generate images"),
        ("cyclegan", {}, "model 'cyclegan' reads a, b; ingest.parts = '': ingest with ingest.parts"),
        ("cyclegan", {"ingest": {"parts": "edges"}}, "generate.part is empty: expected the domain to start from"),
        (
            "cyclegan",
            {"ingest": {"parts": "edges"}, "generate": {"part": "a"}, "evaluate": {"part": "a"}},
            "evaluate.part = 'a' with generate.part = 'a': expected the other one",
        ),
        ("cgan", {"ingest": {"parts": "labels", "labels": 20}}, "model 'cgan' reads labels; .* images without one"),
        ("stackgan2", {"ingest": {"height": 64, "width": 64}, "model": {"stage1": "nobody"}}, "no run at .*/nobody"),
        (
            "gan",
            {"ingest": {"height": 4, "width": 4}, "model": {"image_size": 4}},
            "evaluate.features = 'lenet': expected square images of 8 to 1024 pixels a side, the model's are 4 x 4",
        ),
    ],
)
def test_what_a_step_of_the_pipeline_would_refuse_is_told_before_the_first(spark, tmp_path, model, changes, message):
    with pytest.raises(UserError, match=message):
        pipeline(spark, replaced(make_config(str(tmp_path), model, "early"), **changes))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"generate": {"label": "nosuch"}}, "generate.label = 'nosuch': expected one of 0, 1, 2"),
        ({"evaluate": {"part": "a"}}, "evaluate.part = 'a': dataset .* has no parts"),
    ],
)
def test_what_hangs_on_the_dataset_is_told_before_the_training(spark, digits, lake, monkeypatch, changes, message):
    monkeypatch.setattr(driver, "train", lambda spark, config: pytest.fail("a training was paid for"))
    with pytest.raises(UserError, match=message):
        pipeline(spark, replaced(make_config(lake, "cgan", "early"), **changes))


def test_the_pipeline_and_its_steps_refuse_in_the_same_words(spark, digits, lake, monkeypatch):
    """As they call the same checks; the pipeline before a run, which is there with another config, goes on."""
    config = make_config(lake, "gan", "same-words", train={"steps": 2})
    train = driver.train
    train(spark, config)
    monkeypatch.setattr(driver, "train", lambda spark, config: pytest.fail("a training was paid for"))
    config = replaced(config, train={"seed": 7})
    for step in (pipeline, train):
        with pytest.raises(UserError, match="same-words exists with another config; .*config.train.seed: was 0, is 7"):
            step(spark, config)
    for step in (pipeline, generate.generate):
        with pytest.raises(UserError, match="generate.part = 'a': model 'gan' of run 'same-words' takes seeds alone"):
            step(spark, replaced(config, train={"seed": 0}, generate={"part": "a"}))


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


# --- the session -----------------------------------------------------------------------


def test_a_session_that_another_thread_began_is_used_and_stays(capsys, spark, toml):
    codes, applications = [], []

    def step(session, config):
        applications.append(session.sparkContext.applicationId)
        return {}

    thread = threading.Thread(target=lambda: codes.append(job.main(step, "A job.", ["--config", toml])))
    thread.start()
    thread.join()
    assert (codes, applications) == ([0], [spark.sparkContext.applicationId])
    assert spark.range(3).count() == 3  # it was not stopped


MASTER = """
import json, logging
from gan_spark import job
logging.basicConfig(level=logging.WARNING)
logging.getLogger("gan_spark").setLevel(logging.INFO)
spark = job.session("master")
print(json.dumps([spark.sparkContext.master, spark.sparkContext.defaultParallelism]))
"""


def environment(**variables: str) -> dict[str, str]:
    """That of a process of its own, which begins its own session."""
    others = ("SPARK_", "PYSPARK_", "MASTER", "LC_", "LANG")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    return {**kept, "SPARK_SUBMIT_OPTS": SHORT_LIVED, **variables}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["defaults", pytest.param("MASTER", marks=pytest.mark.long)])
def test_the_master_that_the_environment_configures_counts(tmp_path, how):
    (tmp_path / "spark-defaults.conf").write_text("# spark.master local[9]\nspark.master  local[3]\n")
    variables = {"SPARK_CONF_DIR": str(tmp_path)} if how == "defaults" else {"MASTER": "local[3]"}
    answer = subprocess.run(
        [sys.executable, "-c", MASTER], capture_output=True, text=True, cwd=ROOT, env=environment(**variables)
    )
    assert answer.stdout.splitlines()[-1:] == ['["local[3]", 3]'], answer.stderr
    assert re.search(r"session: Spark \S+ on master local\[3\]", answer.stderr)


@pytest.mark.parametrize(
    "variables, text, master, is_local",
    [
        ({}, "", "local[*]", True),
        ({}, "spark.driver.memory 1g\n  spark.master\tspark://host:7077\n", "spark://host:7077", False),
        ({}, "spark.master=yarn", "yarn", False),
        ({}, "#spark.master yarn\nspark.masters yarn\n", "local[*]", True),
        ({"MASTER": "yarn"}, "", "yarn", False),
        ({"MASTER": "yarn"}, "spark.master local[2]", "local[2]", True),
        ({"PYSPARK_SUBMIT_ARGS": "--master k8s://https://host pyspark-shell"}, "", "k8s://https://host", False),
        ({"PYSPARK_SUBMIT_ARGS": "--conf spark.master=yarn pyspark-shell"}, "spark.master local", "yarn", False),
    ],
)
def test_only_a_local_session_is_bound_to_loopback(monkeypatch, tmp_path, variables, text, master, is_local):
    class Builder(dict):
        def config(self, key, value):
            return Builder({**self, key: value})

        def master(self, master):
            raise AssertionError("Spark finds the master by itself")

    for name in ("MASTER", "PYSPARK_SUBMIT_ARGS", "SPARK_LOCAL_IP", "SPARK_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAVA_HOME", os.environ.get("JAVA_HOME", ""))
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    (tmp_path / "spark-defaults.conf").write_text(text)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    builder = job._configured(Builder(), ["a.jar"])
    assert job._master() == master
    assert builder == {"spark.jars": "a.jar", **({"spark.driver.host": "127.0.0.1"} if is_local else {})}
    assert (os.environ.pop("SPARK_LOCAL_IP", None) == "127.0.0.1") == is_local


@pytest.mark.parametrize("has_defaults", [True, False])
def test_the_defaults_of_a_spark_home_come_before_ours(monkeypatch, tmp_path, has_defaults):
    (tmp_path / "conf").mkdir()
    if has_defaults:
        (tmp_path / "conf/spark-defaults.conf").write_text("spark.master yarn")
    for name in ("MASTER", "PYSPARK_SUBMIT_ARGS", "SPARK_CONF_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAVA_HOME", os.environ.get("JAVA_HOME", ""))
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    monkeypatch.setenv("SPARK_HOME", str(tmp_path))
    job._configured(types.SimpleNamespace(config=lambda *_: None), [])
    assert job._master() == ("yarn" if has_defaults else "local[*]")
    assert os.environ.pop("SPARK_CONF_DIR", None) == (None if has_defaults else str(ROOT / "conf"))


# --- text ------------------------------------------------------------------------------


OVERRIDE = ("--set", "generate.captions=['ein grünes Dreieck']")


@pytest.mark.slow
@pytest.mark.parametrize(
    "locale, arguments, expected",
    [
        ("C", OVERRIDE, ["error: ", "Dreieck", "set LC_ALL=C.UTF-8"]),
        pytest.param("C", ("--set", "train.steps=7"), [r'"gr\u00fcnes Dreieck?"'], marks=pytest.mark.long),
        ("C.UTF-8", (*OVERRIDE, "--set", "generate.label=why?"), [r'"ein gr\u00fcnes Dreieck"', '"label": "why?"']),
    ],
)
def test_text_that_spark_submit_loses_is_refused_and_other_text_arrives(tmp_path, toml, locale, arguments, expected):
    import pyspark

    path = tmp_path / "text.toml"
    path.write_text(Path(toml).read_text().replace("captions = []", 'captions = ["grünes Dreieck?"]'), "utf-8")
    home = os.path.dirname(pyspark.__file__)
    answer = subprocess.run(
        [f"{home}/bin/spark-submit", str(ROOT / "jobs/generate.py"), "--config", path, *arguments, "--dry-run"],
        capture_output=True,
        encoding="utf-8",
        env=environment(
            LC_ALL=locale,
            SPARK_HOME=home,
            PYSPARK_PYTHON=sys.executable,
            JAVA_HOME=job.java_home() or os.environ.get("JAVA_HOME", ""),
        ),
    )
    refused = expected[0] == "error: "
    lines = [line for line in (answer.stdout + answer.stderr).splitlines() if line.startswith("error: ") == refused]
    assert answer.returncode == (2 if refused else 0) and (len(lines) == 1 or not refused)
    assert all(each in "\n".join(lines) for each in expected)


@pytest.mark.parametrize("text", ["a\udcfcb", "a\ufffdb"])
def test_text_that_is_no_text_is_refused(capsys, toml, text):
    code, _, errors = run(capsys, driver.train, "--config", toml, "--set", f"generate.label={text}")
    assert code == 2 and "found characters that were lost on their way" in errors and "LC_ALL=C.UTF-8" in errors
