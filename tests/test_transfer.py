"""Featurizing, fine-tuning and predicting as jobs, on real digits and small networks."""

import http.server
import io
import json
import threading

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_config
from PIL import Image
from pyspark.ml import PipelineModel

from gan_spark import models
from gan_spark.config import UserError, parse
from gan_spark.data import ingest, schema, splits
from gan_spark.ml import DeepImageFeaturizer, accuracy, featurize, finetune, predict
from gan_spark.runs import loading
from gan_spark.runs.store import Run
from gan_spark.training import driver

pytestmark = pytest.mark.slow


def classifier_config(lake: str, run: str = "fine", **sections):
    made = {
        "run": run,
        "dataset": "digits-32",
        "lake": lake,
        "ingest": {"source": "digits", "height": 32, "width": 32, "validation": 0.1, "test": 0.2, "planned_workers": 2},
        "model": {
            "name": "classifier",
            "image_size": 32,
            "channels": 1,
            "network": "MobileNetV2",
            "weights": "",
            "hidden": 16,
            "head_steps": 0,
            "last_layers": 3,  # to trace the gradient of all of them takes a minute
            "batch_norm": "trained",
            "rate": 0.05,
            "rotation": 0.0,
            "shift": 0.0,
            "shear": 0.0,
            "zoom": 0.0,
            "flip": False,
        },
        "train": {
            "steps": 6,
            "batch_size": 32,
            "log_every": 3,
            "checkpoint_every": 100,
            "sample_every": 100,
            "launcher": "local",
            "validate_every": 2,
            "keep": 1,
        },
    }
    for name, values in sections.items():
        made[name] = {**made.get(name, {}), **values}
    return parse(made, models.config_class)


@pytest.fixture(scope="module")
def fine(spark, tmp_path_factory) -> tuple[str, dict]:
    """(a lake with a fine-tuned run, what the job returned)."""
    lake = str(tmp_path_factory.mktemp("fine"))
    ingest.ingest(spark, classifier_config(lake))
    return lake, finetune.finetune(spark, classifier_config(lake, finetune={"balance": True}))


def test_finetune_measures_its_best_checkpoint_on_the_test_split(spark, fine):
    lake, result = fine
    assert result["steps"] == 6 and result["best_step"] in (2, 4, 6) and 0 <= result["best_accuracy"] <= 1
    test = schema.read_manifest(f"file://{lake}/datasets/digits-32").rows["test"]
    confusion = result["confusion"]
    assert result["images"] == test == sum(sum(row.values()) for row in confusion.values())
    assert result["accuracy"] == pytest.approx(sum(confusion[name][name] for name in confusion) / test)
    lines = Run(result["run"]).metrics()
    measured = {line["step"]: line["validation_accuracy"] for line in lines if "validation_accuracy" in line}
    assert (
        set(measured) == {2, 4, 6}
        and max(measured.values()) == result["best_accuracy"] == measured[result["best_step"]]
    )
    # The newest one, and the best one at the time it was written.
    assert {result["best_step"], 6} <= set(Run(result["run"]).checkpoints()) and len(
        Run(result["run"]).checkpoints()
    ) <= 2
    weights = Run(result["run"]).record()["config"]["model"]["class_weights"]
    assert len(weights) == 10 and all(0.8 < weight < 1.2 for weight in weights) and len(set(weights)) > 1


def test_its_weights_are_a_featurizers(spark, fine):
    lake, result = fine
    config = classifier_config(
        lake, run="features", featurize={"network": "MobileNetV2", "weights": result["weights"], "iterations": 3}
    )
    small = spark.read.parquet(f"{lake}/datasets/digits-32/split=test").limit(6)
    made = DeepImageFeaturizer(modelName="MobileNetV2", weights=result["weights"]).transform(small)
    assert len(made.first()["features"]) == 1280
    network = tf.keras.applications.MobileNetV2(weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3))
    network.load_weights(result["weights"].removeprefix("file://"))
    run = Run(result["run"])
    trained = loading.load_model(run.url, run.preferred(), run.record()).network
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), trained.get_weights(), strict=True))
    with pytest.raises(UserError, match="has no images|no dataset"):
        featurize.featurize(
            spark, parse({**json.loads(json.dumps({"run": "x", "dataset": "none", "lake": lake}))}, models.config_class)
        )
    assert config.featurize.weights == result["weights"]


@pytest.mark.long
def test_featurize_saves_a_pipeline_that_scores_again(spark, digits, lake):
    config = parse(
        {
            "run": "features",
            "dataset": "digits",
            "lake": lake,
            "featurize": {"network": "MobileNetV2", "weights": "", "iterations": 5},
        },
        models.config_class,
    )
    # The whole dataset would take a minute at 224 x 224.
    whole = splits.frame
    try:
        splits.frame = lambda spark, url, split: whole(spark, url, split).limit(8)
        result = featurize.featurize(spark, config)
        again = PipelineModel.load(result["pipeline"]).transform(splits.frame(spark, digits, "test"))
        assert accuracy.agreement(again, schema.read_manifest(digits).classes) == {
            key: result[key] for key in ("images", "accuracy", "confusion")
        }
    finally:
        splits.frame = whole
    assert result["images"] == 8


@pytest.mark.parametrize("labels, expected", [([0, 0, 0, 1], (4 / 6, 2.0, 0.0)), ([0, 1, 2], (1.0, 1.0, 1.0))])
def test_balanced_weights_make_every_class_count_the_same(spark, labels, expected):
    frame = spark.createDataFrame([(label,) for label in labels], "label int")
    assert finetune.balanced(frame, 3) == pytest.approx(expected, abs=1e-5)


def test_agreement_counts_each_pair(spark):
    frame = spark.createDataFrame([(0, 0.0), (0, 1.0), (1, 1.0), (1, None)], "label int, prediction double")
    assert accuracy.agreement(frame, ("a", "b")) == {
        "images": 3,
        "accuracy": 2 / 3,
        "confusion": {"a": {"a": 1, "b": 1}, "b": {"a": 0, "b": 1}},
    }


# --- prediction ------------------------------------------------------------------------


def png(value: int, side: int = 40) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full([side, side], value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def predicted(spark, lake, source, **more):
    return predict.predict(
        spark, classifier_config(lake, predict={"input": str(source), **more.pop("predict", {})}, **more)
    )


def test_one_file(spark, fine, tmp_path):
    (tmp_path / "a.png").write_bytes(png(200))
    result = predicted(spark, fine[0], tmp_path / "a.png", predict={"top": 2})
    assert [set(each) for each in result["predictions"]] == [{"class", "probability"}] * 2
    assert result["predictions"][0]["probability"] >= result["predictions"][1]["probability"]


def test_a_folder_becomes_a_table_with_null_for_what_cannot_be_read(spark, fine, tmp_path):
    for name, data in {
        "a.png": png(200),
        "b/c.png": png(20),
        "bad.png": b"no image",
        "cut.png": png(3)[:40],
        "huge.png": png(9) + bytes(2 * 2**20),
        "b/_d.png": png(20),
        ".e/f #%.png": png(20),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    result = predicted(spark, fine[0], tmp_path, ingest={"max_file_mb": 1})
    assert (result["images"], result["rejected"]) == (4, 3) and sum(result["classes"].values()) == 4
    rows = {row["id"].rsplit("/", 1)[1]: row for row in spark.read.parquet(result["predictions"]).collect()}
    assert {name for name, row in rows.items() if row["class"] is None} == {"bad.png", "cut.png", "huge.png"}
    assert sum(rows["a.png"]["probabilities"]) == pytest.approx(1, abs=1e-4)


def test_a_url(spark, fine):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(png(200) if self.path == "/a.png" else b"")

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert len(predicted(spark, fine[0], f"{url}/a.png")["predictions"]) == 3
        with pytest.raises(UserError, match="cannot be fetched"):
            predicted(spark, fine[0], f"{url}/b.png")
    finally:
        server.shutdown()
        server.server_close()


def test_wrong_inputs_are_clear_errors(spark, fine, tmp_path, lake, digits):
    (tmp_path / "bad.png").write_bytes(b"no image")
    for source, message in (
        ("", "predict.input is empty"),
        (tmp_path / "none.png", "no such file or folder"),
        (tmp_path / "bad.png", "bad.png: not an image"),
    ):
        with pytest.raises(UserError, match=message):
            predicted(spark, fine[0], source)
    with pytest.raises(UserError, match="expected 'classifier'"):
        finetune.finetune(spark, make_config(lake, "dcgan"))


def test_finetune_tells_of_a_dataset_without_a_test_split_before_it_trains(spark, tmp_path, monkeypatch):
    config = classifier_config(str(tmp_path), ingest={"height": 8, "width": 8, "test": 0.0})
    ingest.ingest(spark, config)
    monkeypatch.setattr(driver, "train", lambda spark, config: pytest.fail("a training was paid for"))
    with pytest.raises(UserError, match="digits-32@1: its split 'test' has no images"):
        finetune.finetune(spark, config)


# --- early stopping, in the trainer ----------------------------------------------------


@pytest.mark.long
def test_training_stops_when_nothing_gets_better_and_stays_stopped(spark, fine):
    lake, _ = fine
    config = classifier_config(
        lake,
        run="still",
        model={"rate": 0.0, "batch_norm": "frozen", "last_layers": 1},
        train={"steps": 40, "validate_every": 2, "patience": 2},
    )
    result = driver.train(spark, config)
    assert result["steps"] == 6 and result["best_step"] == 2  # the same at 4 and 6
    again = driver.train(spark, config)
    assert again["steps"] == 6 and again["checksum"] == result["checksum"]


@pytest.mark.parametrize(
    "model, train, message",
    [
        ("dcgan", {"validate_every": 2}, "'dcgan' has nothing that is measured"),
        ("lenet", {"patience": 2}, "patience = 2 with train.validate_every = 0"),
    ],
)
def test_what_cannot_be_validated_is_a_clear_error(spark, digits, lake, model, train, message):
    with pytest.raises(UserError, match=message):
        driver.train(
            spark,
            parse(
                {
                    **json.loads(json.dumps(driver.resolved(make_config(lake, model)))),
                    "train": {"launcher": "local", **train},
                },
                models.config_class,
            ),
        )
