"""Aids for adversarial training; each is off unless the config turns it on."""

from collections.abc import Sequence

import tensorflow as tf

from . import statistics


class MinibatchDiscrimination(tf.keras.layers.Layer):
    """Features, `kernels` an image, that say how close it is to the others of its batch.

    They are added to its own (arXiv 1606.03498, section 3.2).
    M = f T in R^(kernels x size); o_k = sum over the others of exp(-|M_i,k - M_j,k|_1). The others are
    those of the rank's share of the batch, or of the whole (`statistics.py`).
    """

    def __init__(self, kernels: int, size: int = 5):
        super().__init__(dtype="float32")
        self.kernels, self.size = kernels, size
        self.statistics = statistics.current()

    def build(self, shape):
        self.tensor = self.add_weight(
            "tensor", [shape[-1], self.kernels * self.size], initializer=tf.keras.initializers.RandomNormal(0.0, 0.05)
        )

    def call(self, features):
        m = tf.reshape(tf.matmul(tf.cast(features, tf.float32), self.tensor), [-1, self.kernels, self.size])
        distances = tf.reduce_sum(tf.abs(m[:, None] - self.statistics.gather(m)[None]), axis=3)
        close = tf.reduce_sum(tf.exp(-distances), axis=1) - 1.0  # less itself
        return tf.concat([tf.cast(features, tf.float32), close], axis=1)


class SeededNoise(tf.keras.layers.Layer):
    """Gaussian noise and dropout, in training and after, as functions of each image's seed alone.

    Inputs: [x, seeds int64 [n]].
    """

    def __init__(self, deviation: float, dropout: float, stream: int):
        super().__init__(dtype="float32")
        self.deviation, self.dropout, self.stream = deviation, dropout, stream

    def call(self, inputs):
        x, seeds = inputs
        shape = x.shape[1:]

        def draw(seed):
            pair = tf.stack([seed, self.stream])
            noise = tf.random.stateless_normal(shape, pair) * self.deviation
            kept = tf.random.stateless_uniform(shape, pair + 1) >= self.dropout
            return noise, tf.cast(kept, tf.float32) / (1.0 - self.dropout)

        noise, kept = tf.map_fn(draw, seeds, fn_output_signature=(tf.float32, tf.float32))
        return tf.cast(x, tf.float32) * kept + noise


class History:
    """Running means of variables, and the penalty |v - mean|^2 that keeps them near.

    Historical averaging (arXiv 1606.03498).
    """

    def __init__(self, variables: Sequence[tf.Variable]):
        self.variables = list(variables)
        self.means = [tf.Variable(variable, trainable=False, name="history") for variable in self.variables]

    def penalty(self) -> tf.Tensor:
        return tf.add_n(
            [
                tf.reduce_sum(tf.square(variable - mean))
                for variable, mean in zip(self.variables, self.means, strict=True)
            ]
        )

    def update(self, step: tf.Tensor) -> None:
        """Takes the variables' values into the means, which after step t (from 0) are over t + 2 values.

        The first of them is the initial one.
        """
        share = 1.0 / (tf.cast(step, tf.float32) + 2.0)
        for variable, mean in zip(self.variables, self.means, strict=True):
            mean.assign_add(share * (variable - mean))


def optimizer(kind: str, rate: float, beta1: float) -> tf.keras.optimizers.Optimizer:
    return tf.keras.optimizers.Adam(rate, beta1) if kind == "adam" else tf.keras.optimizers.SGD(rate)
