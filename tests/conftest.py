"""One Spark session and one small dataset for all tests: each costs seconds."""

import json
import os
from pathlib import Path

import pytest
from pyspark.sql import DataFrame

from gan_spark import process

# JVMs of tests live for seconds: what they save by compiling less is half of their processors' time.
SHORT_LIVED = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
os.environ.setdefault("SPARK_SUBMIT_OPTS", SHORT_LIVED)
os.environ.setdefault("SPARK_DAEMON_JAVA_OPTS", SHORT_LIVED)
process.prepare()  # before TensorFlow is imported, as in a job

from gan_spark import config, job, models  # noqa: E402
from gan_spark.check import MODEL_CONFIGS, USED_MODELS, make_batch, make_inputs, make_model  # noqa: E402, F401
from gan_spark.data import ingest  # noqa: E402
from gan_spark.ml import bigdl  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


# These take longest; begun first, they leave neither of two processes waiting for the other at the end.
LONGEST = (
    *("test_trainer", "test_lakes", "test_transfer", "test_cluster", "test_evaluate", "test_extending"),
    *(
        "test_snapshots",
        "test_kills",
        "test_stream",
        "test_score",
        "test_serve",
        "test_export",
        "test_challenge",
        "test_hdfs",
    ),
    *("test_command_line", "test_notebooks", "test_stackgan", "test_ml", "test_ingest", "test_parts"),
    *(
        "test_signals",
        "test_serving_walk",
        "test_ui",
        "test_deploy",
        "test_doctor",
        "test_lambda",
        "test_srgan",
        "test_tracking",
    ),
    *("test_jobs", "test_docs", "test_scala", "test_lenet", "test_moved_lakes", "test_process", "test_generate"),
    *("test_hostile_requests", "test_report"),
)


def pytest_collection_modifyitems(items):
    """What is long is slow too, so that `-m "not slow"` is quick without a further word."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker("slow")
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def spark():
    session = job.session("tests", bigdl.jars())
    yield session
    session.stop()


@pytest.fixture
def default_batches(spark):
    """The session hands Python as many rows at once as Spark does where nobody says anything."""
    key, before = (
        "spark.sql.execution.arrow.maxRecordsPerBatch",
        spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch"),
    )
    spark.conf.set(key, "10000")
    yield key
    spark.conf.set(key, before)


@pytest.fixture
def handed(tmp_path, monkeypatch, default_batches):
    """A function that tells how many rows functions of frames were handed at once so far."""
    plain, folder = DataFrame.mapInPandas, tmp_path / "handed"
    folder.mkdir()

    def watched(frame, function, schema):
        def work(frames):
            def seen():
                for rows in frames:
                    with open(f"{folder}/{os.getpid()}", "a") as log:
                        log.write(f"{len(rows)}\n")
                    yield rows

            return function(seen())

        return plain(frame, work, schema)

    monkeypatch.setattr(DataFrame, "mapInPandas", watched)
    return lambda: [int(line) for path in folder.iterdir() for line in path.read_text().split()]


@pytest.fixture(scope="session")
def lake(tmp_path_factory) -> str:
    """A lake that holds the packaged digits at 16x16 as dataset `digits`, in at least 8 row groups a split."""
    return str(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="session")
def digits(spark, lake) -> str:
    """URL of the dataset `digits`."""
    return ingest.ingest(spark, make_config(lake))["dataset"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.exists():
        pytest.skip(f"real images are not here: no folder {SHARED}")
    return SHARED


def make_config(lake: str, model: str = "dcgan", run: str = "run", **sections: dict) -> config.Config:
    """A config on the 16x16 digits; `sections` update its sections, for instance train={"steps": 3}."""
    made = config.parse(
        {
            "run": run,
            "dataset": "digits",
            "lake": lake,
            "ingest": {
                "source": "digits",
                "height": 16,
                "width": 16,
                "validation": 0.1,
                "test": 0.2,
                "planned_workers": 2,
            },
            "model": MODEL_CONFIGS[model],
            "train": {
                "steps": 4,
                "batch_size": 16,
                "log_every": 2,
                "checkpoint_every": 2,
                "sample_every": 4,
                "launcher": "local",
            },
        },
        models.config_class,
    )
    return config.replaced(made, **sections)


def write_config(folder: Path, made: config.Config) -> str:
    """The config as a file, for a job of its own; its path."""
    table = config.resolved(made)
    sections = {key: table.pop(key) for key in list(table) if isinstance(table[key], dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    path = folder / "run.toml"
    path.write_text("\n".join(lines))
    return str(path)
