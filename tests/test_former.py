"""What version 0.1.0 wrote still works: its dataset, runs, registry and Spark ML pipeline, in golden/former."""

import json
import shutil

import pytest
from conftest import ROOT
from pyspark.ml import PipelineModel

from gan_spark import config, models
from gan_spark.data import images, reader, schema
from gan_spark.lake import tables
from gan_spark.runs import catalogue, registry
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.training import driver

pytestmark = pytest.mark.slow

FORMER = ROOT / "tests" / "golden" / "former"
EXPECTED = json.loads((FORMER / "expected.json").read_text())


@pytest.fixture(scope="module")
def former(tmp_path_factory) -> str:
    """A copy of that lake, at a path of its own; URLs in its files are of the lake `file:///former-lake`."""
    root = tmp_path_factory.mktemp("former") / "lake"
    shutil.copytree(FORMER / "lake", root)
    for path in root.rglob("*"):
        if path.is_file() and path.suffix != ".parquet" and b"file:///former-lake" in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(b"file:///former-lake", f"file://{root}".encode()))
    return str(root)


def former_config(lake: str, **sections: dict) -> config.Config:
    record = Run.named(lake, "gan").record()["config"]
    table = {"run": "gan", "dataset": "digits", "lake": lake, "model": record["model"], "train": record["train"]}
    return config.replaced(config.parse(table, models.config_class), **sections)


def test_a_dataset_of_before_is_read(spark, former):
    url = f"file://{former}/datasets/digits"
    manifest = schema.read_manifest(url)
    assert manifest.classes == ("one", "two", "zero") and manifest.rejected == 1
    assert sum(len(batch["image"]) for batch in reader.once(url, "train", 4)) == manifest.rows["train"]
    assert spark.read.parquet(url).count() == sum(manifest.rows.values())
    (reject,) = spark.read.parquet(f"{url}.rejected").collect()
    assert reject["id"] == "one/broken.png" and reject["reason"].startswith("not an image")


def test_a_run_of_before_generates_the_images_of_before_and_goes_on(spark, former):
    made = generate.generate(spark, former_config(former, generate={"images": 8}))
    rows = spark.read.parquet(made["table"]).collect()
    assert {str(row["seed"]): images.decode_png(row["image"]).tolist() for row in rows} == EXPECTED["images"]
    assert driver.train(spark, former_config(former, train={"steps": 6}))["steps"] == 6


@pytest.fixture
def moved(tmp_path) -> str:
    """A copy of that lake as it is: there is none any more at `file:///former-lake`, which URLs in its files are of."""
    shutil.copytree(FORMER / "lake", tmp_path / "lake")
    return str(tmp_path / "lake")


def test_a_lake_of_before_that_was_moved_opens_where_it_is(spark, moved):
    config = former_config(moved, generate={"images": 8})
    url = generate.generate(spark, config)["table"]
    rows = spark.read.parquet(url)
    assert {str(row["seed"]): images.decode_png(row["image"]).tolist() for row in rows.collect()} == EXPECTED["images"]
    written = [
        row.asDict() | {"run": "file:///former-lake/runs/gan"} for row in rows.collect()
    ]  # as versions before did
    with tables.replacing(spark.createDataFrame(written, rows.schema), url, generate.KIND):
        pass
    assert {row["run"] for row in generate.images_of(spark, config).collect()} == {f"file://{moved}/runs/gan"}
    assert catalogue.lineage(moved, "gan")["dataset"] == f"file://{moved}/datasets/digits"
    assert driver.train(spark, former_config(moved, train={"steps": 6}))["steps"] == 6


def test_a_registry_of_before_is_read_and_written(former):
    assert [row["run"] for row in catalogue.runs(former)] == ["gan", "lenet"]
    assert registry.current(former, "digits")["run"] == "gan"
    assert registry.promote(former, "lenet", "digits")["version"] == 2
    assert registry.rollback(former, "digits")["run"] == "gan"
    assert "digits v1" in catalogue.lineage(former, "gan")["registered"]


def test_a_pipeline_of_before_is_loaded_and_answers_as_before(spark, former):
    pipeline = PipelineModel.load(f"file://{former}/pipelines/digits")
    frame = spark.read.parquet(f"file://{former}/datasets/digits/split=train")
    rows = pipeline.transform(frame).select("id", "prediction", "lenet").orderBy("id").collect()
    assert [list(row) for row in rows] == EXPECTED["predictions"]


def test_a_stage_of_before_gives_null_for_what_is_no_image(spark, former):
    stages = PipelineModel.load(f"file://{former}/pipelines/digits").stages
    rows = spark.createDataFrame([(None,), (bytearray(b"no image"),)], "image binary")
    for stage, column in ((stages[0], "features"), (stages[2], "lenet")):
        assert [row[column] for row in stage.transform(rows).collect()] == [None, None]
        assert stage.getHandleInvalid() == "keep" and stage.rejected == 1


@pytest.mark.long
def test_a_pipeline_of_a_lake_that_was_moved_finds_its_run(spark, moved, tmp_path):
    """One that a version before saved, and one of this version."""
    pipeline = PipelineModel.load(f"file://{moved}/pipelines/digits")
    pipeline.save(f"file://{moved}/pipelines/again")
    shutil.move(moved, tmp_path / "further")
    again = PipelineModel.load(f"file://{tmp_path}/further/pipelines/again")
    frame = spark.read.parquet(f"file://{tmp_path}/further/datasets/digits/split=train")
    rows = again.transform(frame).select("id", "prediction", "lenet").orderBy("id").collect()
    assert [list(row) for row in rows] == EXPECTED["predictions"]
