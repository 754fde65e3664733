"""Diffusion against closed forms: its schedule, its sampler with a predictor that is known, its loss."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_batch, make_model

from gan_spark.config import UserError
from gan_spark.models import diffusion
from gan_spark.models.diffusion import Diffusion, GroupNorm, cosine_schedule, ddim, sampling_levels

MEAN, DEVIATION = 0.2, 0.1  # of data that is a Gaussian, pixel by pixel
T = 1000


def with_noise(seed: int = 0, **changes) -> Diffusion:
    """The small model with weights that are no longer those it begins with, in both of its networks alike."""
    model = make_model("diffusion", **changes)
    for number, variable in enumerate(model.network.trainable_variables):
        variable.assign_add(0.1 * tf.random.stateless_normal(variable.shape, [seed, number]))
    model.use_newest_weights()
    return model


# --- the schedule ----------------------------------------------------------------------


@pytest.mark.parametrize("levels", [20, 1000, 4000])
def test_the_schedule_falls_from_a_whole_image_to_noise(levels):
    shares = cosine_schedule(levels)
    assert shares.shape == (levels + 1,) and shares[0] == 1.0 and 0.0 < shares[-1] < 1e-5
    assert (np.diff(shares) < 0).all()
    f = lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(shares[:-1], f(np.arange(levels) / levels) / f(0.0))
    assert shares[-1] == pytest.approx(0.001 * shares[-2])  # the largest step that there is
    steps = 1.0 - shares[1:] / shares[:-1]
    assert steps[-1] == pytest.approx(0.999) and (steps[:-1] < 0.999).all() and (np.diff(steps) > 0).all()


def test_the_schedule_is_the_published_one():
    shares = cosine_schedule(T)
    # f(1/2) / f(0) by s = 0.008; the first step is by its choice less than a grey level's 1 / 127.5 of deviation.
    assert shares[T // 2] == pytest.approx(
        np.cos(0.508 / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    )
    assert shares[T // 2] == pytest.approx(0.49384, abs=1e-5)
    assert 0.8 / 127.5 < np.sqrt(1.0 - shares[1]) < 1.0 / 127.5
    assert 1.0 - shares[1] == pytest.approx(4.1284e-5, rel=1e-4)  # the first of openai/improved-diffusion's betas


@pytest.mark.parametrize("steps", [1, 2, 20, 500, 1000])
def test_sampling_goes_from_the_last_level_to_the_first(steps):
    levels = sampling_levels(T, steps)
    assert len(levels) == steps == len(set(levels.tolist())) and levels[0] == T and (np.diff(levels) < 0).all()
    assert steps == 1 or levels[-1] == 1
    assert sampling_levels(T, 4).tolist() == [1000, 445, 112, 1]  # 1 + 999 (i / 3)^2


# --- what is mixed, and what is learned ------------------------------------------------


def test_an_image_is_mixed_to_the_moments_of_the_paper():
    share = cosine_schedule(T)[300]
    noise = tf.random.stateless_normal([4000, 4, 4, 1], [0, 0])
    mixed = diffusion.mixed(tf.fill([4000, 4, 4, 1], 0.5), noise, tf.fill([4000], np.float32(share))).numpy()
    count = mixed.size
    assert mixed.mean() == pytest.approx(0.5 * np.sqrt(share), abs=4 * np.sqrt((1 - share) / count))
    assert mixed.var() == pytest.approx(1 - share, rel=4 * np.sqrt(2 / count))
    ends = diffusion.mixed(tf.fill([2, 4, 4, 1], 0.5), noise[:2], tf.constant([1.0, 0.0])).numpy()
    np.testing.assert_allclose(ends[0], 0.5)
    np.testing.assert_allclose(ends[1], noise[1])


def test_the_loss_is_1_without_a_prediction_and_0_with_the_noise_itself():
    noise = tf.random.stateless_normal([64, 16, 16, 3], [1, 0])
    errors = diffusion.noise_error(tf.zeros_like(noise), noise).numpy()
    assert errors.shape == (64,) and errors.mean() == pytest.approx(1.0, abs=4 * np.sqrt(2 / noise.numpy().size))
    np.testing.assert_array_equal(diffusion.noise_error(noise, noise), 0.0)
    np.testing.assert_allclose(diffusion.noise_error(0.75 * noise, noise), errors / 16, rtol=1e-5)
    np.testing.assert_allclose(diffusion.noise_error(1.25 * noise, noise), errors / 16, rtol=1e-5)


def test_a_step_begins_with_the_loss_of_a_predictor_of_zero():
    """The last convolution is 0 at first; the noise is the step's own draw."""
    model, batch = make_model("diffusion", output="noise"), make_batch("diffusion")
    expected = float(tf.reduce_mean(tf.square(model.normal(tf.shape(batch["image"]), stream=1))))
    assert float(model.train_step([batch])["loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["noise", "velocity"])
def test_noise_and_image_follow_from_what_the_network_says(kind):
    model = make_model("diffusion", output=kind)
    images, t = make_batch("diffusion", 5)["image"], tf.constant([1, 10, 500, 900, 990])
    noise, share = model.normal(images.shape), tf.gather(tf.constant(model.schedule, tf.float32), t)
    x = diffusion.mixed(images, noise, share)
    root, rest = (tf.sqrt(value)[:, None, None, None] for value in (share, 1.0 - share))
    output = noise if kind == "noise" else root * noise - rest * images
    np.testing.assert_allclose(model.noise(output, x, t), noise, atol=1e-5)
    np.testing.assert_allclose(model.clean(output, x, t), images, atol=1e-4)
    inputs = []
    assert model.output(lambda values: inputs.append(values) or x, x, t, None) is x
    np.testing.assert_allclose(inputs[0][1], t.numpy() / T)


def test_an_error_of_v_is_no_larger_an_error_of_the_image():
    t = tf.constant([T, 990, 500])
    x = tf.zeros([3, 16, 16, 1])
    errors = {}
    for kind in ("noise", "velocity"):
        model = make_model("diffusion", output=kind)
        errors[kind] = np.abs(model.clean(x + 0.01, x, t) - model.clean(x, x, t)).max((1, 2, 3))
    assert (errors["velocity"] <= 0.0101).all()
    np.testing.assert_allclose(errors["noise"][1:], 0.01 * np.sqrt(1 / cosine_schedule(T)[[990, 500]] - 1), rtol=1e-3)
    assert errors["noise"][0] > 100


@pytest.mark.slow
@pytest.mark.parametrize("output", [pytest.param("noise", marks=pytest.mark.long), "velocity"])
def test_training_lowers_the_error_of_held_out_noise(output):
    model = make_model("diffusion", output=output, width=8, rate=3e-3, average=0.9)
    images = tf.fill([16, 16, 16, 1], -0.5)
    batch = {"image": images, "label": tf.zeros([16], tf.int32)}
    step = tf.function(model.train_step)
    before = float(tf.reduce_mean(model.held_out(batch)["noise_error"]))
    for _ in range(60):
        step([batch])
        model.step.assign_add(1)
    assert float(tf.reduce_mean(model.held_out(batch)["noise_error"])) < 0.5 * before


# --- the sampler -----------------------------------------------------------------------


def best_image(x: tf.Tensor, level: tf.Tensor) -> tf.Tensor:
    """What the best predictor of the noise comes to, E[x_0 | x_t], where pixels of images are N(MEAN, DEVIATION^2)."""
    share = tf.gather(tf.constant(cosine_schedule(T), tf.float32), level)
    weight = tf.sqrt(share) * DEVIATION**2 / (share * DEVIATION**2 + 1.0 - share)
    return MEAN + weight * (x - tf.sqrt(share) * MEAN)


def sampled(noise: tf.Tensor, steps: int) -> np.ndarray:
    return ddim(best_image, noise, cosine_schedule(T), sampling_levels(T, steps)).numpy()


def test_ddim_with_the_best_predictor_gives_the_data_its_mean_and_variance():
    """Along the flow a pixel keeps its place in the distribution: noise z ends as mean + deviation z."""
    noise = tf.random.stateless_normal([64, 16, 16, 1], [2, 0])
    images = sampled(noise, T)
    assert images.mean() == pytest.approx(MEAN, abs=0.002)
    assert images.std() == pytest.approx(DEVIATION, rel=0.02)
    np.testing.assert_allclose(images, MEAN + DEVIATION * noise.numpy(), atol=0.01)


@pytest.mark.parametrize("steps", [2, 5, 20, 100])
def test_ddim_in_few_steps_is_the_recursion_of_the_paper(steps):
    """Equation 12 by the noise itself, e(x) = sqrt(1 - a) (x - sqrt(a) m) / (a s^2 + 1 - a), in float64."""
    noise = tf.random.stateless_normal([16, 8, 8, 1], [3, 0])
    shares, levels = cosine_schedule(T), sampling_levels(T, steps).tolist()
    x = noise.numpy().astype(np.float64)
    for now, after in zip(shares[levels], shares[[*levels[1:], 0]], strict=True):
        error = np.sqrt(1 - now) * (x - np.sqrt(now) * MEAN) / (now * DEVIATION**2 + 1 - now)
        x = np.sqrt(after) * (x - np.sqrt(1 - now) * error) / np.sqrt(now) + np.sqrt(1 - after) * error
    np.testing.assert_allclose(sampled(noise, steps), x, atol=1e-4)
    assert x.mean() == pytest.approx(MEAN, abs=0.01)


def test_more_steps_bring_the_datas_deviation_nearer():
    noise = tf.random.stateless_normal([16, 8, 8, 1], [3, 0])
    deviations = [sampled(noise, steps).std() / noise.numpy().std() for steps in (2, 5, 20, 100, T)]
    assert deviations == sorted(deviations) and deviations[0] < 0.5 * DEVIATION and deviations[2] > 0.85 * DEVIATION
    assert deviations[-1] == pytest.approx(DEVIATION, rel=0.01)


def test_what_leaves_the_range_of_images_is_held_to_it():
    noise = tf.random.stateless_normal([2, 8, 8, 1], [4, 0])
    images = ddim(lambda x, level: 5.0 * x, noise, cosine_schedule(T), sampling_levels(T, 5)).numpy()
    assert np.abs(images).max() == 1.0 and np.isfinite(images).all()


def test_guidance_of_0_is_the_class_and_of_minus_1_is_none():
    of_class, of_none = tf.constant([1.0, 2.0]), tf.constant([0.5, 3.0])
    np.testing.assert_allclose(diffusion.guided(of_class, of_none, 0.0), of_class)
    np.testing.assert_allclose(diffusion.guided(of_class, of_none, -1.0), of_none)
    np.testing.assert_allclose(diffusion.guided(of_class, of_none, 2.0), [2.0, 0.0])


@pytest.mark.slow
def test_guidance_drives_images_away_from_those_of_no_class():
    seeds, label = tf.range(6, dtype=tf.int64), {"label": tf.constant([0, 1, 2, 3, 4, 5])}
    none = {"label": tf.fill([6], -1)}
    plain = with_noise()
    images = {weight: with_noise(guidance=weight).generate(label, seeds).numpy() for weight in (1e-6, 3.0)}
    np.testing.assert_allclose(images[1e-6], plain.generate(label, seeds), atol=1e-3)
    assert not np.allclose(images[3.0], images[1e-6], atol=0.05)
    # Where the class is none, there is nothing to be driven from.
    np.testing.assert_allclose(with_noise(guidance=3.0).generate(none, seeds), plain.generate(none, seeds), atol=1e-3)
    assert not np.allclose(plain.generate(label, seeds), plain.generate(none, seeds), atol=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [pytest.param(0.0, marks=pytest.mark.long), 2.0])
def test_a_seed_is_one_image_in_batches_of_any_size(guidance):
    model = with_noise(guidance=guidance)
    seeds, labels = tf.constant([5, 3, 2**40, 0, 7, 8, 9], tf.int64), tf.range(7)
    whole = model.generate({"label": labels}, seeds).numpy()
    for size in (1, 2, 3):
        parts = [
            model.generate({"label": labels[start : start + size]}, seeds[start : start + size]).numpy()
            for start in range(0, 7, size)
        ]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-4)
    assert not np.allclose(whole[0], whole[1], atol=0.1)


# --- classes, and the network ----------------------------------------------------------


@pytest.mark.parametrize("changes", [{"classes": 0}, {"classes": 10, "dropped": 1.0}])
def test_a_model_without_classes_reads_and_takes_images_alone(changes):
    model = make_model("diffusion", **changes)
    assert Diffusion.reads(model.config) == ("image",) and Diffusion.takes(model.config) == ()
    assert len(model.network.inputs) == 2
    batch = {"image": make_batch("diffusion")["image"]}
    assert np.isfinite(model.train_step([batch])["loss"]) and model.held_out(batch)["noise_error"].shape == (8,)
    assert model.preview(batch, tf.range(9, dtype=tf.int64)).shape == (9, 16, 16, 1)


def test_classes_are_left_out_as_often_as_the_config_says():
    model, seen = make_model("diffusion", dropped=0.25), []
    network = model.network
    model.network = lambda inputs: seen.append(inputs[2].numpy()) or network(inputs)
    model.train_step([make_batch("diffusion", 400)])
    kept = seen[0].sum(1)
    assert set(kept) == {0.0, 1.0} and kept.mean() == pytest.approx(0.75, abs=4 * np.sqrt(0.25 * 0.75 / 400))
    labels = make_batch("diffusion", 400)["label"].numpy()
    np.testing.assert_array_equal(seen[0].argmax(1)[kept == 1], labels[kept == 1])


@pytest.mark.slow
def test_an_image_of_a_class_that_nobody_knows_is_of_none():
    model, images = with_noise(), make_batch("diffusion", 4)["image"]
    without = model.held_out({"image": images})["noise_error"]
    unknown = model.held_out({"image": images, "label": tf.fill([4], -1)})["noise_error"]
    known = model.held_out({"image": images, "label": tf.range(4)})["noise_error"]
    np.testing.assert_array_equal(unknown, without)
    assert not np.allclose(known, without, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, channels, patch, blocks", [(16, 3, 1, 1), (18, 1, 1, 2), (28, 1, 2, 1), (50, 3, 1, 1), (64, 3, 2, 1)]
)
def test_images_of_any_even_size_are_made(size, channels, patch, blocks):
    model = make_model("diffusion", image_size=size, channels=channels, patch=patch, blocks=blocks, sampling_steps=2)
    images = model.generate({"label": tf.range(2)}, tf.range(2, dtype=tf.int64))
    assert images.shape == (2, size, size, channels)
    assert min(layer.output_shape[1] for layer in model.network.layers if isinstance(layer, diffusion.Attention)) <= 8


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 6}, "model.width = 6: expected a multiple of 4"),
        ({"patch": 3}, "model.patch = 3: expected 1, or a divisor of model.image_size = 16"),
        ({"patch": 8}, "leaves 4 patches a side or more"),
        ({"levels": 10, "sampling_steps": 11}, "model.sampling_steps = 11: expected no more than model.levels = 10"),
    ],
)
def test_what_cannot_be_built_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_model("diffusion", **changes)


def test_group_norm_normalises_groups_of_an_image_and_is_modulated():
    x = tf.constant(np.random.default_rng(0).normal(3.0, 2.0, [5, 6, 7, 8]), tf.float32)
    layer = GroupNorm()
    outputs = layer(x).numpy().reshape(5, 42, 2, 4)
    np.testing.assert_allclose(outputs.mean((1, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(outputs.std((1, 3)), 1.0, atol=1e-4)
    reference = tf.keras.layers.GroupNormalization(2, epsilon=1e-5)
    np.testing.assert_allclose(layer(x), reference(x), atol=1e-4)
    modulation = tf.random.stateless_normal([5, 16], [0, 1])
    factor, term = np.split(modulation.numpy()[:, None, None], 2, -1)
    np.testing.assert_allclose(GroupNorm()([x, modulation]), reference(x) * (1 + factor) + term, atol=1e-4)


def test_levels_are_told_apart_by_sinusoids():
    values = diffusion.sinusoids(tf.constant([0.0, 1.0, 500.0]), 8).numpy()
    np.testing.assert_allclose(values[0], [1, 1, 1, 1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(
        values[1], np.concatenate([f(10.0 ** -np.arange(4)) for f in (np.cos, np.sin)]), atol=1e-6
    )
    assert np.abs(values[2] - values[1]).max() > 0.5
