"""Quality measures against closed forms, then through Spark."""

import numpy as np
import pytest

from conftest import make_config
from gan_spark import evaluate, features, generate, images, lake, schema, trainer
from gan_spark.config import UserError
from gan_spark.evaluate import Moments


def normal(count, mean, deviation, seed=0):
    return np.random.default_rng(seed).normal(mean, deviation, [count, 3])


def test_moments_merge_to_those_of_the_whole():
    values = normal(100, 5.0, 2.0) + 1e4
    parts = [Moments.of(part) for part in np.split(values, [1, 40, 77])]
    merged = parts[0].merge(parts[1]).merge(parts[2].merge(parts[3]))
    assert merged.count == 100
    np.testing.assert_allclose(merged.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, np.cov(values.T), rtol=1e-8)


def test_frechet_distance_of_known_gaussians():
    """|m1 - m2|^2 + sum (s1 - s2)^2 for diagonal covariances."""
    diagonal = lambda mean, deviations: Moments(2, np.array(mean), np.diag(np.square(deviations)))
    a, b = diagonal([0.0, 1.0], [1.0, 2.0]), diagonal([3.0, 1.0], [2.0, 0.5])
    assert evaluate.frechet_distance(a, b) == pytest.approx(9 + 1 + 2.25)
    assert evaluate.frechet_distance(b, a) == pytest.approx(9 + 1 + 2.25)
    assert evaluate.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_matches_scipys_matrix_root_and_bears_singular_covariances():
    from scipy.linalg import sqrtm

    x, y = normal(50, 0, 1, 1) @ np.array([[1, 0.5, 0], [0, 1, 0], [0, 0.3, 2]]), normal(60, 1, 1.5, 2)
    a, b = Moments.of(x), Moments.of(y)
    expected = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * sqrtm(a.covariance @ b.covariance).real)
    assert evaluate.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    flat = Moments.of(x * [1, 1, 0])
    assert evaluate.frechet_distance(flat, flat) == pytest.approx(0, abs=1e-8)


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    same = np.mean([evaluate.kernel_distance(normal(50, 0, 1, 2 * i), normal(50, 0, 1, 2 * i + 1)) for i in range(200)])
    assert abs(same) < 0.02
    # E k(x, y) = E (x.y / 3 + 1)^3 by hand for points: k(x, x') = 8 and k(x, y) = 1 for x = (3, 0, 0)... of one direction.
    x, y = np.tile([[np.sqrt(3.0), 0, 0]], [4, 1]), np.tile([[0, np.sqrt(3.0), 0]], [4, 1])
    assert evaluate.kernel_distance(x, y) == pytest.approx(8 + 8 - 2)


def test_inception_score_ends():
    sure = np.repeat(np.eye(4), 5, axis=0)
    score = lambda p: evaluate.inception_score(Moments.of(p), Moments.of(np.sum(p * np.log(np.clip(p, 1e-300, None)), 1, keepdims=True)))
    assert score(sure) == pytest.approx(4.0)
    assert score(np.full([20, 4], 0.25)) == pytest.approx(1.0)
    assert score(np.tile([[1.0, 0, 0, 0]], [20, 1])) == pytest.approx(1.0)


def test_precision_and_recall_of_a_collapsed_and_of_a_scattered_generator(spark):
    real = np.concatenate([normal(200, 0, 1, 1), normal(200, 20, 1, 2)])
    collapsed = normal(300, 0, 0.5, 3)
    measured = evaluate.precision_recall(spark, real, collapsed, 3)
    assert measured["precision"] > 0.95 and measured["recall"] < 0.5
    scattered = np.concatenate([normal(200, 0, 1, 4), normal(200, 20, 1, 5), normal(400, -50, 1, 6)])
    measured = evaluate.precision_recall(spark, real, scattered, 3)
    assert measured["precision"] == pytest.approx(0.5, abs=0.06) and measured["recall"] > 0.85
    assert evaluate.precision_recall(spark, real, real, 3) == {"precision": 1.0, "recall": 1.0}


def test_precision_and_recall_by_hand(spark):
    """k = 1 on a line: real 0, 1, 10 have radii 1, 1, 9; fakes 1.5, 30, 31 have radii 28.5, 1, 1."""
    real, fake = np.array([[0.0], [1.0], [10.0]]), np.array([[1.5], [30.0], [31.0]])
    assert evaluate.precision_recall(spark, real, fake, 1) == {"precision": pytest.approx(1 / 3), "recall": 1.0}


def test_kid_over_subsets_is_the_same_every_time(spark):
    x, y = normal(100, 0, 1, 1), normal(120, 1, 1, 2)
    first = evaluate.kid(spark, x, y, 6, 40)
    assert first == evaluate.kid(spark, x, y, 6, 40)
    assert first["kid"] > 1 and first["kid_deviation"] > 0


@pytest.fixture(scope="module")
def measured(spark, lake, digits):
    config = make_config(
        lake, run="measured", train={"steps": 2}, generate={"images": 90, "batch_size": 32},
        evaluate={"classifier_steps": 150, "classifier_batch": 32, "sample": 80, "kid_subset_size": 40, "kid_subsets": 5},
    )  # fmt: skip
    trainer.train(spark, config)
    generate.generate(spark, config)
    return config, evaluate.evaluate(spark, config)


def test_evaluate_reports_every_measure_with_its_floor(measured):
    config, result = measured
    assert result["fid_self"] < 1e-6 < result["fid_floor"] < result["fid"]
    assert 0 <= result["precision"] <= 1 and 0 <= result["recall"] <= 1
    assert 1 <= result["score"] < result["score_real"] <= 10
    assert result["classifier_accuracy"] > 0.8
    assert result["generated_images"] == 90
    assert lake.read_json(result["report"])["fid"] == result["fid"]


def test_fid_through_spark_is_fid_of_all_features_at_once(spark, digits, measured):
    """The partial sums of many tasks against NumPy on all features in this process."""
    config, result = measured
    network = features.network(spark, config)
    manifest = schema.read_manifest(digits)
    apply = features.function(network)
    real = spark.read.parquet(digits).where("split = 'test'").toPandas()
    fake = spark.read.parquet(lake.table_url(config)).toPandas()
    x, _ = apply(schema.unpack(real["image"], manifest.shape, "raw"))
    y, _ = apply(np.stack([images.decode_png(png) for png in fake["image"]]))
    assert result["fid"] == pytest.approx(evaluate.frechet_distance(Moments.of(x), Moments.of(y)), rel=1e-3)


def test_inception_takes_weights_from_a_file(spark, lake, measured, tmp_path):
    import tensorflow as tf

    config, _ = measured
    tf.keras.utils.set_random_seed(0)
    path = str(tmp_path / "inception.weights.h5")
    tf.keras.applications.InceptionV3(weights=None).save_weights(path)
    network = features.network(spark, make_config(lake, evaluate={"features": "InceptionV3", "weights": path}))
    feature, probability = features.function(network)(np.zeros([2, 16, 16, 1], np.uint8))
    assert feature.shape == (2, 2048) and probability.shape == (2, 1000)
    np.testing.assert_allclose(probability.sum(1), 1, atol=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"run": "absent"}, "no generated table at .*absent; make it with jobs/generate.py"),
        ({"evaluate": {"features": "InceptionV3", "weights": "/nowhere/w.h5"}, "run": "measured"}, "no such file; expected 'imagenet' or"),
    ],
)
def test_evaluate_refuses(spark, lake, measured, changes, message):
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(spark, make_config(lake, **changes))
