"""Super-resolution: against bicubic, against closed forms, and on top of other runs."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from conftest import MODEL_CONFIGS, make_batch, make_config

from gan_spark import lake as lakes
from gan_spark.config import UserError
from gan_spark.models import srgan
from gan_spark.models.srgan import SRGAN, Config
from gan_spark.runs import loading
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.training import driver

pytestmark = pytest.mark.slow


def build(**changes):
    tf.keras.utils.set_random_seed(0)
    return SRGAN(Config(**{**MODEL_CONFIGS["srgan"], **changes}))


def test_before_the_first_step_it_is_bicubic():
    model, images = build(), make_batch("srgan")["image"]
    low = model.reduced(images)
    assert low.shape == (8, 4, 4, 1)
    np.testing.assert_allclose(model.enlarged(low, model.sampler), model.bicubic(low), atol=1e-6)
    values = model.held_out({"image": images})
    np.testing.assert_allclose(values["psnr"], values["psnr_bicubic"], rtol=1e-5)


@pytest.mark.parametrize("factor, side", [(2, 8), (4, 4), (8, 2)])
def test_it_enlarges_by_its_factor_whatever_the_size(factor, side):
    model = build(factor=factor)
    full = make_batch("srgan")["image"]
    assert model.reduced(full).shape[1:3] == (side, side)
    assert model.generate({"image": full}, None).shape == (8, 16, 16, 1)
    assert model.generate({"image": full[:, :6, :6]}, None).shape == (8, 6 * factor, 6 * factor, 1)


def test_psnr_of_a_known_error():
    """An error of 0.02 in [-1, 1] is 0.01 in [0, 1]: 40 dB. The luminance of grey is grey."""
    images = tf.zeros([2, 16, 16, 1])
    real, fake = srgan.luminance(images), srgan.luminance(images + 0.02)
    np.testing.assert_allclose(tf.image.psnr(real, fake, 1.0), 40.0, rtol=1e-4)
    grey = tf.zeros([1, 2, 2, 3])
    np.testing.assert_allclose(srgan.luminance(grey), (16 + 0.5 * 219) / 255, rtol=1e-5)
    assert float(srgan.luminance(grey - 1.0)[0, 0, 0, 0]) == pytest.approx(16 / 255)


def test_sub_pixels_are_laid_out_in_space():
    x = tf.reshape(tf.range(4.0), [1, 1, 1, 4])
    np.testing.assert_array_equal(tf.nn.depth_to_space(x, 2)[0, :, :, 0], [[0, 1], [2, 3]])
    with_two = sum("depth_to_space" in layer.name for layer in srgan.generator(Config()).layers)
    assert with_two == 2


def test_the_discriminator_is_the_papers():
    convolutions = [
        layer for layer in srgan.discriminator(Config()).layers if isinstance(layer, tf.keras.layers.Conv2D)
    ]
    assert [(layer.filters, layer.strides[0]) for layer in convolutions] == [
        (64, 1),
        (64, 2),
        (128, 1),
        (128, 2),
        (256, 1),
        (256, 2),
        (512, 1),
        (512, 2),
    ]


def test_srresnet_has_no_discriminator_and_lowers_its_error():
    model = build(adversarial="none", rate=3e-3)
    assert set(model.groups) == {"g"}
    smooth = tf.image.resize(tf.random.stateless_normal([8, 6, 6, 1], [1, 2]), [16, 16], "bicubic") * 0.3
    first = float(model.train_step([{"image": smooth}])["content"])
    for _ in range(60):
        last = model.train_step([{"image": smooth}])
    assert set(last) == {"content", "psnr"} and float(last["content"]) < 0.8 * first


@pytest.mark.parametrize("loss", ["cross_entropy", "least_squares"])
def test_the_adversarial_weight_counts(loss):
    batch = make_batch("srgan")
    weights = []
    for weight in (0.0, 10.0):
        model = build(adversarial=loss, adversarial_weight=weight)
        model.optimize("g", tf.keras.optimizers.SGD(0.1), model.groups["g"])
        model.train_step([batch])
        weights.append(model.generator.trainable_variables[-2].numpy())
    assert not np.allclose(*weights)


def test_crops_are_inside_and_of_their_size():
    model = build(crop=8)
    images = tf.tile(tf.reshape(tf.range(256.0), [1, 16, 16, 1]), [2, 1, 1, 1])
    seen = set()
    for step in range(20):
        model.step.assign(step)
        crop = model.cropped(images).numpy()
        assert crop.shape == (2, 8, 8, 1)
        assert abs(crop[0, 1, 0, 0] - crop[0, 0, 0, 0]) == 16
        seen.add(float(crop.min()))
    assert len(seen) > 5


def test_each_image_of_a_batch_has_a_crop_of_its_own():
    model = build(crop=8)
    images = tf.tile(tf.reshape(tf.range(256.0), [1, 16, 16, 1]), [64, 1, 1, 1])
    crops = model.cropped(images).numpy()
    corners = {(int(crop.min()), bool(crop[0, 0, 0] < crop[0, 1, 0])) for crop in crops}  # place, mirrored or not
    assert len({corner for corner, _ in corners}) > 20 and len({mirrored for _, mirrored in corners}) == 2
    for crop in crops:
        crop = crop if crop[0, 0, 0] < crop[0, 1, 0] else crop[:, ::-1]
        top, left = divmod(int(crop.min()), 16)
        np.testing.assert_array_equal(crop, images[0, top : top + 8, left : left + 8])
    whole = build().cropped(images).numpy()[:, 0, 0, 0]
    assert set(whole) == {0.0, 15.0}  # where nothing is cropped, each is mirrored or not


@pytest.mark.parametrize("name", ["VGG16", pytest.param("VGG19", marks=pytest.mark.long)])
def test_features_of_vgg_from_a_file(tmp_path, name):
    tf.keras.utils.set_random_seed(1)
    network = getattr(tf.keras.applications, name)(weights=None, include_top=False)
    path, content = str(tmp_path / "vgg.weights.h5"), name.lower()
    network.save_weights(path)
    model = build(content=content, content_weights=path, content_layer="block2_conv1")
    images = make_batch("srgan")["image"]
    expected = tf.keras.Model(network.input, network.get_layer("block2_conv1").output)(
        tf.keras.applications.vgg19.preprocess_input(tf.image.grayscale_to_rgb(images + 1.0) * 127.5)
    )
    np.testing.assert_allclose(model._features(images), expected, rtol=1e-4, atol=1e-4)
    assert float(model.content(images, images)) == 0.0 < float(model.content(images, -images))
    assert not {id(v) for v in network.trainable_variables} & {id(v) for group in model.groups.values() for v in group}
    with pytest.raises(UserError, match=f"{content}: no such layer: 'block9' .*block1_conv1"):
        build(content=content, content_weights=path, content_layer="block9").content(images, images)
    # What draws does not look: it needs no weights.
    without = build(content=content, content_weights=str(tmp_path / "gone.h5"))
    assert without.generate({"image": images}, None).shape == images.shape
    with pytest.raises(UserError, match="no such file"):
        without.train_step([{"image": images}])


@pytest.mark.parametrize("changes", [{"crop": 6}, {"crop": 20}, {"image_size": 18}, {"image_size": 18, "crop": 8}])
def test_sizes_that_cannot_be_enlarged_to_are_refused(changes):
    with pytest.raises(UserError, match="expected multiples of model.factor = 4, and a crop no larger than the image"):
        build(**changes)


@pytest.mark.long
def test_a_run_starts_from_another_and_looks_through_a_third(spark, lake, digits):
    classifier = make_config(lake, "lenet", run="sr-features", train={"steps": 2})
    driver.train(spark, classifier)
    first = make_config(lake, "srgan", run="sr-resnet", train={"steps": 4})
    first = dataclasses.replace(first, model=dataclasses.replace(first.model, adversarial="none"))
    driver.train(spark, first)
    second = make_config(lake, "srgan", run="sr-gan", train={"steps": 1})
    second = dataclasses.replace(
        second,
        model=dataclasses.replace(
            second.model,
            pretrained="sr-resnet",
            content="run",
            content_run="sr-features",
            content_layer="conv2",
            rate=0.0,
        ),
    )
    with pytest.raises(UserError, match="no such layer"):
        loading.build(
            dataclasses.replace(second.model, content_layer="nothing"), uses=loading.used_runs(second)
        ).content(tf.zeros([1, 16, 16, 1]), tf.zeros([1, 16, 16, 1]))
    with pytest.raises(UserError, match="model.content_run = 'sr-resnet': expected the run of a lenet, found srgan"):
        loading.used_runs(dataclasses.replace(second, model=dataclasses.replace(second.model, content_run="sr-resnet")))
    wider = dataclasses.replace(
        second, run="sr-wider", model=dataclasses.replace(second.model, width=2 * second.model.width)
    )
    with pytest.raises(UserError, match="model.pretrained: its generator has other layers than this one"):
        driver.train(spark, wider)
    assert not lakes.exists(Run.of(wider).url)  # so that its name is free for the config that fits
    nowhere = dataclasses.replace(
        second,
        run="sr-nowhere",
        model=dataclasses.replace(second.model, content="vgg19", content_weights="/nowhere.h5"),
    )
    with pytest.raises(UserError, match="^file:///nowhere.h5: no such file"):
        driver.train(spark, nowhere)
    assert not lakes.exists(Run.of(nowhere).url)
    half = dataclasses.replace(
        second, run="sr-half", train=dataclasses.replace(second.train, precision="mixed_bfloat16")
    )
    assert np.isfinite(driver.train(spark, half)["content"])
    uses = loading.used_runs(second)
    assert uses["pretrained"]["step"] == 4 and uses["content_run"]["url"] == Run.of(classifier).url
    driver.train(spark, second)  # at a rate of 0, so it stays where it started
    end, start = (loading.build(each.model, uses=loading.used_runs(each)) for each in (second, first))
    loading.restore(end, Run.of(second)), loading.restore(start, Run.of(first))
    learnt = start.sampler.get_weights()
    assert float(np.abs(learnt[-2]).max() + np.abs(learnt[-1]).max()) > 0  # it had learnt something
    for variable, value in zip(end.generator.weights, learnt, strict=True):
        if variable.trainable:
            np.testing.assert_array_equal(variable.numpy(), value)
    table = loading.load_model(Run.of(second).url, 1, Run.of(second).record()).generate(
        {"image": make_batch("srgan")["image"]}, None
    )
    assert table.shape == (8, 16, 16, 1)
    with pytest.raises(UserError, match="no run at .*nowhere"):
        loading.used_runs(dataclasses.replace(second, model=dataclasses.replace(second.model, pretrained="nowhere")))
    assert lakes.exists(Run.of(first).url)


@pytest.mark.long
def test_tasks_are_handed_no_more_images_at_once_than_memory_holds(
    spark, lake, digits, handed, default_batches, monkeypatch
):
    options = {"images": 11, "batch_size": 4, "partitions": 2}
    config = make_config(lake, "srgan", run="sr-few", train={"steps": 1}, generate=options)
    driver.train(spark, config)

    def enlarged() -> dict[str, bytes]:
        rows = spark.read.parquet(generate.generate(spark, config)["table"]).collect()
        return {row["input"]: bytes(row["image"]) for row in rows}

    with monkeypatch.context() as limited:
        limited.setattr("gan_spark.data.batches.BYTES", 900)  # three images of 16 x 16, and a bit
        few_at_once = enlarged()
    assert sum(handed()) == 11 == len(few_at_once) and max(handed()) <= 3
    assert spark.conf.get(default_batches) == "10000"
    assert enlarged() == few_at_once and max(handed()) > 3
