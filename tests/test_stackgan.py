"""Text to image: composed pictures, the text encoder, both stages, and the judge of what is to be seen."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import MODEL_CONFIGS, make_batch, make_model
from pyspark.sql import functions as F

from gan_spark import lake as lakes
from gan_spark import models
from gan_spark.config import Ingest, UserError, parse
from gan_spark.data import images, ingest, schema, shapes, sources, splits
from gan_spark.models import losses, stackgan, stackgan1, stackgan2, text
from gan_spark.models.attributes import indices
from gan_spark.quality import attributes
from gan_spark.runs import loading
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.training import driver

pytestmark = pytest.mark.slow

# --- pictures --------------------------------------------------------------------------


def test_a_picture_is_a_function_of_its_index_whatever_its_size():
    for index in range(20):
        small, large = shapes.draw(index, 16), shapes.draw(index, 64)
        np.testing.assert_array_equal(small[0], shapes.draw(index, 16)[0])
        assert small[1:] == large[1:]
        reduced = large[0].reshape(16, 4, 16, 4, 3).mean((1, 3))
        assert np.abs(reduced - small[0]).mean() < 3  # of 255
    assert shapes.draw(0, 16)[1] != shapes.draw(1, 16)[1]


def test_every_phrasing_says_what_is_drawn_and_pictures_have_several():
    sentences = set()
    for index in range(200):
        _, attributes, phrasings = shapes.draw(index, 8)
        assert len(set(phrasings)) == shapes.PHRASINGS
        assert all(shapes.understand(phrase) == attributes for phrase in phrasings)
        sentences |= set(phrasings)
    assert len(sentences) > 500 and max(map(len, sentences)) <= 96


def test_pixels_agree_with_the_attributes():
    """The middle of the place has the shape's colour, a corner the background's, and areas have the sizes' ratio."""
    areas = {"small": [], "large": []}
    for index in range(300):
        pixels, attributes, _ = shapes.draw(index, 64)
        x, y = shapes._CENTRES[attributes["place"]]
        assert (
            np.abs(pixels[int(y * 64), int(x * 64)] - np.array(shapes._COLOURS[attributes["colour"]], float)).max()
            <= 13
        )
        assert np.abs(pixels[0, 0] - float(shapes._GREYS[attributes["background"]])).max() <= 13
        if attributes["shape"] == "circle":
            areas[attributes["size"]].append(np.any(pixels != pixels[0, 0], -1).mean())
    assert np.mean(areas["large"]) == pytest.approx(np.pi * shapes._RADII["large"] ** 2, rel=0.15)
    assert np.mean(areas["small"]) == pytest.approx(np.pi * shapes._RADII["small"] ** 2, rel=0.25)


@pytest.mark.parametrize(
    "shape, area",
    [("circle", np.pi), ("square", 1.7**2), ("triangle", 1.7 * 1.7 / 1.8), ("cross", 4 * 0.33 * (2 - 0.33))],
)
def test_shapes_have_their_areas(shape, area):
    points = (np.arange(400) + 0.5) / 100 - 2
    assert (shapes.distance(shape, points[None], points[:, None]) < 0).mean() * 16 == pytest.approx(area, rel=0.01)


def test_a_label_is_a_whole_combination():
    assert len(shapes.CLASSES) == len(set(shapes.CLASSES)) == 4 * 6 * 5 * 2 * 3
    chosen = np.array([0, 1, 100, 719])
    found = np.stack([part.numpy() for part in indices(tf.constant(chosen))], 1)
    for label, row in zip(chosen, found, strict=True):
        assert (
            " ".join(values[i] for i, values in zip(row, shapes.ATTRIBUTES.values(), strict=True))
            == shapes.CLASSES[label]
        )


# --- the dataset -----------------------------------------------------------------------

PICTURES = {
    "source": "shapes",
    "count": 600,
    "height": 16,
    "width": 16,
    "channels": 3,
    "validation": 0.1,
    "test": 0.2,
    "planned_workers": 2,
}


@pytest.fixture(scope="module")
def pictures(spark, lake) -> str:
    return ingest.ingest(spark, shapes_config(lake))["dataset"]


def shapes_config(lake, model="text_encoder", run="shapes-text", **changes):
    table = {
        "run": run,
        "dataset": "shapes",
        "lake": lake,
        "ingest": PICTURES,
        "model": {**MODEL_CONFIGS[model], "channels": 3, **changes},
        "train": {
            "steps": 3,
            "batch_size": 16,
            "launcher": "local",
            "log_every": 1,
            "checkpoint_every": 3,
            "sample_every": 3,
        },
        "generate": {"images": 40, "batch_size": 16},
        "evaluate": {"reader": "shapes-reader"},
    }
    return parse(table, models.config_class)


def test_held_out_combinations_are_in_the_test_split_alone(spark, pictures):
    rows = spark.read.parquet(pictures).select("id", "split", "label", "caption").collect()
    assert len(rows) == 600
    for row in rows:
        attributes = dict(zip(shapes.ATTRIBUTES, shapes.CLASSES[row["label"]].split(), strict=True))
        assert all(shapes.understand(line) == attributes for line in row["caption"].split("\n"))
        held_out = (attributes["shape"], attributes["colour"]) in shapes.HELD_OUT
        assert row["id"].startswith("heldout/" if held_out else "seen/")
        assert not held_out or row["split"] == "test"
    splits = {(row["split"], row["id"].split("/")[0]) for row in rows}
    assert splits == {("train", "seen"), ("validation", "seen"), ("test", "seen"), ("test", "heldout")}
    assert 60 < sum(row["id"].startswith("heldout/") for row in rows) < 150  # about one in six


def test_composed_pictures_are_square_and_in_colour(spark):
    with pytest.raises(UserError, match="source 'shapes' .*expected square RGB pictures"):
        sources.open_source(spark, Ingest(source="shapes", channels=1))


# --- text ------------------------------------------------------------------------------


def test_a_phrasing_is_chosen_by_its_share():
    given = tf.constant(["one\ntwo\nthree", "alone", "a\nb\n"])
    assert text.phrasing(given, tf.constant([0.0, 0.0, 0.0])).numpy().tolist() == [b"one", b"alone", b"a"]
    assert text.phrasing(given, tf.constant([0.34, 0.99, 0.5])).numpy().tolist() == [b"two", b"alone", b"b"]
    assert text.phrasing(given, tf.constant([0.999, 1.0, 1.0])).numpy().tolist() == [b"three", b"alone", b"b"]


def test_characters_are_one_hot_cut_and_filled_up():
    encoded = text.characters(tf.constant(["aB", "é", "z" * 30]), 24).numpy()
    assert encoded.shape == (3, 24, len(text.ALPHABET))
    assert encoded[0, 0].argmax() == 0 and encoded[0, 1].argmax() == 1 and encoded[0].sum() == 2
    assert encoded[1].sum() == 0 and encoded[2].sum() == 24


def test_contrastive_of_known_scores():
    different, scores = tf.range(2), tf.math.log([[1.0, 2.0], [3.0, 4.0]])
    # By image 1 of 3 and 4 of 7, by text 1 of 4 and 4 of 6.
    assert float(losses.contrastive(scores, different)) == pytest.approx(-np.mean(np.log([1 / 3, 4 / 7, 1 / 4, 4 / 6])))
    assert float(losses.contrastive(tf.zeros([4, 4]), tf.range(4))) == pytest.approx(np.log(4))
    # Two of one class: either is right for both.
    assert float(losses.contrastive(tf.zeros([4, 4]), tf.constant([0, 1, 1, 2]))) == pytest.approx(
        np.mean(np.log([4, 2, 2, 4]))
    )
    assert float(losses.contrastive(50 * tf.eye(3), tf.range(3))) == pytest.approx(0.0, abs=1e-6)
    assert float(losses.contrastive(-50 * tf.eye(3), tf.range(3))) == pytest.approx(50 + np.log(2))
    assert float(losses.contrastive(tf.zeros([2, 2]), tf.constant([1, 1]))) == 0.0


def test_the_encoder_learns_to_match():
    model = make_model("text_encoder", rate=5e-3)
    drawn = [shapes.draw(i, 16) for i in range(8)]
    batch = {
        "image": tf.image.rgb_to_grayscale(images.to_unit(np.stack([each[0] for each in drawn]))),
        "caption": tf.constant(["\n".join(each[2]) for each in drawn]),
        "label": tf.range(8),
    }
    first = float(model.train_step([batch])["loss"])
    step = tf.function(lambda: (model.train_step([batch]), model.step.assign_add(1))[0])
    for _ in range(150):
        last = step()
    assert float(last["loss"]) < 0.5 * first and float(last["matched"]) > 0.5


# --- the stages ------------------------------------------------------------------------


def test_matching_aware_loss_of_known_logits():
    zero, sure = tf.zeros([4, 1]), tf.fill([4, 1], 20.0)
    assert float(losses.matching_aware(zero, zero, zero)) == pytest.approx(2 * np.log(2), rel=1e-5)
    assert float(losses.matching_aware(sure, -sure, -sure)) == pytest.approx(0, abs=1e-6)
    assert float(losses.matching_aware(sure, sure, -sure)) == pytest.approx(10, rel=1e-5)  # half of 20
    assert float(losses.matching_aware(sure, -sure, sure)) == pytest.approx(10, rel=1e-5)


def test_consistency_compares_averages_of_squares_of_pixels():
    large = tf.reshape(tf.constant([[1.0, 3.0, 0.0, 0.0], [5.0, 7.0, 0.0, 0.0]]), [1, 2, 4, 1])
    assert float(losses.consistency(large, tf.reshape([4.0, 0.0], [1, 1, 2, 1]))) == 0.0
    assert float(losses.consistency(large, tf.reshape([1.0, 1.0], [1, 1, 2, 1]))) == pytest.approx((9 + 1) / 2)


def test_consistency_holds_stage_two_to_the_image_of_stage_one():
    values = []
    for weight in (1e-6, 100.0):
        model = make_model("stackgan2", consistency=weight, generator_rate=1e-2)
        step = tf.function(model.train_step)
        for _ in range(15):
            last = float(step([make_batch("stackgan2")])["consistency"])
        values.append(last)
    assert values[1] < 0.5 * values[0]
    assert "consistency" not in make_model("stackgan2").train_step([make_batch("stackgan2")])


def test_conditioning_is_its_mean_without_noise_and_the_kl_is_of_its_two_halves():
    model = make_model("stackgan1")
    dense = next(
        layer for layer in model.generator.layers if isinstance(layer, tf.keras.layers.Dense) and layer.units == 8
    )
    dense.kernel.assign(tf.zeros_like(dense.kernel))
    dense.bias.assign([1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 2 * np.log(2.0)])
    _, mean, log_variance = model.generator([tf.zeros([1, 4]), tf.zeros([1, 8]), tf.zeros([1, 4])])
    np.testing.assert_allclose(mean, [[1, 2, 3, 4]])
    expected = 0.5 * (1 + 4 + 9 + 16 + 4 - 1 - 2 * np.log(2))
    np.testing.assert_allclose(losses.kl_standard_normal(mean, log_variance), [expected], rtol=1e-5)
    assert float(model.train_step([make_batch("stackgan1")])["kl"]) == pytest.approx(expected / 4, rel=1e-5)


def test_the_kl_weight_pulls_the_condition_towards_the_prior():
    values = []
    for weight in (0.0, 50.0):
        model = make_model("stackgan1", kl=weight, generator_rate=1e-2)
        step = tf.function(model.train_step)
        for _ in range(15):
            last = float(step([make_batch("stackgan1")])["kl"])
        values.append(last)
    assert values[1] < 0.5 * values[0]


def test_the_wrong_text_is_the_neighbours():
    """`d_wrong` is what the discriminator says of real images with the texts of the rows before them."""
    model, batch = make_model("stackgan1"), make_batch("stackgan1")
    embedding = model.embeddings(batch, model.uniform([8], stream=1, low=0.0))
    logits = model.joint(
        [model.image_features(batch["image"], training=True), tf.concat([embedding[-1:], embedding[:-1]], 0)],
        training=True,
    )
    expected = float(tf.reduce_mean(tf.sigmoid(logits)))
    scalars = model.train_step([batch])
    assert float(scalars["d_wrong"]) == pytest.approx(expected, rel=1e-4)
    assert float(scalars["d_real"]) != pytest.approx(expected, rel=1e-4)


def test_the_embedding_is_tiled():
    x = stackgan.tiled(tf.constant([[1.0, 2.0, 3.0]]), 4).numpy()
    assert x.shape == (1, 4, 4, 3) and (x == [1.0, 2.0, 3.0]).all()


@pytest.mark.parametrize("size, halvings", [(64, 1), (128, 2), (64, 0)])
def test_stage_two_has_four_times_the_side(size, halvings):
    first = make_model("stackgan1", image_size=size // 4)
    model = stackgan2.StackGAN2(
        stackgan2.Config(**{**MODEL_CONFIGS["stackgan2"], "image_size": size, "halvings": halvings}), stage1=first
    )
    inputs = {"embedding": tf.ones([2, 3, 8])}
    assert first.generate(inputs, tf.range(2)).shape == (2, size // 4, size // 4, 1)
    assert model.generate(inputs, tf.range(2)).shape == (2, size, size, 1)


def test_stage_two_leaves_stage_one_as_it_is_and_depends_on_it():
    model = make_model("stackgan2")
    before = [variable.numpy() for variable in model.stage1.variables]
    model.train_step([make_batch("stackgan2")])
    assert all(np.array_equal(a, b) for a, b in zip(before, model.stage1.variables, strict=True))
    inputs, seeds = {"embedding": tf.ones([2, 3, 8])}, tf.range(2)
    made = model.generate(inputs, seeds).numpy()
    for variable in model.stage1.sampler.variables:
        variable.assign(variable + 0.5)
    assert not np.allclose(made, model.generate(inputs, seeds))


def test_a_text_makes_a_difference_at_equal_seeds_in_both_stages():
    for name in ("stackgan1", "stackgan2"):
        model = make_model(name)
        made = model.generate({"embedding": tf.reshape(tf.range(48.0), [2, 3, 8])}, tf.zeros([2], tf.int64)).numpy()
        assert not np.allclose(made[0], made[1])


def test_an_embedding_is_one_of_the_rows_in_training_and_the_first_in_sampling():
    model = make_model("stackgan1")
    values = tf.reshape(tf.range(48.0), [2, 3, 8])
    np.testing.assert_array_equal(
        model.embeddings({"embedding": values}, tf.constant([0.0, 0.99])), [values[0, 0], values[1, 2]]
    )
    np.testing.assert_array_equal(model.embeddings({"embedding": values}, tf.zeros([2])), values[:, 0])
    with pytest.raises(UserError, match=r"model\.embedding = 8; the dataset's embeddings have 5 numbers"):
        model.embeddings({"embedding": tf.zeros([2, 3, 5])}, tf.zeros([2]))


def test_stages_that_do_not_fit_are_refused():
    captioned = stackgan1.Config(**{**MODEL_CONFIGS["stackgan1"], "text": "captions"})
    with pytest.raises(UserError, match="without model.encoder: expected the name of a text_encoder's run"):
        stackgan1.StackGAN1(captioned)
    with pytest.raises(UserError, match="model.embedding = 8; the text encoder's embeddings have 5 numbers"):
        stackgan1.StackGAN1(captioned, encoder=make_model("text_encoder", embedding=5))
    second = stackgan2.Config(**MODEL_CONFIGS["stackgan2"])
    with pytest.raises(UserError, match="model.stage1 is empty: expected the name of a stackgan1's run"):
        stackgan2.StackGAN2(second)
    with pytest.raises(UserError, match="model.image_size = 64; stage I's is 32"):
        stackgan2.StackGAN2(second, stage1=make_model("stackgan1", image_size=32))


# --- through the whole house -----------------------------------------------------------


def test_from_captions_to_judged_pictures(spark, lake, pictures):
    """Encoder, stage I on its run, a picture for a caption, and the judge; every seed the same for any partitioning."""
    driver.train(spark, shapes_config(lake))
    driver.train(spark, shapes_config(lake, "attributes", "shapes-reader"))
    config = shapes_config(lake, "stackgan1", "shapes-stage1", text="captions", encoder="shapes-text")
    driver.train(spark, config)
    encoder = loading.build(shapes_config(lake).model)
    loading.restore(encoder, Run.of(shapes_config(lake)))
    stage1 = loading.load_model(Run.of(config).url, 3, Run.of(config).record())
    for variable, value in zip(stage1.encoder.variables, encoder.variables, strict=True):
        np.testing.assert_array_equal(variable, value)  # frozen, and restored

    result = generate.generate(spark, config)
    rows = spark.read.parquet(result["table"]).collect()
    truth = {row["caption"] for row in spark.read.parquet(pictures).where("split = 'test'").collect()}
    assert len(rows) == 40 and {row["input"] for row in rows} <= truth
    report = attributes.attributes(spark, config)
    assert report["seen"]["images"] + report["heldout"]["images"] == 40 and lakes.exists(report["report"])
    assert {"all", *shapes.ATTRIBUTES} <= report["seen"].keys() and {"all", *shapes.ATTRIBUTES} == report["real"][
        "heldout"
    ].keys()
    assert all(
        report[kind]["all"] <= min(report[kind][name] for name in shapes.ATTRIBUTES) for kind in attributes.KINDS
    )

    written = ("a red cross", "one blue circle")
    typed = dataclasses.replace(
        config, generate=dataclasses.replace(config.generate, captions=written, images=4, table="typed")
    )
    tables = []
    for partitions in (1, 3):
        given = generate.inputs(spark, typed).repartition(partitions)
        tables.append(
            {
                row["seed"]: (row["input"], bytes(row["image"]))
                for row in generate.generated(given, Run.of(typed), typed.generate).collect()
            }
        )
    assert tables[0] == tables[1] and [tables[0][seed][0] for seed in range(4)] == [*written, *written]
    assert tables[0][0] != tables[0][1]
    generate.generate(spark, typed)
    with pytest.raises(
        UserError,
        match="table .*typed: its input '(a red cross|one blue circle)' says nothing of place, size, background",
    ):
        attributes.attributes(spark, typed)
    assert attributes.unsaid(None) == list(shapes.ATTRIBUTES) and attributes.unsaid(
        "a red cross at the top of a white background"
    ) == ["size"]


def test_the_judge_counts_what_matches():
    said = "a small red cross at the top of a white background\nnothing else"
    index = [shapes.ATTRIBUTES[name].index(value) for name, value in shapes.understand(said).items() for _ in [0]]
    order = {name: shapes.ATTRIBUTES[name].index(value) for name, value in shapes.understand(said).items()}
    assert len(index) == 5
    assert attributes.matches(said, np.array([order[name] for name in shapes.ATTRIBUTES])).all()
    order["colour"] += 1
    assert attributes.matches(said, np.array([order[name] for name in shapes.ATTRIBUTES])).tolist() == [
        True,
        False,
        True,
        True,
        True,
    ]


@pytest.mark.long
def test_both_stages_on_precomputed_embeddings(spark, lake, tmp_path):
    """The CUB layout: ten embeddings a picture, as a column of a table."""
    rng = np.random.default_rng(0)
    drawn = [
        (f"{i:03d}", bytearray(images.encode_png(shapes.draw(i, 64)[0])), rng.normal(size=[10, 8]).tolist())
        for i in range(64)
    ]
    spark.createDataFrame(drawn, "id string, content binary, embedding array<array<double>>").write.parquet(
        str(tmp_path / "table")
    )
    configs = {}
    for side, name in ((16, "stackgan1"), (64, "stackgan2")):
        table = {
            "source": "table",
            "path": str(tmp_path / "table"),
            "embedding_column": "embedding",
            "height": side,
            "width": side,
            "channels": 3,
            "planned_workers": 1,
        }
        config = shapes_config(lake, name, f"cub-{name}", **({"stage1": "cub-stackgan1"} if side == 64 else {}))
        config = dataclasses.replace(
            config,
            dataset=f"cub-{side}",
            ingest=Ingest(**table),
            generate=dataclasses.replace(config.generate, images=5, split="train"),
        )
        ingest.ingest(spark, config)
        assert schema.read_manifest(lakes.dataset_url(config)).embedding == (10, 8)
        driver.train(spark, config)
        configs[name] = config
    result = generate.generate(spark, configs["stackgan2"])
    rows = spark.read.parquet(result["table"]).orderBy("seed").collect()
    assert len(rows) == 5 and images.decode_png(rows[0]["image"]).shape == (64, 64, 3)
    assert {row["input"] for row in rows} <= {id for id, _, _ in drawn}
    first, second = (loading.load_model(Run.of(config).url, 3, Run.of(config).record()) for config in configs.values())
    for variable, value in zip(second.stage1.variables, first.variables, strict=True):
        np.testing.assert_array_equal(variable, value)
    stored = spark.read.parquet(*splits.files(lakes.dataset_url(configs["stackgan2"]), "train")).withColumn(
        "seed", F.xxhash64("id").bitwiseAND(2**62 - 1)
    )
    row = stored.where(F.col("seed") == rows[0]["seed"]).first()
    given = {"embedding": tf.constant(schema.unpack_arrays([row["embedding"]] * 16, (10, 8), np.float32))}
    made = images.to_pixels(tf.function(second.generate)(given, tf.fill([16], tf.constant(rows[0]["seed"], tf.int64))))
    assert np.abs(made[0].astype(int) - images.decode_png(rows[0]["image"])).max() <= 1
