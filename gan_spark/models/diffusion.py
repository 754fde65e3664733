"""Diffusion: denoising diffusion probabilistic models (Ho, Jain and Abbeel, 2020; arXiv 2006.11239).

An image x_0 is mixed with noise e, x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, at a level t of 1 to T. A U-Net learns e from
x_t and t, by its mean squared error (the paper's L_simple). a_t falls by the cosine schedule of Nichol and Dhariwal
(arXiv 2102.09672). Images are drawn by DDIM (Song, Meng and Ermon; arXiv 2010.02502) with eta 0, in few steps, so that
the first noise, and with it the seed, decides the image. A class is left out of some training images, and at sampling
the noise is (1 + w) e(x, class) - w e(x), classifier-free guidance (Ho and Salimans; arXiv 2207.12598).

The authors' code: github.com/hojonathanho/diffusion, github.com/openai/improved-diffusion, github.com/ermongroup/ddim.

Differences: the network is small. A level has `blocks` blocks on the way down and as many on the way up, which see the
former's outputs, where the papers have one more; attention is at the lowest level alone, of one head; maps are enlarged
by repetition, behind a 1x1 convolution; groups of 4 channels are normalised, where there are 32 groups; no dropout, no
warm-up of the rate, no flipped images. The level scales and shifts what the second norm of a block gives, as in
improved-diffusion, where DDPM adds it. What is last in a residual branch begins small, not at 0. By default the
network's output is v = sqrt(a_t) e - sqrt(1 - a_t) x_0 (Salimans and Ho; arXiv 2202.00512), of which the noise follows:
near t = T, where x_t is noise and nothing else, an error of the noise itself would be that of the image many times
enlarged. The loss is that of the noise in either case. DDIM's levels stand as squares, as ddim's `quad` has them, but
from T to 1, both among them, where the authors' end short of T; x_0 is held to [-1, 1] at each, as in
improved-diffusion. A model may read images in patches, each the channels of one pixel.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from ..config import UserError, option
from .base import GenerativeModel

_LOWEST = 8  # pixels a side at most of the maps that are not halved any more, among which attention is
_GROUP = 4  # channels that are normalised together
_CLIP = 1.0  # of the gradient's norm, DDPM's
_HELD_OUT_LEVELS = 10


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("diffusion", "", choices=("diffusion",))
    image_size: int = option(28, "pixels a side", low=16, high=1024)
    channels: int = option(1, "of the image", choices=(1, 3))
    classes: int = option(0, "how many the dataset has; 0 for one without labels", low=0)
    dropped: float = option(
        0.1, "share of training images whose class is left out; 1 for a model without classes", low=0.0, high=1.0
    )
    guidance: float = option(0.0, "w: how far samples are driven towards their class", low=0.0, high=100.0)
    patch: int = option(
        1, "pixels a side of a patch; the network's first maps are as many times smaller", low=1, high=16
    )
    width: int = option(
        32, "filters of the first maps, a multiple of 4; 2, then 4 times as many below", low=4, high=1024
    )
    blocks: int = option(1, "residual blocks of a level, on either way", low=1, high=8)
    output: str = option(
        "velocity", "what the network's output is, of which the noise follows", choices=("noise", "velocity")
    )
    levels: int = option(1000, "T, levels of noise", low=2, high=10000)
    sampling_steps: int = option(20, "of DDIM", low=1, high=1000)
    average: float = option(
        0.999,
        "decay of the network's moving average, which samples are drawn by; 0 for its newest weights",
        low=0.0,
        high=0.99999,
    )
    rate: float = option(5e-4, "Adam's learning rate", low=0.0, high=1.0)


def cosine_schedule(levels: int, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """a_0 = 1 to a_T, float64 [levels + 1]: the share of the image in the variance of x_t (2102.09672, section 3.2).

    a_t = f(t) / f(0) with f(t) = cos^2((t / T + s) / (1 + s) pi / 2), s the `offset`; no step 1 - a_t / a_{t-1} is over
    `largest`.
    """
    f = np.cos((np.arange(levels + 1) / levels + offset) / (1.0 + offset) * np.pi / 2) ** 2
    return np.cumprod([1.0, *(1.0 - np.minimum(1.0 - f[1:] / f[:-1], largest))])


def mixed(images: tf.Tensor, noise: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """x_t, a draw of q(x_t | x_0): N(sqrt(a) x_0, 1 - a) for `share` a [n] (2006.11239, equation 4)."""
    share = share[:, None, None, None]
    return tf.sqrt(share) * images + tf.sqrt(1.0 - share) * noise


def noise_error(predicted: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Squared error of the predicted noise, its mean over pixels and channels: [n] (2006.11239, equation 14)."""
    return tf.reduce_mean(tf.square(predicted - noise), [1, 2, 3])


def sampling_levels(levels: int, steps: int) -> np.ndarray:
    """The levels that DDIM goes through, all different, T first and 1 last, int32 [steps].

    They stand closer the lower they are, as squares of even numbers, since data of small deviation loses much of it in
    large last steps.
    """
    if steps == 1:
        return np.array([levels], np.int32)
    squares = np.round(1 + (levels - 1) * np.linspace(0.0, 1.0, steps) ** 2)
    return np.maximum(squares, np.arange(1, steps + 1))[::-1].astype(np.int32)


def ddim(
    denoise: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], x: tf.Tensor, shares: np.ndarray, levels: Sequence[int]
) -> tf.Tensor:
    """Images in [-1, 1] from noise `x` of their shape, by DDIM with eta 0 (2010.02502, equation 12).

    `denoise` gives the image that is expected behind x at a level, int32 []; `shares` are a_0 to a_T; `levels` fall.
    """
    before, after = shares[list(levels)], shares[[*levels[1:], 0]]
    roots = [tf.constant(np.sqrt(values), tf.float32) for values in (before, 1.0 - before, after, 1.0 - after)]
    levels = tf.constant(levels, tf.int32)

    def step(index, x):
        signal, deviation, next_signal, next_deviation = (root[index] for root in roots)
        clean = tf.ensure_shape(tf.clip_by_value(denoise(x, levels[index]), -1.0, 1.0), x.shape)
        return index + 1, next_signal * clean + next_deviation * (x - signal * clean) / deviation

    return tf.while_loop(lambda index, _: index < len(before), step, [0, x], parallel_iterations=1)[1]


def guided(with_class: tf.Tensor, without: tf.Tensor, weight: float) -> tf.Tensor:
    """(1 + w) e(x, class) - w e(x): 0 is the class's own, -1 no class's (2207.12598, equation 6).

    So is v's, and so that of images, since each is a linear function of the noise.
    """
    return (1.0 + weight) * with_class - weight * without


def sinusoids(position: tf.Tensor, size: int) -> tf.Tensor:
    """Cosines and sines of positions [n], at frequencies from 1 to nearly 1 / 10000: [n, size]."""
    half = size // 2
    angles = position[:, None] * tf.constant(np.exp(-math.log(1e4) * np.arange(half) / half), tf.float32)
    return tf.concat([tf.cos(angles), tf.sin(angles)], 1)


class GroupNorm(tf.keras.layers.Layer):
    """Each image's groups of channels to mean 0 and variance 1 (arXiv 1803.08494), then scaled and shifted.

    Called on [maps, modulation [n, 2 channels]], it scales by 1 + the former and shifts by the latter half of that.
    """

    def __init__(self, epsilon: float = 1e-5):
        super().__init__(dtype="float32")  # also under a mixed precision policy
        self.epsilon = epsilon

    def build(self, shape):
        size = (shape[0] if isinstance(shape, list) else shape)[-1]
        self.gamma = self.add_weight("gamma", [size], initializer="ones")
        self.beta = self.add_weight("beta", [size], initializer="zeros")

    def call(self, inputs):
        x, modulation = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
        # What is over all pixels is taken a channel at a time, and all else of numbers as few as channels.
        mean, square = (self._of_groups(tf.reduce_mean(values, [1, 2])) for values in (x, tf.square(x)))
        scale = self.gamma * tf.math.rsqrt(tf.maximum(square - tf.square(mean), 0.0) + self.epsilon)
        shift = self.beta - mean * scale
        if modulation is not None:
            factor, term = tf.split(modulation, 2, 1)
            scale, shift = scale * (1.0 + factor), shift * (1.0 + factor) + term
        return x * scale[:, None, None] + shift[:, None, None]

    def _of_groups(self, values: tf.Tensor) -> tf.Tensor:
        """Means over groups, for each of their channels: [n, channels]."""
        means = tf.reduce_mean(tf.reshape(values, [-1, values.shape[1] // _GROUP, _GROUP]), 2)
        return tf.repeat(means, _GROUP, 1)


class Attention(tf.keras.layers.Layer):
    """Each pixel's sum over all pixels, by the softmax of scaled products (arXiv 1706.03762), added to it."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.norm = size, GroupNorm()
        self.read = tf.keras.layers.Dense(3 * size, use_bias=False)
        self.write = tf.keras.layers.Dense(size, kernel_initializer=_small())

    def call(self, x):
        height, width = x.shape[1:3]
        rows = tf.reshape(self.read(self.norm(x)), [-1, height * width, 3 * self.size])
        queries, keys, values = tf.split(rows, 3, 2)
        weights = tf.nn.softmax(tf.matmul(queries, keys, transpose_b=True) / math.sqrt(self.size))
        return x + tf.reshape(self.write(tf.matmul(weights, values)), [-1, height, width, self.size])


def _small():
    return tf.keras.initializers.VarianceScaling(0.01)


def _block(x, embedding, filters: int):
    """A residual block: `filters` maps of the size of x."""
    layers = tf.keras.layers
    h = layers.Conv2D(filters, 3, padding="same")(layers.Activation("swish")(GroupNorm()(x)))
    h = layers.Activation("swish")(GroupNorm()([h, layers.Dense(2 * filters, kernel_initializer=_small())(embedding)]))
    h = layers.Conv2D(filters, 3, padding="same", kernel_initializer=_small())(h)
    return layers.Add()([x if x.shape[-1] == filters else layers.Conv2D(filters, 1)(x), h])


def unet(config: Config) -> tf.keras.Model:
    """(x_t, t / T [n]) -> the noise in it, or v: [n, image_size, image_size, channels]; where there are classes, the
    class one-hot, or zeros for none, is a third input.
    """
    layers, size, patch = tf.keras.layers, config.image_size, config.patch
    image, t = tf.keras.Input([size, size, config.channels]), tf.keras.Input([])
    inputs = [image, t, *([tf.keras.Input([config.classes])] if has_classes(config) else [])]
    embedding = layers.Dense(4 * config.width, "swish")(sinusoids(1000.0 * t, config.width))
    embedding = layers.Dense(4 * config.width)(embedding)
    if has_classes(config):
        embedding = layers.Add()([embedding, layers.Dense(4 * config.width, use_bias=False)(inputs[2])])
    embedding = layers.Activation("swish")(embedding)
    x = tf.nn.space_to_depth(image, patch) if patch > 1 else image
    x = layers.Conv2D(config.width, 3, padding="same")(x)
    stack, filters = [], config.width
    while x.shape[1] > _LOWEST:
        for _ in range(config.blocks):
            x = _block(x, embedding, filters)
            stack.append(x)
        x = layers.Conv2D(filters, 3, 2, "same")(x)
        filters = min(2 * filters, 4 * config.width)
    for _ in range(config.blocks):
        x = _block(x, embedding, filters)
    x = Attention(filters)(x)
    for _ in range(config.blocks):
        x = _block(x, embedding, filters)
    while stack:
        side, filters = stack[-1].shape[1], stack[-1].shape[-1]
        x = layers.UpSampling2D(interpolation="nearest")(layers.Conv2D(filters, 1)(x))
        x = x if x.shape[1] == side else x[:, :side, :side]
        for _ in range(config.blocks):
            x = _block(layers.Concatenate()([x, stack.pop()]), embedding, filters)
    x = layers.Activation("swish")(GroupNorm()(x))
    x = layers.Conv2D(config.channels * patch**2, 3, padding="same", kernel_initializer="zeros", dtype="float32")(x)
    x = tf.nn.depth_to_space(x, patch) if patch > 1 else x
    return tf.keras.Model(inputs, x, name="unet")


def has_classes(config: Config) -> bool:
    """Whether the model learns images of classes."""
    return config.classes > 0 and config.dropped < 1.0


class Diffusion(GenerativeModel):
    Config = Config

    @classmethod
    def reads(cls, config):
        return ("image", "label") if has_classes(config) else ("image",)

    @classmethod
    def takes(cls, config):
        return ("label",) if has_classes(config) else ()

    @classmethod
    def batch_statistics(cls, config):
        return "none"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        _check(config)
        self.schedule = cosine_schedule(config.levels)
        self.network = unet(config)
        self.sampler = self.average(unet(config), self.network)
        self.optimize("unet", tf.keras.optimizers.Adam(config.rate), self.network.trainable_variables)

    def output(self, network: tf.keras.Model, x: tf.Tensor, t: tf.Tensor, y: tf.Tensor | None) -> tf.Tensor:
        """The network's output for x [n, ...] at levels t, int32 [n]; `y` [n, classes], one-hot, zeros for no class."""
        position = tf.cast(t, tf.float32) / self.config.levels
        return network([x, position] if y is None else [x, position, y])

    def noise(self, output: tf.Tensor, x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        """The noise in x that the network's output tells."""
        signal, deviation = self._roots(t)
        return output if self.config.output == "noise" else deviation * x + signal * output

    def clean(self, output: tf.Tensor, x: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        """The image behind x that the network's output tells: of v without the noise, from which little is to be
        subtracted near t = T.
        """
        signal, deviation = self._roots(t)
        return (x - deviation * output) / signal if self.config.output == "noise" else signal * x - deviation * output

    def _roots(self, t: tf.Tensor) -> list[tf.Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t), [n, 1, 1, 1]."""
        roots = (np.sqrt(self.schedule), np.sqrt(1.0 - self.schedule))
        return [tf.gather(tf.constant(root, tf.float32), t)[:, None, None, None] for root in roots]

    def _classes(self, batch: dict[str, tf.Tensor], count) -> tf.Tensor | None:
        """The batch's classes one-hot; zeros for a label that is not there, or -1. None for a model without classes."""
        if not has_classes(self.config):
            return None
        label = batch["label"] if "label" in batch else tf.fill([count], -1)
        return tf.one_hot(label, self.config.classes)

    def _errors(self, network, images, noise, t, y) -> tf.Tensor:
        x = mixed(images, noise, tf.gather(tf.constant(self.schedule, tf.float32), t))
        return noise_error(self.noise(self.output(network, x, t, y), x, t), noise)

    def train_step(self, batches):
        (batch,) = batches
        images, config = batch["image"], self.config
        count = tf.shape(images)[0]
        t = 1 + tf.cast(self.uniform([count], low=0.0) * config.levels, tf.int32)
        noise, y = self.normal(tf.shape(images), stream=1), self._classes(batch, count)
        if y is not None:
            y *= tf.cast(self.uniform([count, 1], stream=2, low=0.0) >= config.dropped, tf.float32)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self._errors(self.network, images, noise, tf.minimum(t, config.levels), y))
        self.minimize("unet", tape, loss, clip=_CLIP)
        self.update_averages(config.average)
        return {"loss": loss}

    def generate(self, inputs, seeds):
        config = self.config
        shape = [config.image_size, config.image_size, config.channels]
        count, y = tf.shape(seeds)[0], self._classes(inputs, tf.shape(seeds)[0])
        is_guided = y is not None and config.guidance > 0.0

        def denoise(x, level):
            t = tf.fill([count], level)
            if not is_guided:
                return self.clean(self.output(self.sampler, x, t, y), x, t)
            doubled = [tf.concat(pair, 0) for pair in ([x, x], [t, t], [y, tf.zeros_like(y)])]
            both = tf.split(self.output(self.sampler, *doubled), 2)
            return self.clean(guided(*both, config.guidance), x, t)

        x = tf.reshape(self.latents(seeds, math.prod(shape)), [-1, *shape])
        return ddim(denoise, x, self.schedule, sampling_levels(config.levels, config.sampling_steps))

    def preview(self, batch, seeds):
        if not has_classes(self.config):
            return self.generate({}, seeds)
        # Column by column one class, in a grid of 8.
        return self.generate({"label": tf.cast(seeds % 8 % self.config.classes, tf.int32)}, seeds)

    def held_out(self, batch):
        """The error of an image's noise by the averaged weights, its mean over levels that stand evenly."""
        images, errors = batch["image"], []
        noise = tf.reshape(self.held_out_latents(images, math.prod(images.shape[1:])), tf.shape(images))
        count = tf.shape(images)[0]
        for index in range(_HELD_OUT_LEVELS):
            level = math.ceil((index + 0.5) / _HELD_OUT_LEVELS * self.config.levels)
            t = tf.fill([count], level)
            errors.append(self._errors(self.sampler, images, noise, t, self._classes(batch, count)))
        return {"noise_error": tf.add_n(errors) / _HELD_OUT_LEVELS}


def _check(config: Config) -> None:
    if config.width % _GROUP:
        raise UserError(
            f"model.width = {config.width}: expected a multiple of {_GROUP}, of which groups are normalised"
        )
    if config.image_size % config.patch or config.image_size // config.patch < 4:
        raise UserError(
            f"model.patch = {config.patch}: expected 1, or a divisor of model.image_size = {config.image_size} that"
            " leaves 4 patches a side or more"
        )
    if config.sampling_steps > config.levels:
        raise UserError(
            f"model.sampling_steps = {config.sampling_steps}: expected no more than model.levels = {config.levels}"
        )
