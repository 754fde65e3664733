"""Losses against values worked out by hand, from both sides."""

import math

import numpy as np
import pytest
import tensorflow as tf

from gan_spark.models import losses


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("target", [0.0, 0.9, 1.0])
def test_binary_cross_entropy_is_the_formula(probability, target):
    expected = -target * math.log(probability) - (1 - target) * math.log(1 - probability)
    assert float(losses.binary_cross_entropy(tf.fill([3, 1], logit(probability)), target)) == pytest.approx(
        expected, rel=1e-5
    )


def test_discriminator_at_equilibrium_is_log_4():
    logits = tf.zeros([5, 1])
    assert float(losses.discriminator(logits, logits)) == pytest.approx(math.log(4), rel=1e-6)


def test_discriminator_wants_real_high_and_fake_low():
    right = float(losses.discriminator(tf.fill([2, 1], 3.0), tf.fill([2, 1], -3.0)))
    wrong = float(losses.discriminator(tf.fill([2, 1], -3.0), tf.fill([2, 1], 3.0)))
    assert right == pytest.approx(2 * math.log(1 + math.exp(-3)), rel=1e-5)
    assert wrong == pytest.approx(2 * math.log(1 + math.exp(3)), rel=1e-5)


def test_smoothing_moves_the_best_answer_for_real_images_to_its_target():
    logits = tf.Variable(0.0)
    gradient = {}
    for p in (0.85, 0.9, 0.95):
        logits.assign(logit(p))
        with tf.GradientTape() as tape:
            loss = losses.discriminator(tf.reshape(logits, [1, 1]), tf.zeros([1, 1]), real_target=0.9)
        gradient[p] = float(tape.gradient(loss, logits))
    assert gradient[0.85] < -1e-3 and abs(gradient[0.9]) < 1e-6 and gradient[0.95] > 1e-3


def test_generator_non_saturating_keeps_its_gradient_where_the_discriminator_is_sure():
    logits = tf.Variable([[-10.0]])
    with tf.GradientTape() as tape:
        loss = losses.generator_non_saturating(logits)
    assert float(loss) == pytest.approx(math.log(1 + math.exp(10)), rel=1e-5)
    assert float(tape.gradient(loss, logits)[0, 0]) == pytest.approx(-1 / (1 + math.exp(-10)), rel=1e-4)


def test_kl_of_the_prior_is_zero_and_grows_on_both_sides():
    assert losses.kl_standard_normal(tf.zeros([2, 3]), tf.zeros([2, 3])).numpy().tolist() == [0.0, 0.0]
    kl = losses.kl_standard_normal(
        tf.constant([[1.0], [-1.0], [0.0], [0.0]]), tf.constant([[0.0], [0.0], [1.0], [-1.0]])
    ).numpy()
    assert kl == pytest.approx([0.5, 0.5, 0.5 * (math.e - 2), 0.5 * math.exp(-1)], rel=1e-5)


def test_bernoulli_nll_sums_over_pixels():
    values = tf.constant([[[1.0, 0.0], [0.5, 0.0]]])
    logits = tf.constant([[[logit(0.8), logit(0.3)], [0.0, 0.0]]])
    expected = -math.log(0.8) - math.log(0.7) + 2 * math.log(2)
    assert losses.bernoulli_nll(values, logits).numpy() == pytest.approx([expected], rel=1e-5)


def test_gaussian_nll_is_the_density():
    nll = losses.gaussian_nll(tf.constant([[0.3, 0.5]]), tf.constant([[0.1, 0.5]]), 0.2).numpy()
    density = lambda x, mean: math.exp(-0.5 * ((x - mean) / 0.2) ** 2) / (0.2 * math.sqrt(2 * math.pi))
    assert nll == pytest.approx([-math.log(density(0.3, 0.1)) - math.log(density(0.5, 0.5))], rel=1e-5)
    assert np.all(np.isfinite(nll))


# --- the family ------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_minimax_is_log_of_one_minus_d(probability):
    assert float(losses.generator_minimax(tf.fill([3, 1], logit(probability)))) == pytest.approx(
        math.log(1 - probability), rel=1e-5
    )


def test_minimax_saturates_where_non_saturating_does_not():
    """Both fall as D is fooled, but where D is sure only the latter has a slope."""
    for loss, low, high in ((losses.generator_minimax, 0.0, 0.01), (losses.generator_non_saturating, 0.99, 1.01)):
        sure = tf.Variable([[-8.0]])
        with tf.GradientTape() as tape:
            value = loss(sure)
        assert low < -float(tape.gradient(value, sure)) < high


def test_least_squares_and_l1_are_the_formulas():
    assert float(losses.least_squares(tf.constant([0.0, 3.0]), 1.0)) == pytest.approx((1 + 4) / 2)
    assert float(losses.l1(tf.constant([1.0, -1.0]), tf.constant([0.5, 1.0]))) == pytest.approx(1.25)


def test_earth_mover_of_a_shift_is_the_shift():
    real = tf.constant([[1.0], [2.0], [3.0]])
    assert float(losses.earth_mover(real, real - 4.0)) == pytest.approx(4.0)
    assert float(losses.earth_mover(real, real + 4.0)) == pytest.approx(-4.0)


@pytest.mark.parametrize("slope, expected", [(0.0, 1.0), (0.5, 0.25), (1.0, 0.0), (3.0, 4.0)])
def test_gradient_penalty_of_a_linear_critic(slope, expected):
    weights = tf.constant([3.0, 0.0, 4.0, 0.0], shape=[1, 2, 2, 1]) / 5.0 * slope
    critic = lambda images: tf.reduce_sum(weights * images, [1, 2, 3])
    assert float(losses.gradient_penalty(critic, tf.random.stateless_normal([6, 2, 2, 1], [1, 2]))) == pytest.approx(
        expected, abs=1e-4
    )


@pytest.mark.parametrize(
    "k, real, fake, expected",
    [(0.5, 1.0, 0.2, 0.53), (0.5, 1.0, 0.9, 0.46), (0.5, 1.0, 0.5, 0.5), (0.0, 0.1, 0.9, 0.0), (1.0, 1.0, 0.0, 1.0)],
)
def test_began_balance_moves_towards_gamma_and_stays_in_its_range(k, real, fake, expected):
    assert float(losses.began_balance(tf.constant(k), tf.constant(real), tf.constant(fake), 0.5, 0.1)) == pytest.approx(
        expected
    )
