"""Layers that several families share."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from ..config import UserError
from . import statistics


class BatchNorm(tf.keras.layers.Layer):
    """Batch normalisation over all axes but the last (arXiv 1502.03167), of a rank's share of the batch or the whole.

    With `reduce` given, or built in the scope `statistics.of_whole_batch`, the batch's mean and mean square are
    averaged over all ranks.
    """

    def __init__(self, reduce: Callable[[list], list] | None = None, momentum: float = 0.9, epsilon: float = 1e-5):
        super().__init__(dtype="float32")  # also under a mixed precision policy
        scope = statistics.current()
        self.reduce = reduce or (scope.mean if scope.size > 1 else None)
        self.momentum, self.epsilon = momentum, epsilon

    def build(self, shape):
        size = shape[-1:]
        self.gamma = self.add_weight("gamma", size, initializer=tf.keras.initializers.RandomNormal(1.0, 0.02))
        self.beta = self.add_weight("beta", size, initializer="zeros")
        self.moving_mean = self.add_weight("moving_mean", size, initializer="zeros", trainable=False)
        self.moving_variance = self.add_weight("moving_variance", size, initializer="ones", trainable=False)

    def call(self, inputs, training=False):
        if not training:
            scale = self.gamma * tf.math.rsqrt(self.moving_variance + self.epsilon)
            return inputs * scale + (self.beta - self.moving_mean * scale)
        if self.reduce is None and inputs.shape.rank == 4:
            outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
                inputs, self.gamma, self.beta, epsilon=self.epsilon, is_training=True
            )
        else:
            axes = list(range(inputs.shape.rank - 1))
            mean, square = tf.reduce_mean(inputs, axes), tf.reduce_mean(tf.square(inputs), axes)
            if self.reduce is not None:
                mean, square = self.reduce([mean, square])
            variance = tf.maximum(square - tf.square(mean), 0.0)
            outputs = (inputs - mean) * (self.gamma * tf.math.rsqrt(variance + self.epsilon)) + self.beta
        self.moving_mean.assign(self.momentum * self.moving_mean + (1.0 - self.momentum) * mean)
        self.moving_variance.assign(self.momentum * self.moving_variance + (1.0 - self.momentum) * variance)
        return outputs


class InstanceNorm(tf.keras.layers.Layer):
    """Each image's every channel to mean 0 and variance 1, then scaled and shifted (arXiv 1607.08022)."""

    def __init__(self, epsilon: float = 1e-5):
        super().__init__(dtype="float32")
        self.epsilon = epsilon

    def build(self, shape):
        self.gamma = self.add_weight("gamma", shape[-1:], initializer="ones")
        self.beta = self.add_weight("beta", shape[-1:], initializer="zeros")

    def call(self, inputs):
        mean, variance = tf.nn.moments(inputs, list(range(1, inputs.shape.rank - 1)), keepdims=True)
        return (inputs - mean) * (self.gamma * tf.math.rsqrt(variance + self.epsilon)) + self.beta


def layers_of(network: tf.keras.Model, names: Sequence[str], images: tf.Tensor) -> list[tf.Tensor]:
    """Outputs of the named layers of a network that is a chain of layers, for images of any size that they allow."""
    known = [layer.name for layer in network.layers[1:]]
    for name in names:
        if name not in known:
            raise UserError(f"{network.name}: no such layer: {name!r} (there are: {', '.join(known)})")
    outputs = {}
    for layer in network.layers[1 : max(map(known.index, names)) + 2]:
        outputs[layer.name] = images = layer(images)
    return [outputs[name] for name in names]


def reflect(inputs, pixels: int):
    """Reflection padding of `pixels` on every side."""
    return tf.keras.layers.Lambda(lambda x: tf.pad(x, [[0, 0], [pixels, pixels], [pixels, pixels], [0, 0]], "REFLECT"))(
        inputs
    )


def side_by_side(*images: tf.Tensor) -> tf.Tensor:
    """n pictures of k times the width, from k times [n, height, width, channels] that belong together."""
    return tf.concat(images, 2)


def falling_rate(rate: float, constant_steps: int, decay_steps: int):
    """`rate` for `constant_steps`, then linearly to 0 in `decay_steps`; constant where both are 0."""
    if not decay_steps:
        return rate
    return _Falling(rate, constant_steps, decay_steps)


class _Falling(tf.keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, rate: float, constant_steps: int, decay_steps: int):
        self.rate, self.constant_steps, self.decay_steps = rate, constant_steps, decay_steps

    def __call__(self, step):
        progress = (tf.cast(step, tf.float32) - self.constant_steps) / self.decay_steps
        return self.rate * (1.0 - tf.clip_by_value(progress, 0.0, 1.0))


def pyramid(image_size: int, smallest: int = 4, least: int = 1) -> tuple[int, int]:
    """(side of the smallest map, number of doublings to `image_size`, at least `least`).

    28 is (7, 2), 32 is (4, 3), 64 is (4, 4).
    """
    side, doublings = image_size, 0
    while side % 2 == 0 and side // 2 >= smallest:
        side, doublings = side // 2, doublings + 1
    if doublings < least:
        raise UserError(f"model.image_size = {image_size}: expected an even number of pixels, at least {2 * smallest}")
    return side, doublings


class Dropout(tf.keras.layers.Layer):
    """Dropout in training, by a `key` of stateless noise: Keras's own begins anew in a run that is resumed."""

    def __init__(self, rate: float, key: Callable[[], tf.Tensor]):
        super().__init__()
        self.rate, self.key = rate, key

    def call(self, x, training=False):
        if not training or not self.rate:
            return x
        kept = tf.random.stateless_uniform(tf.shape(x), self.key()) >= self.rate
        return tf.where(kept, x / (1.0 - self.rate), tf.zeros_like(x))


class Noise(tf.keras.layers.Layer):
    """Gaussian noise that is added in training, by a `key` of stateless noise."""

    def __init__(self, deviation: float, key: Callable[[], tf.Tensor]):
        super().__init__()
        self.deviation, self.key = deviation, key

    def call(self, x, training=False):
        if not training or not self.deviation:
            return x
        return x + self.deviation * tf.random.stateless_normal(tf.shape(x), self.key(), dtype=x.dtype)
