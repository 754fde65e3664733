"""Losses: pure functions that return a scalar, the mean over the batch."""

import math
from collections.abc import Callable

import tensorflow as tf


def binary_cross_entropy(logits: tf.Tensor, target: float) -> tf.Tensor:
    """-t log s(x) - (1 - t) log(1 - s(x)), s the sigmoid, for one `target` in [0, 1]."""
    return tf.reduce_mean(
        tf.nn.sigmoid_cross_entropy_with_logits(tf.fill(tf.shape(logits), tf.cast(target, logits.dtype)), logits)
    )


def discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor, real_target: float = 1.0) -> tf.Tensor:
    """-log D(x) - log(1 - D(G(z))) (arXiv 1406.2661); `real_target` < 1 is one-sided label smoothing (1606.03498)."""
    return binary_cross_entropy(real_logits, real_target) + binary_cross_entropy(fake_logits, 0.0)


def generator_non_saturating(fake_logits: tf.Tensor) -> tf.Tensor:
    """-log D(G(z)) (arXiv 1406.2661, section 3)."""
    return binary_cross_entropy(fake_logits, 1.0)


def generator_minimax(fake_logits: tf.Tensor) -> tf.Tensor:
    """log(1 - D(G(z))), the value itself, which saturates where D is sure (arXiv 1406.2661, equation 1)."""
    return -binary_cross_entropy(fake_logits, 0.0)


def least_squares(logits: tf.Tensor, target: float) -> tf.Tensor:
    """(D - t)^2 (arXiv 1611.04076)."""
    return tf.reduce_mean(tf.square(logits - target))


def l1(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Mean absolute difference."""
    return tf.reduce_mean(tf.abs(a - b))


def earth_mover(real_scores: tf.Tensor, fake_scores: tf.Tensor) -> tf.Tensor:
    """E f(x) - E f(G(z)): for the best 1-Lipschitz f, the earth-mover distance (arXiv 1701.07875)."""
    return tf.reduce_mean(real_scores) - tf.reduce_mean(fake_scores)


def gradient_penalty(critic: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor) -> tf.Tensor:
    """(|grad f(x)| - 1)^2 at `images` [n, h, w, c] (arXiv 1704.00028)."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        scores = critic(images)
    norms = tf.sqrt(tf.reduce_sum(tf.square(tape.gradient(scores, images)), axis=[1, 2, 3]) + 1e-12)
    return tf.reduce_mean(tf.square(norms - 1.0))


def began_balance(k: tf.Tensor, real: tf.Tensor, fake: tf.Tensor, gamma: float, rate: float) -> tf.Tensor:
    """k_{t+1} = k_t + rate (gamma L(x) - L(G(z))), clipped to [0, 1] (arXiv 1703.10717)."""
    return tf.clip_by_value(k + rate * (gamma * real - fake), 0.0, 1.0)


def feature_matching(real: tf.Tensor, fake: tf.Tensor, mean: Callable[[list], list] = list) -> tf.Tensor:
    """Mean squared difference of the batches' mean features, [n, d] each (arXiv 1606.03498); `mean` averages those of
    all ranks.
    """
    real, fake = mean([tf.reduce_mean(tf.cast(features, tf.float32), 0) for features in (real, fake)])
    return tf.reduce_mean(tf.square(real - fake))


def matching_aware(
    real_logits: tf.Tensor, wrong_logits: tf.Tensor, fake_logits: tf.Tensor, real_target: float = 1.0
) -> tf.Tensor:
    """-log D(x, t) - (log(1 - D(x, t')) + log(1 - D(G(z, t), t))) / 2, t' another image's text (arXiv 1605.05396)."""
    return binary_cross_entropy(real_logits, real_target) + 0.5 * (
        binary_cross_entropy(wrong_logits, 0.0) + binary_cross_entropy(fake_logits, 0.0)
    )


def consistency(images: tf.Tensor, small: tf.Tensor) -> tf.Tensor:
    """Mean squared difference of images [n, k h, k w, c], averaged over k x k pixels, from `small` [n, h, w, c]."""
    factor = images.shape[1] // small.shape[1]
    return tf.reduce_mean(tf.square(tf.nn.avg_pool2d(images, factor, factor, "VALID") - small))


def contrastive(scores: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of finding each image's class among the texts, and each text's among the images (arXiv 2103.00020),
    their mean in nats.

    `scores` [batch, batch] has the images as rows; `labels` [batch]. All pairs of one class are right.
    """
    same = tf.where(labels[:, None] == labels[None], 0.0, -math.inf)
    by_image, by_text = (
        tf.reduce_logsumexp(scores, axis) - tf.reduce_logsumexp(scores + same, axis) for axis in (1, 0)
    )
    return 0.5 * (tf.reduce_mean(by_image) + tf.reduce_mean(by_text))


def kl_standard_normal(mean: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats an image, [batch]; inputs [batch, size] (arXiv 1312.6114,
    appendix B).
    """
    return 0.5 * tf.reduce_sum(tf.exp(log_variance) + tf.square(mean) - 1.0 - log_variance, axis=1)


def bernoulli_nll(values: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log p(values) in nats an image, [batch], of a product of Bernoullis; `values` in [0, 1], both [batch, ...]."""
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(values, logits)
    return tf.reduce_sum(entropy, axis=list(range(1, entropy.shape.rank)))


def gaussian_nll(values: tf.Tensor, mean: tf.Tensor, deviation: float) -> tf.Tensor:
    """-log N(values; mean, deviation) in nats an image, [batch]; both [batch, ...]."""
    error = tf.square((values - mean) / deviation) + 2.0 * math.log(deviation) + math.log(2.0 * math.pi)
    return 0.5 * tf.reduce_sum(error, axis=list(range(1, error.shape.rank)))
