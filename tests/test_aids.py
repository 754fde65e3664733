"""Every training aid does what it says, and the collapse monitor names them."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import MODEL_CONFIGS, make_batch, make_model

from gan_spark.models import aids, dcgan, losses
from gan_spark.models.blocks import InstanceNorm, falling_rate
from gan_spark.training import collapse


def build(**changes):
    tf.keras.utils.set_random_seed(0)
    return dcgan.DCGAN(dcgan.Config(**{**MODEL_CONFIGS["dcgan"], **changes}))


def weights(model, name):
    return [variable.numpy() for variable in model.groups[name]]


def moved(model, name, batch=None, steps=1):
    """Norm of the change of a network's weights in some steps."""
    before = weights(model, name)
    for _ in range(steps):
        model.train_step([batch or make_batch("dcgan")])
        model.step.assign_add(1)
    return float(np.sqrt(sum(np.square(a - b).sum() for a, b in zip(before, weights(model, name), strict=True))))


def test_minibatch_discrimination_is_the_formula():
    layer = aids.MinibatchDiscrimination(1, 2)
    layer(tf.zeros([1, 2]))
    layer.tensor.assign([[1.0, 0.0], [0.0, 1.0]])
    made = layer(tf.constant([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])).numpy()
    np.testing.assert_allclose(
        made[:, 2], [np.exp(-1) + np.exp(-3), np.exp(-1) + np.exp(-4), np.exp(-3) + np.exp(-4)], rtol=1e-5
    )
    same = layer(tf.zeros([5, 2])).numpy()
    np.testing.assert_allclose(same[:, 2], 4.0)  # a collapsed batch stands out


@pytest.mark.slow
def test_minibatch_discrimination_is_in_the_discriminator():
    assert (
        build(minibatch=3).discriminator.layers[-1].kernel.shape[0]
        == build().discriminator.layers[-1].kernel.shape[0] + 3
    )


def test_history_is_the_running_mean():
    variable = tf.Variable([1.0])
    history = aids.History([variable])
    assert float(history.penalty()) == 0.0
    variable.assign([4.0])
    assert float(history.penalty()) == pytest.approx(9.0)
    history.update(tf.constant(0))
    assert history.means[0].numpy() == pytest.approx([2.5])  # of 1 and 4
    variable.assign([7.0])
    history.update(tf.constant(1))
    assert history.means[0].numpy() == pytest.approx([4.0])  # of 1, 4 and 7


@pytest.mark.slow
def test_historical_averaging_holds_weights_near_their_mean():
    sgd = {
        "generator_optimizer": "sgd",
        "discriminator_optimizer": "sgd",
        "generator_rate": 0.05,
        "discriminator_rate": 0.05,
    }
    assert moved(build(historical_averaging=5.0, **sgd), "d", steps=12) < 0.9 * moved(build(**sgd), "d", steps=12)


def test_historical_means_are_part_of_the_state():
    model = build(historical_averaging=1.0)
    state = {id(variable) for variable in model.state()}
    assert model.history_means and all(id(mean) in state for mean in model.history_means)


@pytest.mark.slow
def test_feature_matching_is_the_distance_of_means():
    real, fake = tf.constant([[0.0, 2.0], [2.0, 2.0]]), tf.constant([[1.0, 0.0], [1.0, 0.0]])
    assert float(losses.feature_matching(real, fake)) == pytest.approx((0.0 + 4.0) / 2)
    sgd = {"generator_optimizer": "sgd", "generator_rate": 0.1}
    without, with_it = build(**sgd), build(feature_matching=50.0, **sgd)
    assert moved(with_it, "g") > 1.2 * moved(without, "g")


@pytest.mark.slow
def test_spectral_norm_bounds_every_kernel():
    model = build(spectral_norm=True, normalisation="none", discriminator_rate=0.0)
    for _ in range(30):
        model.train_step([make_batch("dcgan")])
        model.step.assign_add(1)
    kernels = [variable.numpy() for variable in model.discriminator.trainable_variables if "kernel" in variable.name]
    norms = [np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0] for kernel in kernels]
    np.testing.assert_allclose(norms, 1.0, rtol=0.02)
    plain = [
        variable.numpy()
        for variable in build(normalisation="none").discriminator.trainable_variables
        if "kernel" in variable.name
    ]
    assert any(
        abs(np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), compute_uv=False)[0] - 1) > 0.1 for kernel in plain
    )


def test_batches_together_share_their_statistics():
    """Real and generated images differ, so batch norm over both gives other logits than over each."""
    real, fake = tf.random.stateless_normal([8, 16, 16, 1], [1, 2]), tf.zeros([8, 16, 16, 1]) + 0.5
    apart, together = build(), build(batches="together")
    assert not np.allclose(apart._look(real, fake)[0], together._look(real, fake)[0], atol=1e-3)
    apart, together = build(normalisation="none"), build(batches="together", normalisation="none")
    np.testing.assert_allclose(apart._look(real, fake)[0], together._look(real, fake)[0], atol=1e-5)


def test_instance_norm_normalises_each_image():
    inputs = tf.random.stateless_normal([4, 8, 8, 3], [1, 2]) * 3.0 + tf.reshape(tf.range(4.0), [4, 1, 1, 1])
    outputs = InstanceNorm()(inputs).numpy()
    np.testing.assert_allclose(outputs.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(outputs.std((1, 2)), 1, atol=1e-3)
    layers = {type(layer).__name__ for layer in build(normalisation="instance").generator.layers}
    assert "InstanceNorm" in layers and "BatchNorm" not in layers


@pytest.mark.parametrize("aid", [{"generator_noise": 0.5}, {"generator_dropout": 0.5}])
def test_noise_in_the_generator_is_a_function_of_the_seed(aid):
    model, seeds = build(**aid), tf.constant([3, 4, 3], tf.int64)
    images = model.generate({}, seeds).numpy()
    np.testing.assert_array_equal(images[0], images[2])
    z = tf.ones([3, 8])
    drawn = model._draw(model.sampler, z, seeds, training=False).numpy()
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert not np.allclose(drawn[0], drawn[1])  # one z, two seeds
    plain = build()
    drawn = plain._draw(plain.sampler, z, seeds, training=False).numpy()
    np.testing.assert_array_equal(drawn[0], drawn[1])


def test_seeded_dropout_drops_its_share_and_keeps_the_mean():
    dropped = aids.SeededNoise(0.0, 0.25, 1)([tf.ones([20, 1000]), tf.range(20, dtype=tf.int64)]).numpy()
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.01)
    noisy = aids.SeededNoise(2.0, 0.0, 1)([tf.zeros([20, 1000]), tf.range(20, dtype=tf.int64)]).numpy()
    assert noisy.std() == pytest.approx(2.0, rel=0.05)


def test_two_time_scales_and_two_optimizers():
    model = build(
        generator_optimizer="adam", discriminator_optimizer="sgd", generator_rate=1e-3, discriminator_rate=0.5
    )
    kinds = {
        name: (type(optimizer).__name__, round(float(optimizer.learning_rate), 6))
        for name, optimizer in model.optimizers.items()
    }
    assert kinds == {"d": ("SGD", 0.5), "g": ("Adam", 0.001)}


@pytest.mark.slow
def test_a_network_waits_until_its_loss_is_above_the_bound():
    assert moved(build(discriminator_above=100.0), "d") == 0.0
    assert moved(build(discriminator_above=0.01), "d") > 0.0
    assert moved(build(generator_above=100.0), "g") == 0.0
    assert moved(build(generator_above=100.0), "d") > 0.0


def test_clipping_bounds_the_step():
    sgd = {"discriminator_optimizer": "sgd", "discriminator_rate": 1.0, "generator_optimizer": "sgd"}
    free, clipped = moved(build(**sgd), "d"), moved(build(clip=0.01, **sgd), "d")
    assert clipped == pytest.approx(0.01, rel=1e-3) and free > 2 * clipped


def test_one_sided_smoothing_wants_less_than_certainty():
    certain = tf.fill([4, 1], 20.0)
    assert float(losses.discriminator(certain, -certain, 1.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(losses.discriminator(certain, -certain, 0.9)) == pytest.approx(2.0, rel=1e-3)


def test_the_rate_falls_to_nothing():
    rate = falling_rate(1.0, 10, 20)
    assert [float(rate(tf.constant(step))) for step in (0, 10, 20, 30, 99)] == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])
    assert falling_rate(0.3, 0, 0) == 0.3


# --- the monitor -----------------------------------------------------------------------


def test_the_monitor_names_the_aids_of_a_discriminator_that_is_never_wrong():
    monitor = collapse.Monitor(build())
    assert [monitor.losses(step, {"d_loss": loss}) for step, loss in enumerate([0.01, 0.01, 0.5, 0.01, 0.01])] == [
        None
    ] * 5
    warning = monitor.losses(5, {"d_loss": 0.01})
    assert (
        warning.startswith("step 5: the discriminator's loss was under 0.05 3 times")
        and "model.real_target" in warning
        and "model.spectral_norm" in warning
    )
    assert monitor.losses(6, {"d_loss": 0.01}) is None  # told once


def test_the_monitor_sees_images_become_alike():
    monitor = collapse.Monitor(build())
    various = np.random.default_rng(0).integers(0, 256, [64, 8, 8, 1], np.uint8)
    alike = np.repeat(various[:1], 64, axis=0)
    assert monitor.variety(1, various) is None
    warning = monitor.variety(2, alike)
    assert (
        "the generator may have collapsed" in warning
        and "model.minibatch" in warning
        and "model.feature_matching" in warning
    )
    assert collapse.Monitor(make_model("vae")).variety(1, alike) is None  # alike from the start: nothing fell


def test_a_model_without_a_discriminator_is_never_warned_of_its_loss():
    monitor = collapse.Monitor(make_model("vae"))
    assert [monitor.losses(step, {"negative_elbo": 0.0}) for step in range(5)] == [None] * 5


# What a small `d_loss` is in each model that logs one: only of a cross-entropy it says that images are told apart.
KINDS = {
    ("gan", ()): True,
    ("dcgan", ()): True,
    ("cgan", ()): True,
    ("discogan", ()): True,
    ("stackgan1", ()): True,
    ("srgan", (("adversarial", "cross_entropy"),)): True,
    ("srgan", (("adversarial", "least_squares"),)): False,
    ("cyclegan", ()): False,
    ("wgan_gp", ()): False,
    ("began", ()): False,
}


@pytest.mark.parametrize("name, changes", KINDS)
def test_only_a_cross_entropy_says_that_a_discriminator_is_never_wrong(name, changes):
    model = make_model(name, **dict(changes))
    monitor = collapse.Monitor(model)
    warnings = [monitor.losses(step, {"d_loss": -3.0}) for step in range(3)]
    assert warnings[:2] == [None, None] and bool(warnings[2]) is KINDS[name, changes]
    if model.cross_entropy:
        assert model.cross_entropy in model.train_step([make_batch(name)] * model.batches_per_step)
