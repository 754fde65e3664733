"""Quality measures against closed forms, then through Spark."""

import dataclasses
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from conftest import make_config

from gan_spark import features
from gan_spark import lake as lakes
from gan_spark.config import Evaluate, Train, UserError, replaced
from gan_spark.data import images, schema, splits
from gan_spark.lake import tables
from gan_spark.quality import caveats, evaluate, measures, promote, statistics
from gan_spark.quality.accuracy_score import accuracy_scores
from gan_spark.quality.statistics import Moments
from gan_spark.runs import catalogue, registry
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.training import driver

pytestmark = pytest.mark.slow


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
    assert statistics.frechet_distance(a, b) == pytest.approx(9 + 1 + 2.25)
    assert statistics.frechet_distance(b, a) == pytest.approx(9 + 1 + 2.25)
    assert statistics.frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_matches_scipys_matrix_root_and_bears_singular_covariances():
    from scipy.linalg import sqrtm

    x, y = normal(50, 0, 1, 1) @ np.array([[1, 0.5, 0], [0, 1, 0], [0, 0.3, 2]]), normal(60, 1, 1.5, 2)
    a, b = Moments.of(x), Moments.of(y)
    expected = np.square(a.mean - b.mean).sum() + np.trace(
        a.covariance + b.covariance - 2 * sqrtm(a.covariance @ b.covariance).real
    )
    assert statistics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    flat = Moments.of(x * [1, 1, 0])
    assert statistics.frechet_distance(flat, flat) == pytest.approx(0, abs=1e-8)


def kernel_sums(x: np.ndarray, y: np.ndarray) -> statistics.KernelSums:
    return statistics.KernelSums.of(x, y, 0, len(x))


def test_kernel_distance_is_unbiased_and_sees_a_shift():
    distances = np.array(
        [kernel_sums(normal(50, 0, 1, 2 * i), normal(50, 0, 1, 2 * i + 1)).distance() for i in range(200)]
    )
    assert abs(distances.mean()) < 4 * distances.std() / np.sqrt(200)
    assert kernel_sums(normal(500, 0, 1, 1), normal(500, 1, 1, 2)).distance() > 10 * distances.std()
    x, y = np.array([[1.0], [1.0]]), np.array([[0.0], [0.0]])
    assert kernel_sums(x, y).distance() == pytest.approx(8 + 1 - 2)


def test_kernel_sums_of_parts_are_those_of_the_whole():
    x, y = normal(70, 0, 1, 1), normal(70, 0.3, 1, 2)
    parts = [statistics.KernelSums.of(x, y, start, min(start + 32, 70)) for start in (0, 32, 64)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    np.testing.assert_allclose(
        [merged.distance(), merged.error()], [kernel_sums(x, y).distance(), kernel_sums(x, y).error()]
    )


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_the_error_of_kid_is_that_of_many_draws(shift):
    """Its square is the variance, up to half above it for equal distributions; twice it covers the truth in most."""
    sums = [kernel_sums(normal(64, 0, 1, 2 * i), normal(64, shift, 1, 2 * i + 1)) for i in range(400)]
    distances, errors = np.array([(draw.distance(), draw.error()) for draw in sums]).T
    assert 0.8 < np.mean(errors**2) / distances.var() < (1.7 if shift == 0 else 1.2)
    covered = np.abs(distances - distances.mean()) <= 2 * errors
    assert 0.85 < covered.mean() <= 1
    assert 0.55 < (np.abs(distances - distances.mean()) <= errors).mean() < 0.85


@pytest.mark.parametrize("count, has_error", [(2, False), (15, False), (16, True)])
def test_of_too_few_images_no_error_is_given(count, has_error):
    assert (kernel_sums(normal(count, 0, 1, 1), normal(count, 3, 1, 2)).error() is not None) == has_error


def test_inception_score_ends():
    sure = np.repeat(np.eye(4), 5, axis=0)
    score = lambda p: statistics.inception_score(
        Moments.of(p), Moments.of(np.sum(p * np.log(np.clip(p, 1e-300, None)), 1, keepdims=True))
    )
    assert score(sure) == pytest.approx(4.0)
    assert score(np.full([20, 4], 0.25)) == pytest.approx(1.0)
    assert score(np.tile([[1.0, 0, 0, 0]], [20, 1])) == pytest.approx(1.0)


@pytest.mark.parametrize("partitions", [1, 2, 9, 70])
def test_merging_in_tasks_loses_nothing_and_leaves_one(spark, partitions):
    parts = spark.sparkContext.parallelize(range(100), partitions).mapPartitions(lambda values: [Counter(values)])
    assert measures._merged(parts, lambda a, b: a + b) == Counter(range(100))


def test_precision_and_recall_of_a_collapsed_and_of_a_scattered_generator(spark):
    real = np.concatenate([normal(200, 0, 1, 1), normal(200, 20, 1, 2)])
    collapsed = normal(300, 0, 0.5, 3)
    measured = measures.precision_recall(spark, real, collapsed, 3)
    assert measured["precision"] > 0.95 and measured["recall"] < 0.5
    scattered = np.concatenate([normal(200, 0, 1, 4), normal(200, 20, 1, 5), normal(400, -50, 1, 6)])
    measured = measures.precision_recall(spark, real, scattered, 3)
    assert measured["precision"] == pytest.approx(0.5, abs=0.06) and measured["recall"] > 0.85
    assert measures.precision_recall(spark, real, real, 3) == {"precision": 1.0, "recall": 1.0}


def test_precision_and_recall_by_hand(spark):
    """k = 1 on a line: real 0, 1, 10 have radii 1, 1, 9; fakes 1.5, 30, 31 have radii 28.5, 1, 1."""
    real, fake = np.array([[0.0], [1.0], [10.0]]), np.array([[1.5], [30.0], [31.0]])
    assert measures.precision_recall(spark, real, fake, 1) == {"precision": pytest.approx(1 / 3), "recall": 1.0}


def test_kid_in_tasks_is_the_same_every_time_and_of_images_from_all_over(spark, monkeypatch):
    monkeypatch.setattr(measures, "_KERNEL_ROWS", 40)
    x, y = normal(100, 0, 1, 1), normal(120, 1, 1, 2)
    first = measures.kid(spark, x, y)
    assert first == measures.kid(spark, x, y)
    assert first["kid"] > 1 and 0 < first["kid_error"] < first["kid"]


@pytest.mark.long
def test_two_real_sets_are_told_from_each_other_as_often_as_kids_error_says(spark, measured):
    """200 draws of 64 and 64 digits: what the error covers of the truth, which is 0."""
    config, _ = measured
    manifest, network = schema.read_manifest(lakes.dataset_url(config)), features.network(spark, config)
    rows = splits.frame(spark, lakes.dataset_url(config), "train").select("image").collect()
    pixels = schema.unpack([row["image"] for row in rows], manifest.shape, manifest.encoding)
    feature, _ = features.function(network)(pixels)
    drawn = []
    for seed in range(200):
        chosen = feature[np.random.default_rng(seed).permutation(len(feature))[:128]]
        sums = kernel_sums(chosen[:64], chosen[64:])
        drawn.append((abs(sums.distance()), sums.error()))
    distances, errors = np.array(drawn).T
    assert errors.min() > 0
    assert 0.6 < (distances <= errors).mean() < 0.95
    assert (distances <= 2 * errors).mean() > 0.9


def test_copies_of_training_images_are_counted(spark, measured):
    config, _ = measured
    url, network = lakes.dataset_url(config), features.network(spark, config)
    manifest, train = schema.read_manifest(url), splits.frame(spark, url, "train")

    def of(rows) -> np.ndarray:
        pixels = schema.unpack([row["image"] for row in rows], manifest.shape, manifest.encoding)
        return features.function(network)(pixels)[0]

    held_out, learnt = of(splits.frame(spark, url, "test").collect()), of(train.limit(50).collect())
    share = lambda fake: measures.copies(train, network, manifest, 64, held_out, fake)
    assert share(learnt) == 1.0
    assert share(np.concatenate([learnt, held_out[:50]])) == pytest.approx(0.5, abs=0.05)
    assert share(held_out) < 0.02


def test_copies_need_images_that_were_not_trained_on(spark, measured):
    config = replaced(measured[0], evaluate={"copies": True, "split": "train"})
    with pytest.raises(UserError, match="evaluate.copies = true with evaluate.split = 'train'"):
        evaluate.evaluate(spark, config)


@pytest.mark.parametrize("moved, low, high", [(0, 0.85, 1.0), (1, 0.0, 0.05)])
def test_a_classifier_learns_what_the_generated_images_teach(spark, digits, moved, low, high):
    """Of real digits as if they were generated it learns to be right, and of all called the next one to be wrong."""
    manifest, real = schema.read_manifest(digits), splits.frame(spark, digits, "train")
    rows = [
        (row["id"], images.encode_png(pixels), (row["label"] + moved) % 10)
        for row, pixels in (
            (row, schema.unpack([row["image"]], manifest.shape, manifest.encoding)[0]) for row in real.collect()
        )
    ]
    fake = spark.createDataFrame(rows[:1000], "id string, image binary, label int")
    options = Evaluate(classifier_steps=150, classifier_batch=32)
    result = accuracy_scores(fake, real, digits, manifest, options)
    assert low <= result["accuracy_score"] <= high and result["accuracy_score_real"] > 0.85
    assert result["accuracy_score_images"] == 1000


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "accuracy_score = true: expected images that are asked for by class, .* found others in table"),
        ({"split": "train"}, "'lenet', which is the classifier, and a split that none is trained on"),
        ({"features": "InceptionV3"}, "'lenet', which is the classifier, and a split that none is trained on"),
    ],
)
def test_an_accuracy_score_needs_images_by_class_and_a_split_apart(spark, measured, changes, message):
    config, _ = measured
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(spark, replaced(config, evaluate={"accuracy_score": True, "copies": False, **changes}))


def test_a_sample_is_no_larger_than_the_driver_holds(spark, measured, monkeypatch):
    config, before = measured
    monkeypatch.setattr(evaluate, "_SAMPLE_BYTES", 40 * 8 * before["feature_dimensions"])
    result = evaluate.evaluate(spark, config)
    assert any("are of about 40 images of each side, of whose 128 features" in text for text in result["caveats"])
    assert result["fid"] == pytest.approx(before["fid"]) and result["kid"] != before["kid"]


@pytest.fixture(scope="module")
def measured(spark, lake, digits):
    config = make_config(
        lake,
        run="measured",
        train={"steps": 2},
        generate={"images": 90, "batch_size": 32},
        evaluate={
            "classifier_steps": 150,
            "classifier_batch": 32,
            "sample": 80,
            "copies": True,
        },
    )
    driver.train(spark, config)
    generate.generate(spark, config)
    return config, evaluate.evaluate(spark, config)


def test_evaluate_reports_every_measure_with_its_floor(measured):
    _, result = measured
    assert result["fid_self"] < 1e-6 < result["fid_floor"] < result["fid"]
    assert 0 <= result["precision"] <= 1 and 0 <= result["recall"] <= 1
    assert 1 <= result["score"] < result["score_real"] <= 10
    assert result["classifier_accuracy"] > 0.8
    assert all(sum(shares.values()) == pytest.approx(1, abs=1e-3) for shares in result["class_shares"].values())
    assert max(result["class_shares"]["real"].values()) < 0.3 < max(result["class_shares"]["generated"].values())
    assert 0 <= result["copies"] <= 1 and re.fullmatch("[0-9a-f]{16}", result["features_hash"])
    assert result["generated_images"] == 90
    assert lakes.read_json(result["report"])["fid"] == result["fid"]
    assert result["fingerprint"] == schema.read_manifest(result["dataset"]).fingerprint and result["part"] == ""


def test_fid_through_spark_is_fid_of_all_features_at_once(spark, digits, measured):
    """The partial sums of many tasks against NumPy on all features in this process."""
    config, result = measured
    network = features.network(spark, config)
    manifest = schema.read_manifest(digits)
    apply = features.function(network)
    real = spark.read.parquet(digits).where("split = 'test'").toPandas()
    fake = spark.read.parquet(lakes.table_url(config)).toPandas()
    x, _ = apply(schema.unpack(real["image"], manifest.shape, "raw"))
    y, _ = apply(np.stack([images.decode_png(png) for png in fake["image"]]))
    assert result["fid"] == pytest.approx(statistics.frechet_distance(Moments.of(x), Moments.of(y)), rel=1e-3)


@pytest.mark.parametrize("wanted", [10_000, 60])
def test_a_sample_is_of_features_by_id_the_same_ones_for_any_partitioning(spark, digits, measured, wanted):
    config, _ = measured
    network, manifest = features.network(spark, config), schema.read_manifest(digits)
    frame = spark.read.parquet(digits).where("split = 'test'")
    (moments, one), (_, many) = (
        measures.feature_moments(frame.repartition(parts), network, manifest.shape, "raw", 100, wanted)
        for parts in (1, 5)
    )
    np.testing.assert_allclose(one, many, atol=1e-4)
    rows = sorted(frame.collect(), key=lambda row: row["id"])
    every, _ = features.function(network)(schema.unpack([row["image"] for row in rows], manifest.shape, "raw"))
    if wanted > len(rows):
        np.testing.assert_allclose(one, every, atol=1e-4)
    else:
        assert 20 < len(one) < 120 and all(np.abs(every - feature).max(1).min() < 1e-4 for feature in one)
    assert moments["all"].count == len(rows) == moments["half0"].count + moments["half1"].count


def test_the_classifier_is_shared_by_configs_that_train_otherwise(spark, measured, monkeypatch):
    """It is there, so that it is not trained again, nor refused, whatever their section [train] says."""
    config, result = measured
    monkeypatch.setattr(driver, "train", None)
    network = features.network(
        spark,
        replaced(
            config,
            train={
                "seed": 5,
                "workers": 2,
                "launcher": "spark",
                "precision": "mixed_bfloat16",
                "shuffle_buffer": 7,
                "validate_every": 1,
            },
        ),
    )
    assert network.name == result["features"] and network.step == 150


def test_the_classifier_is_trained_by_settings_of_its_own(spark, measured, monkeypatch):
    config = replaced(
        measured[0],
        train={
            "seed": 5,
            "precision": "mixed_bfloat16",
            "workers": 3,
            "launcher": "spark",
            "threads": 2,
            "restarts": 7,
            "start_timeout": 9,
            "keep": 8,
        },
        evaluate={"classifier_steps": 3, "classifier_batch": 33},
    )
    told = []
    monkeypatch.setattr(driver, "train", lambda spark, given: told.append(given))
    with pytest.raises(UserError, match="no run at"):
        features.network(spark, config)
    assert told[0].train == Train(
        steps=3,
        batch_size=33,
        checkpoint_every=3,
        sample_every=3,
        workers=3,
        launcher="spark",
        threads=2,
        restarts=7,
        start_timeout=9,
        snapshot=1,
    )
    assert re.fullmatch(r".*-3-33\.[0-9a-f]{8}", told[0].run)  # of another batch is another classifier


def test_a_classifier_that_another_config_left_half_trained_is_begun_again(spark, measured):
    config = replaced(measured[0], evaluate={"classifier_steps": 4, "classifier_batch": 32})
    whole = lakes.read_json(features.network(spark, measured[0]).run + "/config.json")
    fingerprint = schema.read_manifest(lakes.dataset_url(config)).fingerprint
    run = Run(lakes.join(lakes.to_url(config.lake), "runs", f"lenet-digits-{fingerprint[:8]}-4-32"))
    whole["config"]["train"] |= {"workers": 2, "seed": 7}
    run.start(whole)
    network = features.network(spark, config)
    assert (network.run, network.step, run.checkpoints()) == (run.url, 4, [4]) and run.record()["config"]["train"][
        "workers"
    ] == 1


def test_a_classifier_that_another_job_trains_meanwhile_is_left_alone(spark, measured, monkeypatch):
    config = replaced(measured[0], evaluate={"classifier_steps": 2, "classifier_batch": 32})
    train, placed = driver.train, []

    def train_two(spark, given):
        monkeypatch.setattr(driver, "train", train)
        placed.append(features.network(spark, config))  # the other job's, from its beginning to its end
        return train(spark, given)

    monkeypatch.setattr(driver, "train", train_two)
    ours = features.network(spark, config)
    assert ours == placed[0] and ours.record["created"] == Run(ours.run).record()["created"]
    assert ours.record["config"]["run"] == ours.run.rsplit("/", 1)[1]
    assert [
        name
        for name in lakes.filesystem(lakes.to_url(config.lake))[0].ls(f"{config.lake}/runs", detail=False)
        if f"{ours.run.rsplit('/', 1)[1]}." in name
    ] == []


def test_held_out_images_are_classified_by_names_not_by_indices(spark, digits, measured):
    network, manifest = features.network(spark, measured[0]), schema.read_manifest(digits)
    frame = spark.read.parquet(digits).where("split = 'test'")
    right = measures.held_out_means(frame, network.run, network.step, manifest, 32)["accuracy"]
    turned = frame.withColumn("label", ((frame["label"] + 3) % 10).cast("int"))
    names = dataclasses.replace(manifest, classes=(*manifest.classes[7:], *manifest.classes[:7]))
    assert measures.held_out_means(turned, network.run, network.step, names, 32)["accuracy"] == right > 0.8
    strange = dataclasses.replace(manifest, classes=tuple(f"no {name}" for name in manifest.classes))
    assert measures.held_out_means(frame, network.run, network.step, strange, 32)["accuracy"] == 0.0


def test_a_table_is_measured_by_the_run_and_step_of_its_rows(spark, measured):
    """Others in it, as a Delta table that is added to has them, do not count."""
    from pyspark.sql import functions as F

    config, result = measured
    made = spark.read.parquet(result["table"])
    of_others = [
        made.where("seed < 20").withColumn("step", F.lit(1).cast("long")),
        made.where("seed < 30").withColumn("run", F.lit("file:///another")),
    ]
    mixed = replaced(config, generate={"table": f"{config.lake}/elsewhere/mixed"})
    rows = of_others[0].unionByName(of_others[1]).unionByName(made).coalesce(1)
    with tables.replacing(rows, lakes.table_url(mixed), generate.KIND):
        pass
    again = evaluate.evaluate(spark, mixed)
    assert again["report"] == f"{lakes.table_url(mixed)}.quality.json"
    assert lakes.table_url(mixed) in catalogue.lineage(config.lake, config.run)["quality"]  # wherever it lies
    assert {key: again[key] for key in ("run", "step", "generated_images")} == {
        key: result[key] for key in ("run", "step", "generated_images")
    }
    assert again["fid"] == pytest.approx(result["fid"], rel=1e-3)
    assert generate.images_of(spark, replaced(mixed, generate={"checkpoint": 1})).count() == 20
    with pytest.raises(
        UserError,
        match=(
            r"table .*/mixed has no images of run .*/runs/measured at step 7; it has those of file:///another at step"
            r" 2, .*/runs/measured at step 1, .*/runs/measured at step 2: make them"
        ),
    ):
        evaluate.evaluate(spark, replaced(mixed, generate={"checkpoint": 7}))


@pytest.mark.long
def test_the_promoted_version_is_measured_again_to_be_compared(spark, lake, measured):
    """It was measured on the dataset as it was before an ingest."""
    config, result = measured
    other = replaced(
        make_config(lake, run="other"),
        train={"steps": 4},
        generate=vars(config.generate),
        evaluate=vars(config.evaluate),
        promote={"model": "compared"},
    )
    driver.train(spark, other)
    generate.generate(spark, other)
    fid = evaluate.evaluate(spark, other)["fid"]
    registry.promote(lake, "measured", "compared")
    url = lakes.join(lakes.to_url(lake), "models", "compared.json")
    held = lakes.read_json(url)
    held["versions"][0] |= {
        "fid": 0.0,
        "measured": held["versions"][0]["measured"] | {"fingerprint": "of before", "features": "lenet of before"},
    }
    lakes.write_json(url, held)
    for name in lakes.filesystem(lakes.to_url(lake))[0].glob(f"{lake}/generated/measured*.quality.json"):
        lakes.remove(lakes.to_url(name))
    answer = promote.promote_run(spark, other)
    before, _ = registry.read(lake, "compared")["versions"]
    assert (
        before["fid"] == pytest.approx(result["fid"], rel=1e-3) and before["measured"]["features"] == result["features"]
    )
    assert answer["fid"] == fid and answer["promoted"] is (fid < before["fid"]) and answer["before"] == 1
    assert lakes.exists(f"{lakes.to_url(lake)}/generated/compared-promoted")


def test_too_few_images_are_refused_before_a_classifier_is_trained(spark, measured, monkeypatch):
    few = replaced(
        measured[0], generate={"images": 3, "table": "few"}, evaluate={"classifier_steps": 7, "classifier_batch": 32}
    )
    generate.generate(spark, few)
    monkeypatch.setattr(driver, "train", lambda spark, config: pytest.fail("a classifier was paid for"))
    with pytest.raises(UserError, match="neighbours = 3 with 3 generated images: .* more images than neighbours; gen"):
        evaluate.evaluate(spark, few)


def test_fewer_images_than_asked_for_and_than_features_are_told(spark, measured, caplog):
    config = replaced(measured[0], evaluate={"sample": 1000})
    result = evaluate.evaluate(spark, config)
    real = result["real_images"]
    assert result["caveats"] == [
        f"evaluate.sample = 1000: KID, precision and recall are of {real} real and 90 generated images, fewer than"
        " asked for",
        f"FID of {real} real and 90 generated images by 128 features: with no more images than features it is too"
        " high, and compares only with that of as many images",
    ]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"evaluate: {sentence}" for sentence in result["caveats"]
    ]
    assert lakes.read_json(result["report"])["caveats"] == result["caveats"]
    assert measured[1]["caveats"] == result["caveats"][1:] and measured[1]["distinguishable"] is True


@pytest.mark.parametrize(
    "fid, floor, expected", [(24.66, 24.23, False), (2.0, 24.0, False), (30.0, 24.0, False), (31.0, 24.0, True)]
)
def test_a_fid_is_distinguishable_above_its_floor_alone(fid, floor, expected):
    assert caveats.is_distinguishable(fid, floor) is expected
    assert caveats.is_distinguishable(fid, None) is None


def test_a_fid_at_its_floor_is_not_called_good(spark, lake, digits, measured, caplog):
    """Real images in the place of generated ones: nothing could be better, and nothing is shown by so few."""
    config = replaced(
        dataclasses.replace(measured[0], run="flawless"),
        generate={"table": f"{lake}/elsewhere/flawless"},
        promote={"model": "flawless"},
    )
    run, manifest = Run.of(config), schema.read_manifest(digits)
    shutil.copytree(f"{lake}/runs/measured", f"{lake}/runs/flawless")
    stored = spark.read.parquet(digits).where("split = 'train'").limit(300).toPandas()["image"]
    made = spark.read.parquet(lakes.table_url(measured[0])).first().asDict()
    pngs = [images.encode_png(pixels) for pixels in schema.unpack(stored, manifest.shape, manifest.encoding)]
    rows = [{**made, "run": run.url, "seed": seed, "image": bytearray(png)} for seed, png in enumerate(pngs)]
    with tables.replacing(spark.createDataFrame(rows, generate.TABLE), lakes.table_url(config), generate.KIND):
        pass
    result = evaluate.evaluate(spark, config)
    assert result["distinguishable"] is False and result["fid"] < 1.25 * result["fid_floor"]
    (sentence,) = [sentence for sentence in result["caveats"] if "cannot be told" in sentence]
    assert sentence == (
        f"FID {result['fid']:.2f} cannot be told from that of real images against real ones, {result['fid_floor']:.2f}"
        f" (half of them against the other), with {result['real_images']} real and 300 generated images: more images"
        " are needed to call it good"
    )
    caplog.clear()
    assert promote.promote_run(spark, config)["promoted"]
    assert f"promote: version 1 of model 'flawless': {sentence}" in caplog.text


def test_inception_takes_weights_from_a_file(spark, lake, measured, tmp_path):
    import tensorflow as tf

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
        (
            {"evaluate": {"features": "InceptionV3", "weights": "/nowhere/w.h5"}, "run": "measured"},
            "no such file; expected 'imagenet' or",
        ),
        ({"evaluate": {"part": "a"}, "run": "measured"}, "evaluate.part = 'a': dataset .* has no parts"),
    ],
)
def test_evaluate_refuses(spark, lake, measured, changes, message):
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(spark, make_config(lake, **changes))
