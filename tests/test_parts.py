"""Datasets that are divided into parts: what goes where, and that models read both streams."""

import dataclasses

import numpy as np
import pytest
from conftest import make_config

from gan_spark import lake as lakes
from gan_spark.config import UserError
from gan_spark.data import images, ingest, parts, reader, schema, splits
from gan_spark.lake import tables
from gan_spark.runs import loading
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.training import driver

pytestmark = pytest.mark.slow


def write(spark, lake, name, **options):
    config = make_config(lake)
    config = dataclasses.replace(config, dataset=name, ingest=dataclasses.replace(config.ingest, **options))
    return lakes.dataset_url(config), ingest.ingest(spark, config)


def rows(spark, url):
    return {row["id"]: row for row in spark.read.parquet(url).collect()}


def pixels(row):
    return schema.unpack([row["image"]], (16, 16, 1), "raw")[0]


def test_recoloured_is_the_mapping_that_is_written_down():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    np.testing.assert_array_equal(parts.recoloured(image)[0, 0], [255 - 3, 5, 4 // 2])  # of the pixel to its right
    grey = np.array([[[1], [9]]], np.uint8)
    np.testing.assert_array_equal(parts.recoloured(grey)[0, :, 0], [246, 254])


def test_edges_are_black_lines_where_brightness_changes():
    image = np.zeros([32, 32, 3], np.uint8)
    image[:, 16:] = 200
    lines = parts.edges(image)
    assert lines.shape == (32, 32, 3) and set(np.unique(lines)) == {0, 255}
    columns = np.where((lines[:, :, 0] == 0).any(0))[0]
    assert len(columns) and abs(columns - 15.5).max() < 2.5


@pytest.fixture(scope="module")
def recoloured(spark, lake):
    return write(spark, lake, "digits-recoloured", parts="recoloured")


def test_no_training_image_is_in_both_domains_and_every_test_image_is(spark, recoloured):
    url, _ = recoloured
    found = rows(spark, url)
    by_split = {split: [id for id, row in found.items() if row["split"] == split] for split in schema.SPLITS}
    train = [id[2:] for id in by_split["train"]]
    assert len(train) == len(set(train)) and 0.4 < np.mean([id.startswith("a/") for id in by_split["train"]]) < 0.6
    test = {id[2:] for id in by_split["test"]}
    assert len(by_split["test"]) == 2 * len(test)
    assert not test & set(train)
    for id in list(test)[:20]:
        np.testing.assert_array_equal(pixels(found[f"b/{id}"]), parts.recoloured(pixels(found[f"a/{id}"])))
        assert found[f"a/{id}"]["part"] == "a" and found[f"a/{id}"]["label"] == found[f"b/{id}"]["label"]


def test_a_batch_holds_both_domains(recoloured):
    url, _ = recoloured
    batch = next(iter(reader.batches(url, "train", 32, parts=("a", "b"))))
    assert batch["a"]["image"].shape == batch["b"]["image"].shape == (32, 16, 16, 1)
    assert (
        float(batch["a"]["image"].numpy().mean()) < -0.2 and float(batch["b"]["image"].numpy().mean()) > 0.2
    )  # inverted


def test_classes_become_domains_and_other_classes_are_rejected(spark, lake):
    url, answer = write(spark, lake, "threes-and-eights", parts="classes", domains=("8", "3"))
    found = rows(spark, url).values()
    assert {(row["part"], row["label"]) for row in found} == {("a", 8), ("b", 3)}
    reasons = {row["reason"] for row in spark.read.parquet(answer["rejects"]).collect()}
    assert "class '0' is in neither domain" in reasons and answer["rows"] + answer["rejected"] == 1797


@pytest.mark.long
def test_labels_are_kept_by_as_many_of_each_class(spark, lake):
    url, answer = write(spark, lake, "digits-50-labels", parts="labels", labels=50)
    found = rows(spark, url).values()
    assert answer["rows"] == 1797 and answer["rejected"] == 0
    labelled = [row["label"] for row in found if row["split"] == "train" and row["part"] == "labelled"]
    assert [labelled.count(label) for label in range(10)] == [5] * 10
    assert {row["label"] for row in found if row["part"] == "unlabelled"} == {-1}
    assert {row["part"] for row in found if row["split"] != "train"} == {"labelled"}
    again = write(spark, lake, "digits-50-labels", parts="labels", labels=50)[1]
    assert again["fingerprint"] == answer["fingerprint"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"parts": "classes", "domains": ("1",)}, "expected two classes"),
        ({"parts": "labels"}, "ingest.labels = 0"),
        ({"parts": "labels", "labels": 51}, "does not divide by the 10 classes"),
        (
            {"parts": "labels", "labels": 10, "validation": 0.5, "test": 0.499999},
            "fewer training images than its share",
        ),
        ({"parts": "labels", "labels": 5000}, "fewer training images than its share"),
    ],
)
def test_parts_that_cannot_be_made_are_refused(spark, lake, options, message):
    with pytest.raises(UserError, match=message):
        write(spark, lake, "refused", **options)
    assert not lakes.exists(lakes.join(lake, "datasets", "refused"))


def test_a_model_that_reads_parts_says_how_to_ingest_them(spark, lake, digits):
    with pytest.raises(
        UserError,
        match=r"model 'cyclegan' reads a, b; dataset .* has image, label: ingest it with ingest.parts = 'classes'",
    ):
        driver.train(spark, make_config(lake, "cyclegan", run="no-parts"))


@pytest.mark.long
def test_a_translation_says_which_image_it_is_of_and_is_compared_with_the_truth(spark, lake, recoloured):
    from gan_spark.quality import evaluate, measures

    url, _ = recoloured
    config = dataclasses.replace(
        make_config(lake, "cyclegan", run="translates", generate={"images": 40, "batch_size": 16, "part": "a"}),
        dataset="digits-recoloured",
    )
    driver.train(spark, config)
    answer = generate.generate(spark, config)
    made = spark.read.parquet(answer["table"]).collect()
    found = rows(spark, url)
    assert answer["images"] == len(made) == 40
    assert {found[row["input"]]["part"] for row in made} == {"a"} and {
        found[row["input"]]["split"] for row in made
    } == {"test"}
    real = spark.read.parquet(*splits.files(url, "test", "b"))
    manifest = schema.read_manifest(url)
    pairs = measures.paired(real, spark.read.parquet(answer["table"]), "b")
    errors = measures.pair_errors(pairs, manifest)
    expected = np.mean(
        [
            np.abs(generate.images.decode_png(row["image"]) / 255 - pixels(found["b" + row["input"][1:]]) / 255).mean()
            for row in made
        ]
    )
    assert errors["pairs"] == 40 and errors["pair_l1"] == pytest.approx(expected, rel=1e-6)
    measured = evaluate.evaluate(
        spark,
        dataclasses.replace(
            config, evaluate=dataclasses.replace(config.evaluate, part="b", classifier_steps=20, classifier_batch=16)
        ),
    )
    assert measured["pair_l1"] == pytest.approx(expected, rel=1e-4) and measured["pairs"] == 40
    # The same by hand: the classifier's answer to each translation against the label of the image that it is of.
    network = evaluate.features.network(
        spark,
        dataclasses.replace(
            config, evaluate=dataclasses.replace(config.evaluate, part="b", classifier_steps=20, classifier_batch=16)
        ),
    )
    answers = evaluate.features.function(network)(np.stack([generate.images.decode_png(row["image"]) for row in made]))[
        1
    ].argmax(1)
    assert measured["labels_kept"] == pytest.approx(
        np.mean([answer == found[row["input"]]["label"] for answer, row in zip(answers, made, strict=True)]), abs=1e-6
    )
    # Both directions in one table: only one of them counts; and none, where the other is asked for alone.
    back = generate.generate(
        spark, dataclasses.replace(config, generate=dataclasses.replace(config.generate, part="b", table="back"))
    )
    both = dataclasses.replace(
        config,
        generate=dataclasses.replace(config.generate, table="both"),
        evaluate=dataclasses.replace(config.evaluate, part="b", classifier_steps=20, classifier_batch=16),
    )
    with tables.replacing(
        spark.read.parquet(back["table"]).union(spark.read.parquet(answer["table"])),
        lakes.table_url(both),
        generate.KIND,
    ):
        pass
    again = evaluate.evaluate(spark, both)
    assert (
        again["generated_images"] == 40
        and again["fid"] == pytest.approx(measured["fid"], rel=1e-6)
        and again["labels_kept"] == measured["labels_kept"]
    )
    with pytest.raises(UserError, match="evaluate.part = 'b': table .* has no image made from one of part 'a'"):
        evaluate.evaluate(spark, dataclasses.replace(both, generate=dataclasses.replace(both.generate, table="back")))
    with pytest.raises(UserError, match="expected the domain to start from, one of a, b"):
        generate.generate(spark, dataclasses.replace(config, generate=dataclasses.replace(config.generate, part="")))


def test_a_label_or_each_in_turn(spark, lake, digits):
    config = make_config(lake, "cgan", run="conditional", generate={"images": 20, "batch_size": 16})
    driver.train(spark, config)
    table = spark.read.parquet(generate.generate(spark, config)["table"]).orderBy("seed").collect()
    assert [row["input"] for row in table] == [str(i % 10) for i in range(20)]
    sevens = make_config(lake, "cgan", run="conditional", generate={"images": 20, "batch_size": 16, "label": "7"})
    asked = spark.read.parquet(generate.generate(spark, sevens)["table"]).orderBy("seed").collect()
    assert {row["input"] for row in asked} == {"7"}
    assert bytes(asked[7]["image"]) == bytes(table[7]["image"]) and bytes(asked[8]["image"]) != bytes(table[8]["image"])
    with pytest.raises(UserError, match="generate.label = 'seven': expected one of 0, 1"):
        generate.generate(spark, make_config(lake, "cgan", run="conditional", generate={"label": "seven"}))
    with pytest.raises(UserError, match="its model takes label; the rows have no column 'label'"):
        generate.generated(spark.range(3).withColumnRenamed("id", "seed"), Run.of(config), config.generate)


@pytest.mark.long
def test_an_ssgan_is_a_stage_of_a_spark_ml_pipeline(spark, lake, tmp_path):
    from pyspark.ml import Pipeline, PipelineModel
    from pyspark.ml.evaluation import MulticlassClassificationEvaluator

    from gan_spark.ml import ImageClassifier

    url, _ = write(spark, lake, "digits-100-labels", parts="labels", labels=100, fit="pad")
    config = dataclasses.replace(
        make_config(lake, "ssgan", run="classifies-too", train={"steps": 4}), dataset="digits-100-labels"
    )
    driver.train(spark, config)
    run = Run.of(config).url
    test = spark.read.parquet(url).where("split = 'test'").select("id", "image", "label")
    tall = np.random.default_rng(0).integers(0, 256, (24, 12, 1), np.uint8)
    others = [("null", None, 0), ("text", bytearray(b"text"), 0), ("tall", bytearray(images.encode_png(tall)), 0)]
    bad = spark.createDataFrame(others, "id string, image binary, label int")
    pipeline = Pipeline(stages=[ImageClassifier(run=run)]).fit(test)
    pipeline.write().overwrite().save(str(tmp_path / "pipeline"))
    answers = PipelineModel.load(str(tmp_path / "pipeline")).transform(test.union(bad))
    kept = {row["id"]: row for row in answers.collect()}
    assert kept["null"]["prediction"] is None and kept["text"]["probability"] is None
    skipped = ImageClassifier(run=run, handleInvalid="skip").transform(bad).collect()
    assert [(row["id"], row["prediction"]) for row in skipped] == [("tall", kept["tall"]["prediction"])]
    model = loading.load_model(run, 4, Run(run).record())
    for id in [*list(kept)[:5], "tall"]:
        shown = images.resize(tall, 16, 16, "pad") if id == "tall" else pixels(kept[id])  # as the dataset was made
        expected = model.classify(images.to_unit(shown[None])).numpy()[0]
        np.testing.assert_allclose(kept[id]["probability"].toArray(), expected, atol=1e-5)
        assert kept[id]["prediction"] == expected.argmax()
    accuracy = MulticlassClassificationEvaluator(labelCol="label", metricName="accuracy").evaluate(
        answers.where("prediction is not null and id != 'tall'").withColumn("label", answers["label"].cast("double"))
    )
    right = [row["prediction"] == row["label"] for id, row in kept.items() if id not in ("null", "text", "tall")]
    assert accuracy == pytest.approx(np.mean(right))
    assert len(ImageClassifier(run=run).classes()) == 10
    with pytest.raises(UserError, match="expected binary .* found int"):
        ImageClassifier(run=run, inputCol="label").transform(test)
