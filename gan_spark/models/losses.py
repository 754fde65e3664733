"""Losses: pure functions that return a scalar, the mean over the batch."""

import math

import tensorflow as tf


def binary_cross_entropy(logits: tf.Tensor, target: float) -> tf.Tensor:
    """-t log s(x) - (1 - t) log(1 - s(x)), s the sigmoid, for one `target` in [0, 1]."""
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(tf.fill(tf.shape(logits), tf.cast(target, logits.dtype)), logits))


def discriminator(real_logits: tf.Tensor, fake_logits: tf.Tensor, real_target: float = 1.0) -> tf.Tensor:
    """-log D(x) - log(1 - D(G(z))) (arXiv 1406.2661); `real_target` under 1 is one-sided label smoothing (1606.03498)."""
    return binary_cross_entropy(real_logits, real_target) + binary_cross_entropy(fake_logits, 0.0)


def generator_non_saturating(fake_logits: tf.Tensor) -> tf.Tensor:
    """-log D(G(z)) (arXiv 1406.2661, section 3)."""
    return binary_cross_entropy(fake_logits, 1.0)


def kl_standard_normal(mean: tf.Tensor, log_variance: tf.Tensor) -> tf.Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats an image, [batch]; inputs [batch, size] (arXiv 1312.6114, appendix B)."""
    return 0.5 * tf.reduce_sum(tf.exp(log_variance) + tf.square(mean) - 1.0 - log_variance, axis=1)


def bernoulli_nll(values: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """-log p(values) in nats an image, [batch], of a product of Bernoullis; `values` in [0, 1], both [batch, ...]."""
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(values, logits)
    return tf.reduce_sum(entropy, axis=list(range(1, entropy.shape.rank)))


def gaussian_nll(values: tf.Tensor, mean: tf.Tensor, deviation: float) -> tf.Tensor:
    """-log N(values; mean, deviation) in nats an image, [batch]; both [batch, ...]."""
    error = tf.square((values - mean) / deviation) + 2.0 * math.log(deviation) + math.log(2.0 * math.pi)
    return 0.5 * tf.reduce_sum(error, axis=list(range(1, error.shape.rank)))
