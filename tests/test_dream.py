"""DeepDream: its objective from both sides, its ways up, and a table of dreams."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_config

from gan_spark import lake as lakes
from gan_spark.config import Dream, UserError
from gan_spark.data import images
from gan_spark.runs.store import Run
from gan_spark.sampling import dream
from gan_spark.training import driver

pytestmark = pytest.mark.slow


def bright(x):
    """A look whose one layer is the image's own brightness, from 0 to 2."""
    return [x + 1.0]


def image(side: int = 12, channels: int = 1, seed: int = 0) -> np.ndarray:
    noise = tf.random.stateless_normal([1, 5, 5, channels], [seed, 0]) * 0.3
    return np.clip(tf.image.resize(noise, [side, side], "bicubic")[0], -0.9, 0.9)


def variation(x: np.ndarray) -> float:
    return float(dream.total_variation(tf.constant(x[None], tf.float32)))


def test_total_variation_of_known_images():
    assert variation(np.full([5, 5, 3], 0.3)) == pytest.approx(0, abs=1e-12)
    slope = np.repeat(np.arange(6.0)[None], 6, 0)[..., None] / 10  # dx = 0.1, dy = 0
    assert variation(slope) == pytest.approx(0.01**1.25, rel=1e-4)
    assert variation(slope + slope.transpose(1, 0, 2)) == pytest.approx(0.02**1.25, rel=1e-4)


def test_the_objective_is_its_weighted_layers_less_two_penalties():
    x = tf.constant(image()[None])
    options = Dream(layers=("a", "b"), weights_of_layers=(2.0, -0.5), continuity=0.3, l2=0.7)
    value = dream.objective(lambda x: [x + 1.0, 3.0 * x], options)(x)
    plus, squared = float(tf.reduce_mean((x + 1.0) ** 2)), float(tf.reduce_mean(x**2))
    expected = 2.0 * plus - 0.5 * 9 * squared - 0.3 * variation(x[0].numpy()) - 0.7 * squared
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["gradient", "lbfgs"])
@pytest.mark.parametrize("octaves", [1, 3])
def test_both_ways_lead_up_and_stay_in_range(method, octaves):
    options = Dream(layers=("a",), method=method, octaves=octaves, iterations=15)
    value = dream.objective(bright, options)
    before = image()
    after = dream.dreamt(before, dream.slope_of(value), options)
    scores = [float(value(tf.constant(each[None]))) for each in (before, after)]
    assert scores[1] > scores[0] + 0.3 and after.shape == before.shape and np.abs(after).max() <= 1.0


@pytest.mark.parametrize("method", ["gradient", "lbfgs"])
def test_without_iterations_octaves_put_every_detail_back(method):
    options = Dream(layers=("a",), method=method, octaves=4, iterations=0)
    before = image(17, 3)
    np.testing.assert_allclose(
        dream.dreamt(before, dream.slope_of(dream.objective(bright, options)), options), before, atol=1e-5
    )


def test_continuity_smooths_and_l2_pulls_to_the_middle():
    before = image(seed=3)
    made = {}
    for name, changes in {"plain": {}, "smooth": {"continuity": 30.0}, "small": {"l2": 30.0}}.items():
        options = Dream(
            **{
                "layers": ("a",),
                "method": "lbfgs",
                "octaves": 1,
                "iterations": 40,
                "continuity": 0.0,
                "l2": 0.0,
                **changes,
            }
        )
        made[name] = dream.dreamt(before, dream.slope_of(dream.objective(lambda x: [5.0 * x], options)), options)
    assert variation(made["smooth"]) < 0.2 * variation(made["plain"])
    assert np.abs(made["small"]).mean() < 0.1 < np.abs(made["plain"]).mean()


def test_lbfgs_goes_up_in_rounds_each_on_the_image_shifted_anew():
    options = Dream(layers=("a",), method="lbfgs", octaves=1, rounds=5, iterations=7, jitter=3)
    seen = []

    def recorded(x):
        seen.append(x.numpy())
        return bright(x)

    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            score = dream.objective(recorded, options)(x)
        return score, tape.gradient(score, x)

    before = image()
    made = dream.dreamt_by_rounds(before, slope, options)
    assert len(made) == 5 and np.array_equal(made[-1], dream.dreamt(before, slope, options))
    value = dream.objective(bright, options)
    scores = [float(value(tf.constant(each[None]))) for each in (before, *made)]
    assert scores == sorted(scores) and scores[-1] > scores[1] > scores[0]
    starts = [before, *made[:-1]]  # each round begins where the last one ended, somewhere else
    places = [
        [
            (y, x)
            for y in range(-3, 4)
            for x in range(-3, 4)
            if any(close(np.roll(start, (y, x), (0, 1)), s) for s in seen)
        ]
        for start in starts
    ]
    assert all(places) and len({place for found in places for place in found}) > 1


def close(image, batch):
    return np.allclose(image[None], batch, atol=1e-6)


def test_lbfgs_in_one_round_does_not_shift():
    options = Dream(layers=("a",), method="lbfgs", octaves=1, iterations=9, jitter=0)
    slope = dream.slope_of(dream.objective(lambda x: [tf.nn.avg_pool2d(x, 3, 2, "VALID")], options))
    shifting = dataclasses.replace(options, jitter=4)
    assert np.array_equal(dream.dreamt(image(), slope, options), dream.dreamt(image(), slope, shifting))


def test_one_seed_is_one_dream():
    options = Dream(layers=("a",), octaves=2, iterations=5, jitter=3)
    value = dream.objective(lambda x: [tf.nn.avg_pool2d(x, 3, 2, "VALID")], options)
    first, again, other = (dream.dreamt(image(), dream.slope_of(value), options, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.fixture(scope="module")
def config(spark, lake, digits):
    classifier = make_config(lake, "lenet", run="dreamer", train={"steps": 30, "log_every": 30, "checkpoint_every": 30})
    driver.train(spark, classifier)
    return make_config(
        lake,
        run="dreams",
        dream={
            "network": "run",
            "run": "dreamer",
            "layers": ("conv2",),
            "octaves": 2,
            "iterations": 6,
            "images": 5,
            "continuity": 0.01,
            "l2": 0.0,
        },
    )


def test_a_table_of_dreams(spark, config):
    result = dream.dream(spark, config)
    rows = spark.read.parquet(result["table"]).orderBy("input").collect()
    held_out = {row["id"] for row in spark.read.parquet(lakes.dataset_url(config)).where("split = 'test'").collect()}
    assert len(rows) == result["images"] == 5 and {row["input"] for row in rows} <= held_out
    assert all(row["objective_after"] > row["objective_before"] for row in rows)
    assert result["objective_after"] == pytest.approx(np.mean([row["objective_after"] for row in rows]))
    assert {(row["height"], row["width"], row["channels"]) for row in rows} == {(16, 16, 1)}
    assert images.decode_png(lakes.read_bytes(result["grid"])).shape[1] == 8 * 18 + 2
    again = {
        row["input"]: bytes(row["image"]) for row in spark.read.parquet(dream.dream(spark, config)["table"]).collect()
    }
    assert again == {row["input"]: bytes(row["image"]) for row in rows}


def test_a_picture_is_kept_of_each_round(spark, config):
    of_rounds = changed(dataclasses.replace(config, run="dreams-in-rounds"), method="lbfgs", rounds=3, iterations=4)
    result = dream.dream(spark, of_rounds)
    rows = spark.read.parquet(result["table"]).collect()
    for row in rows:
        pictures = [images.decode_png(picture) for picture in row["rounds"]]
        assert len(pictures) == 3 and bytes(row["rounds"][-1]) == bytes(row["image"])
        assert not np.array_equal(pictures[0], pictures[2])
    assert images.decode_png(lakes.read_bytes(result["rounds"])).shape[:2] == (5 * 18 + 2, 4 * 18 + 2)
    alone = dream.dream(spark, changed(of_rounds, rounds=1))
    assert "rounds" not in alone
    assert {len(row["rounds"]) for row in spark.read.parquet(alone["table"]).collect()} == {0}


def test_a_table_of_dreams_without_rounds_is_replaced(spark, config, monkeypatch):
    """One that a former version made, which did not say so in the table either."""
    former = dataclasses.replace(config, run="dreams-of-before")
    url = lakes.table_url(former) + "-dream"
    spark.createDataFrame([], dream.FORMER).coalesce(1).write.parquet(url)
    assert dream.dream(spark, former)["images"] == 5


def test_tasks_are_handed_no_more_images_at_once_than_memory_holds(spark, config, handed, default_batches, monkeypatch):
    monkeypatch.setattr("gan_spark.data.batches.BYTES", 600)  # two images of 16 x 16, and a bit
    assert dream.dream(spark, dataclasses.replace(config, run="few-at-once"))["images"] == 5
    assert sum(handed()) == 5 and max(handed()) <= 2
    assert spark.conf.get(default_batches) == "10000"


def changed(config, **values):
    return dataclasses.replace(config, dream=dataclasses.replace(config.dream, **values))


def test_a_network_of_a_file_or_of_keras_by_name(spark, config, tmp_path):
    network = tf.keras.Sequential(
        [
            tf.keras.Input([16, 16, 1]),
            tf.keras.layers.Conv2D(4, 3, activation="relu", name="edges"),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(2),
        ]
    )
    path = str(tmp_path / "small.keras")
    network.save(path)
    from_file = changed(config, network=path, layers=("edges",), images=2, octaves=1)
    result = dream.dream(spark, from_file)
    assert result["images"] == 2 and result["objective_after"] > result["objective_before"]

    x = tf.constant(np.repeat(image(16)[None], 1, 0))
    (seen,) = dream.activations(("file", "file://" + path), ("edges",))(x)
    np.testing.assert_allclose(seen, network.layers[0](x), rtol=1e-5)
    (seen,) = dream.activations(("keras", "VGG16", ""), ("block1_conv1",))(x)
    pixels = tf.keras.applications.vgg16.preprocess_input(tf.image.grayscale_to_rgb(x + 1.0) * 127.5)
    np.testing.assert_allclose(
        seen, dream._network("keras", "VGG16", "").get_layer("block1_conv1")(pixels), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    "values, message",
    [
        ({"layers": ("conv9",)}, "no such layer: 'conv9' .*conv1, .*conv2"),
        (
            {"layers": ("conv1", "conv2"), "weights_of_layers": (1.0,)},
            "dream.weights_of_layers: expected one for each of the 2 layers, found 1",
        ),
        ({"run": "never-trained"}, "no run at .*never-trained"),
        ({"network": "VGG99"}, "no network 'VGG99' in Keras .*VGG16"),
        (
            {"network": "VGG16", "weights": "", "layers": ("mixed3",)},
            "dream.layers: no such layer: 'mixed3' in VGG16 .*block5_conv1",
        ),
        ({"network": "/nowhere/net.keras"}, "/nowhere/net.keras: no such file"),
        ({"split": "validation", "layers": ()}, "no layer is named"),
    ],
)
def test_what_is_wrong_is_told_before_any_task_starts(spark, config, values, message):
    with pytest.raises(UserError, match=message):
        dream.dream(spark, changed(config, **values))
    assert not [
        name
        for name in lakes.filesystem(config.lake)[0].ls(f"{config.lake}/generated", detail=False)
        if "/.dreams" in name
    ]


def test_a_run_that_is_no_classifier_is_refused(spark, lake, config):
    driver.train(spark, make_config(lake, "vae", run="no-dreamer", train={"steps": 1}))
    with pytest.raises(UserError, match="dream.run = 'no-dreamer': expected the run of a lenet, found 'vae'"):
        dream.dream(spark, changed(config, run="no-dreamer"))
    assert Run.of(config).url.endswith("dreams")
