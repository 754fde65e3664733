"""Inpainting: its losses and baselines from closed forms, and whole images around filled holes."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_config, make_model

from gan_spark import lake as lakes
from gan_spark.config import Inpaint, UserError
from gan_spark.data import images, schema
from gan_spark.sampling import inpaint
from gan_spark.training import driver

pytestmark = pytest.mark.slow

MANIFEST = schema.Manifest(16, 16, 1, "raw", (), {}, 0, "", {}, "")


def mask_of(options: Inpaint, seed: int = 0, mask: bytes = b"") -> np.ndarray:
    return inpaint._mask({"id": "x", "seed": seed, "mask": mask}, options, MANIFEST)


def test_a_pixel_counts_by_the_share_of_its_window_that_is_missing():
    mask = np.zeros([7, 7], np.uint8)
    mask[3, 3] = 1
    weights = inpaint.context_weights(mask, 3)
    expected = np.zeros([7, 7])
    expected[2:5, 2:5] = 1 / 9
    expected[3, 3] = 0
    np.testing.assert_allclose(weights, expected, atol=1e-7)
    # With no hole within any window but its own pixel's, what is left counts alike.
    np.testing.assert_array_equal(inpaint.context_weights(mask, 1), mask == 0)


def test_psnr_is_that_of_the_hole_alone():
    real, mask = np.zeros([4, 4, 1], np.uint8), np.zeros([4, 4], np.uint8)
    mask[0] = 1
    made = np.full([4, 4, 1], 200, np.uint8)
    made[0] = 51  # 0.2 of 1: an error of 0.04, 13.98 dB
    assert inpaint.psnr(real, made, mask) == pytest.approx(-10 * np.log10(0.04))
    assert inpaint.psnr(real, real, mask) == 100.0


def test_masks_are_of_the_size_that_was_asked_for():
    centre = mask_of(Inpaint(mask="centre", hole=0.25))
    assert centre.sum() == 64 and centre[4:12, 4:12].all()
    random = [mask_of(Inpaint(mask="random", hole=0.5), seed) for seed in (1, 1, 2)]
    assert np.array_equal(random[0], random[1]) and not np.array_equal(random[0], random[2])
    assert 0.3 < random[0].mean() < 0.7


def test_a_mask_of_a_table_is_checked():
    half = np.zeros([16, 16, 1], np.uint8)
    half[:8] = 255
    assert np.array_equal(mask_of(Inpaint(mask="table"), mask=images.encode_png(half)), half[:, :, 0] > 0)
    for value, word in ((0, "nothing"), (255, "everything")):
        with pytest.raises(UserError, match=f"mask of 'x': {word} is missing"):
            mask_of(Inpaint(mask="table"), mask=images.encode_png(np.full([16, 16, 1], value, np.uint8)))
    with pytest.raises(UserError, match="mask of 'x': not an image"):
        mask_of(Inpaint(mask="table"), mask=b"no image at all")


def test_baselines_are_the_mean_and_the_nearest_outside_the_hole(spark):
    manifest = dataclasses.replace(MANIFEST, height=4, width=4)
    header = schema.npy_header((4, 4, 1))
    stored = [np.full([4, 4, 1], value, np.uint8) for value in (10, 20, 90)]
    stored[1][0] = 240  # what the nearest has inside the hole
    frame = spark.createDataFrame(
        [(bytearray(header + image.tobytes()),) for image in stored], "image binary"
    ).repartition(2)
    original, mask = np.full([1, 4, 4, 1], 22, np.uint8), np.zeros([1, 4, 4], np.uint8)
    mask[0, 0] = 1
    mean, nearest = inpaint.baselines(spark, frame, original, mask, manifest)
    assert mean[1:].ravel().tolist() == [40] * 12 and mean[0].ravel().tolist() == [113] * 4  # (10 + 240 + 90) / 3
    assert np.array_equal(nearest[0], stored[1])
    # With nothing missing but the other rows, the row that was the hole decides.
    mask[:], mask[0, 1:] = 0, 1
    assert np.array_equal(inpaint.baselines(spark, frame, original, mask, manifest)[1][0], stored[0])


def test_the_search_finds_an_image_that_the_generator_can_make():
    model = make_model("dcgan", width=8)
    z = model.latents(np.array([11]), 8)
    # Sharper than an untrained generator's, so that latents make a difference.
    for variable in model.sampler.variables:
        variable.assign(variable * 3.0)
    target = model.decode(z).numpy()
    mask = mask_of(Inpaint(hole=0.25))[None]
    errors = []
    for iterations, draws, starts in ((0, 4, 1), (200, 4, 1), (0, 300, 2), (0, 4, 4)):
        options = Inpaint(iterations=iterations, perceptual=0.0, draws=draws, starts=starts)
        made = inpaint.search(model, target, mask, options)
        errors.append(np.abs(made - target)[0][mask[0] == 1].mean())
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 1e-5  # seed 11 is among the draws
    assert errors[3] == errors[0]  # of the ends, the best is kept


def test_z_is_held_to_its_bound(monkeypatch):
    """Each step's z is what the generator is asked for next; the first one is a draw as it is."""
    model, seen = make_model("dcgan", width=8), []
    monkeypatch.setattr(inpaint.tf, "function", lambda function: function)
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: seen.append(np.abs(z).max()) or decode(z))
    for clip in (0.0, 0.5):
        seen.clear()
        options = Inpaint(iterations=3, draws=4, starts=1, rate=0.5, clip=clip)
        inpaint.search(model, np.zeros([1, 16, 16, 1], np.float32), mask_of(Inpaint())[None], options)
        # The last is what comes out, the one before it is for the losses, and two steps are before that.
        assert (max(seen[-4:]) <= 0.5) == bool(clip)


def test_the_perceptual_weight_makes_the_discriminator_surer():
    model = make_model("dcgan", width=8)
    for variable in [*model.sampler.variables, *model.discriminator.trainable_variables]:
        variable.assign(variable * 3.0)
    real = np.zeros([2, 16, 16, 1], np.float32)
    masks = np.repeat(mask_of(Inpaint())[None], 2, 0)
    scores = []
    for weight in (0.0, 100.0):
        made = inpaint.search(model, real, masks, Inpaint(iterations=60, perceptual=weight, draws=4, starts=1))
        scores.append(float(tf.reduce_mean(model.discriminator(made, training=False)[0])))
    assert scores[1] > scores[0]


@pytest.mark.parametrize("blend", ["none", "poisson"])
@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_outside_the_hole_changes(blend, channels):
    rng = np.random.default_rng(0)
    original, made = (rng.integers(0, 256, [16, 16, channels], np.uint8) for _ in range(2))
    for mask in (mask_of(Inpaint()), mask_of(Inpaint(mask="random"), 4)):
        whole = inpaint.filled(original, made, mask, blend)
        assert np.array_equal(whole[mask == 0], original[mask == 0]) and whole.shape == original.shape
    assert blend == "poisson" or np.array_equal(whole[mask == 1], made[mask == 1])


def test_poisson_editing_takes_gradients_and_not_values():
    flat, made = np.full([16, 16, 1], 100, np.uint8), np.full([16, 16, 1], 200, np.uint8)
    assert np.abs(inpaint.filled(flat, made, mask_of(Inpaint()), "poisson").astype(int) - 100).max() <= 1


@pytest.fixture(scope="module")
def config(spark, lake, digits):
    config = make_config(
        lake,
        run="mends",
        train={"steps": 2, "checkpoint_every": 2},
        inpaint={"images": 6, "batch_size": 4, "iterations": 3, "draws": 20, "starts": 2},
    )
    driver.train(spark, config)
    return config


def changed(config, **values):
    return dataclasses.replace(config, inpaint=dataclasses.replace(config.inpaint, **values))


def stored(spark, config) -> dict[str, np.ndarray]:
    rows = spark.read.parquet(lakes.dataset_url(config)).where("split = 'test'").collect()
    return {row["id"]: schema.unpack([row["image"]], (16, 16, 1), "raw")[0] for row in rows}


@pytest.mark.parametrize("kind", ["centre", "random"])
def test_a_table_of_mended_images(spark, config, kind):
    config = changed(config, mask=kind)
    result = inpaint.inpaint(spark, config)
    rows, originals = spark.read.parquet(result["table"]).collect(), stored(spark, config)
    assert len(rows) == result["images"] == 6 and result["step"] == 2
    for row in rows:
        mask = mask_of(config.inpaint, row["seed"])
        whole, original = images.decode_png(row["image"]), originals[row["input"]]
        assert row["missing"] == mask.sum() and np.array_equal(whole[mask == 0], original[mask == 0])
        assert row["psnr_hole"] == pytest.approx(inpaint.psnr(original, whole, mask))
        assert (images.decode_png(row["masked"])[mask == 1] == 128).all()
    for name in ("psnr_hole", "psnr_hole_mean", "psnr_hole_nearest"):
        assert result[name] == pytest.approx(np.mean([row[name] for row in rows]), abs=1e-3)
    assert images.decode_png(lakes.read_bytes(result["grid"])).shape[1] == 10 * 18 + 2


def test_tasks_are_handed_no_more_images_at_once_than_memory_holds(spark, config, handed, default_batches, monkeypatch):
    def mended() -> dict[str, bytes]:
        rows = spark.read.parquet(inpaint.inpaint(spark, config)["table"]).collect()
        return {row["input"]: bytes(row["image"]) for row in rows}

    with monkeypatch.context() as limited:
        limited.setattr("gan_spark.data.batches.BYTES", 300)  # one image of 16 x 16, and a bit
        few_at_once = mended()
    assert handed() == [1] * 6 and spark.conf.get(default_batches) == "10000"
    assert mended() == few_at_once and max(handed()) > 1


def test_masks_from_a_table_choose_the_images(spark, config, tmp_path):
    ids = sorted(stored(spark, config))[:3]
    mask = np.zeros([16, 16, 1], np.uint8)
    mask[2:5, 3:9] = 255
    spark.createDataFrame(
        [(id, bytearray(images.encode_png(mask))) for id in ids], "id string, mask binary"
    ).write.parquet(str(tmp_path / "masks"))
    result = inpaint.inpaint(spark, changed(config, mask="table", masks=str(tmp_path / "masks"), blend="poisson"))
    rows = spark.read.parquet(result["table"]).collect()
    assert sorted(row["input"] for row in rows) == ids and {row["missing"] for row in rows} == {18}
    spark.createDataFrame(
        [(id, bytearray(images.encode_png(mask))) for id in ids[:1] * 2], "id string, mask binary"
    ).write.parquet(str(tmp_path / "twice"))
    spark.createDataFrame([("nobody", bytearray(b"x"))], "id string, mask binary").write.parquet(
        str(tmp_path / "others")
    )
    for values, message in (
        ({"masks": ""}, "inpaint.masks is empty"),
        (
            {"masks": str(tmp_path / "twice")},
            f"expected a row with a mask for each id, found 2 rows with 2 masks for '{ids[0]}'",
        ),
        ({"masks": str(tmp_path / "others")}, "no image of split 'test' .* has a mask"),
        ({"masks": lakes.dataset_url(config)}, "expected columns id string, mask binary; found"),
    ):
        with pytest.raises(UserError, match=message):
            inpaint.inpaint(spark, changed(config, mask="table", **values))


def test_only_a_dcgan_mends(spark, lake, digits):
    config = make_config(lake, "vae", run="mends-not", train={"steps": 1})
    driver.train(spark, config)
    with pytest.raises(UserError, match="expected a dcgan to inpaint with, found 'vae'"):
        inpaint.inpaint(spark, config)
    with pytest.raises(UserError, match="no run at .*never-trained"):
        inpaint.inpaint(spark, make_config(lake, run="never-trained"))
