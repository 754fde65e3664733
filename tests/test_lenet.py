"""BigDL's LeNet through BigDL itself: trained, resumed, saved, scored, and the golden file that the Scala tests read
too.
"""

import base64
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, make_config
from pyspark.sql import functions as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gan_spark import lake as lakes
from gan_spark import models
from gan_spark.config import LeNet, TaskFailure, UserError, parse
from gan_spark.ml import ImageClassifier, bigdl, columns
from gan_spark.runs.store import Run

pytestmark = pytest.mark.slow

GOLDEN = ROOT / "tests" / "golden" / "lenet.json"


def lenet_config(lake: str, run: str = "bigdl", **values):
    return parse(
        {
            "run": run,
            "dataset": "digits",
            "lake": lake,
            "lenet": {"epochs": 2, "batch_size": 64, "hidden": 16, "rate": 0.2, **values},
        },
        models.config_class,
    )


@pytest.fixture(scope="module")
def trained(spark, lake, digits) -> dict:
    return bigdl.lenet(spark, lenet_config(lake))


def test_it_learns_real_digits_and_writes_its_predictions(spark, digits, trained):
    assert trained["epochs"] == 2 and trained["accuracy"] > 0.5 and trained["validation_accuracy"] > 0.5
    table = spark.read.parquet(trained["predictions"])
    truth = spark.read.parquet(digits).where("split = 'test'").select("id", F.col("label").alias("truth"))
    joined = table.join(truth, "id")
    assert joined.count() == table.count() == truth.count() == trained["images"]
    assert joined.where("label = truth").count() == trained["images"]
    assert joined.where("prediction = label").count() == pytest.approx(trained["accuracy"] * trained["images"])
    row = table.first()
    assert row["prediction"] == int(np.argmax(row["log_probabilities"])) and np.exp(
        row["log_probabilities"]
    ).sum() == pytest.approx(1, abs=1e-4)


def test_its_summaries_open_in_tensorboard(trained):
    for part, tag in (("train", "Loss"), ("validation", "Top1Accuracy")):
        events = EventAccumulator(lakes.filesystem(lakes.join(trained["run"], "events", part))[1]).Reload()
        values = [event.value for event in events.Scalars(tag)]
        assert len(values) >= 2
        assert part == "train" or values[-1] == pytest.approx(trained["validation_accuracy"])


def test_it_resumes_and_refuses_another_config(spark, lake, trained):
    again = bigdl.train(spark, lenet_config(lake, epochs=3))
    assert again["epochs"] == 3 and Run(trained["run"]).checkpoints() == [3]
    assert [line["step"] for line in Run(trained["run"]).metrics()] == [1, 2, 3]
    with pytest.raises(UserError, match="config.lenet.rate: was 0.2, is 0.1"):
        bigdl.train(spark, lenet_config(lake, rate=0.1))


def test_a_run_that_is_removed_meanwhile_stays_removed(spark, lake, digits, monkeypatch):
    config, make = lenet_config(lake, run="bigdl-removed", epochs=1), bigdl._optimizer

    def removes(*arguments):
        lakes.remove(Run.of(config).url)
        return make(*arguments)

    monkeypatch.setattr(bigdl, "_optimizer", removes)
    with pytest.raises(TaskFailure, match="bigdl-removed was taken over by another job, or removed; this one stops"):
        bigdl.train(spark, config)
    assert not lakes.exists(Run.of(config).url)


def test_a_resumed_rate_goes_on_where_it_was():
    options = LeNet(rate=0.2, decay=0.01)
    rate, decay = bigdl.rate_after(options, 300)
    assert rate / (1 + decay * 50) == pytest.approx(0.2 / (1 + 0.01 * 350))


def test_the_golden_file(spark, tmp_path):
    bigdl.start(spark)
    golden = json.loads(GOLDEN.read_text())
    for kind in ("bigdl", "bin"):
        (tmp_path / f"lenet.{kind}").write_bytes(base64.b64decode(golden[kind]))
    model = bigdl.load(str(tmp_path / "lenet"))
    rows = [(row["id"], row["prediction"], bytearray(base64.b64decode(row["image"]))) for row in golden["rows"]]
    found = {
        row["id"]: row
        for row in bigdl.predict(
            model, spark.createDataFrame(rows, "id string, label int, image binary"), tuple(golden["shape"]), 10
        ).collect()
    }
    assert len(found) == len(golden["rows"]) and len({row["prediction"] for row in golden["rows"]}) > 3
    for row in golden["rows"]:
        assert found[row["id"]]["prediction"] == row["prediction"]
        np.testing.assert_allclose(found[row["id"]]["log_probabilities"], row["log_probabilities"], atol=1e-4)


def test_the_network_is_bigdls_lenet(spark):
    bigdl.start(spark)
    model = bigdl.network((28, 28, 1), 10)
    assert sum(weight.size for weight in model.get_weights()) == (6 * 25 + 6) + (12 * 6 * 25 + 12) + (
        12 * 4 * 4 * 100 + 100
    ) + (100 * 10 + 10)
    output = model.forward(np.random.default_rng(0).uniform(-1, 1, [3, 1, 28, 28]).astype(np.float32))
    assert output.shape == (3, 10) and np.exp(output).sum(1) == pytest.approx(1, abs=1e-5)


def test_colour_goes_channel_by_channel(spark):
    pixels = np.random.default_rng(0).integers(0, 256, [20, 16, 3], np.uint8)
    from gan_spark.data import schema

    frame = spark.createDataFrame(
        [(bytearray(schema.npy_header(pixels.shape) + pixels.tobytes()), 4)], "image binary, label int"
    )
    assert np.array_equal(columns.pixels(frame.first()["image"]), pixels)
    sample = bigdl.samples(frame).first()
    made = np.asarray(sample.features[0].storage).reshape(sample.features[0].shape)
    np.testing.assert_allclose(made, pixels.transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    assert sample.label.storage[0] == 5


def test_without_bigdl_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bigdl", None)
    with pytest.raises(UserError, match=r"BigDL is not installed: .*; install gan-spark\[bigdl\]"):
        bigdl.jars()


def test_what_cannot_be_done_is_one_clear_error(spark, lake, digits, trained, tmp_path):
    with pytest.raises(UserError, match="without BigDL's jars; start it with --jars .*bigdl-dllib"):
        bigdl.start(SimpleNamespace(_jvm=spark._jvm.nothing))
    with pytest.raises(UserError, match="does not divide by the session's"):
        bigdl.train(spark, lenet_config(lake, run="other", batch_size=65))
    with pytest.raises(UserError, match="none.bigdl: no such file"):
        bigdl.load(str(tmp_path / "none"))
    for kind in ("bigdl", "bin"):
        (tmp_path / f"other.{kind}").write_bytes(b"from elsewhere")
    with pytest.raises(UserError, match="other.bigdl: not a model in BigDL's format") as caught:
        bigdl.load(str(tmp_path / "other"))
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(UserError, match="at least 16 x 16"):
        bigdl.network((12, 12, 1), 10)
    frame = spark.read.parquet(digits).limit(2)
    with pytest.raises(UserError, match=r"does not take images of \(28, 28, 1\)"):
        bigdl.predict(bigdl.network((16, 16, 1), 10), frame, (28, 28, 1), 10)
    with pytest.raises(UserError, match="gives 7 scores; the dataset has 10 classes"):
        bigdl.predict(bigdl.network((16, 16, 1), 7), frame, (16, 16, 1), 10)
    with pytest.raises(UserError, match="no run at"):
        bigdl.score(spark, lenet_config(lake, run="nothing"))
    with pytest.raises(UserError, match="bigdl_lenet"):
        ImageClassifier(run=trained["run"]).transform(frame)
    assert make_config(lake).lenet.epochs == 20
