"""BEGAN: boundary equilibrium GAN (Berthelot, Schumm and Metz, 2017; arXiv 1703.10717).

The discriminator is an auto-encoder, and the losses compare its reconstruction errors of real and generated images. k_t
in [0, 1] keeps their ratio at gamma: low gamma, less diversity. An auto-encoder that could learn anything would
reconstruct an image as long as real ones are more than k_t times as dense there as generated ones, so k_t is about the
share of the real images that the generator has to cover. 3x3 convolutions with ELU, no batch norm, nearest-neighbour
up-sampling; the decoder has the generator's form. Each network has z of its own, and both step at once, each by its own
Adam. The learning rate, 1e-4 or half of that at first, is halved where the measure of convergence
M = L(x) + |gamma L(x) - L(G(z))| stalls (`stall_steps`). The authors published no code; where the paper leaves
something open, github.com/carpedm20/BEGAN-tensorflow was read.

Differences: what stalls is M's mean over `stall_steps` steps, where it is not 1% below the best before (the paper gives
no rule; that repository has this one commented out, and halves every so many steps down to 2e-5, as `halve_every` does
without an end); no vanishing residuals, which the paper leaves optional, as it does `skips`; the auto-encoder may have
a rate of its own, as in that repository; a code and z of one size, as in the paper's runs; convolutions of stride 2
already have the next size's filters (in that repository those before it); sizes from a smallest map of 7 or 8 pixels,
where the paper has 8, up to any even one; samples are drawn from a moving average of the generator.
"""

import dataclasses

import tensorflow as tf

from ..config import option
from . import losses
from .base import GenerativeModel
from .blocks import pyramid


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("began", "", choices=("began",))
    image_size: int = option(28, "pixels a side", low=8, high=1024)
    channels: int = option(1, "of the image", choices=(1, 3))
    latent: int = option(64, "size of z, and of the auto-encoder's code", low=1)
    width: int = option(32, "n, filters next to the image", low=1, high=1024)
    skips: bool = option(False, "z's or the code's first map stands beside every map that is enlarged from it")
    gamma: float = option(0.5, "ratio of the losses that k_t keeps: diversity", low=0.0, high=1.0)
    lambda_k: float = option(1e-3, "rate of k_t", low=0.0, high=1.0)
    average: float = option(
        0.999, "decay of the generator's moving average; 0 for its newest weights", low=0.0, high=0.99999
    )
    rate: float = option(1e-4, "Adam's learning rate", low=0.0, high=1.0)
    discriminator_rate: float = option(
        0.0, "that of the auto-encoder; 0 for the same. The slower it is, the higher is k_t", low=0.0, high=1.0
    )
    stall_steps: int = option(
        0,
        "the learning rate is halved after so many steps whose mean M is not 1% below that of the best so many before;"
        " 0 for never",
        low=0,
    )
    halve_every: int = option(0, "steps after which the learning rate is halved; 0 for never", low=0)
    beta1: float = option(0.9, "Adam's", low=0.0, high=0.999)


def _convolution(filters: int, strides: int = 1):
    return tf.keras.layers.Conv2D(filters, 3, strides, "same", activation="elu")


def decoder(config: Config, name: str) -> tf.keras.Model:
    """Code or z [n, latent] -> images, linear at the end."""
    layers, (side, doublings) = tf.keras.layers, pyramid(config.image_size, 7, 0)
    z = tf.keras.Input([config.latent])
    first = x = layers.Reshape([side, side, config.width])(layers.Dense(side * side * config.width)(z))
    for level in range(doublings + 1):
        x = _convolution(config.width)(_convolution(config.width)(x))
        if level < doublings:
            x = layers.UpSampling2D(interpolation="nearest")(x)
            if config.skips:
                enlarged = layers.UpSampling2D(2 ** (level + 1), interpolation="nearest")(first)
                x = layers.Concatenate()([x, enlarged])
    return tf.keras.Model(z, layers.Conv2D(config.channels, 3, padding="same", dtype="float32")(x), name=name)


def encoder(config: Config) -> tf.keras.Model:
    """Images [n, ...] -> code [n, latent]."""
    layers, (_, doublings) = tf.keras.layers, pyramid(config.image_size, 7, 0)
    image = tf.keras.Input([config.image_size, config.image_size, config.channels])
    x = _convolution(config.width)(image)
    for level in range(doublings + 1):
        filters = config.width * (level + 1)
        x = _convolution(filters)(_convolution(filters)(x))
        if level < doublings:
            x = _convolution(filters + config.width, 2)(x)
    return tf.keras.Model(image, layers.Dense(config.latent)(layers.Flatten()(x)), name="encoder")


class Stall(tf.Module):
    """Counts how often a positive measure that should fall did not, over windows of so many steps: `halvings`."""

    def __init__(self, steps: int):
        super().__init__()
        self.steps = steps
        self.sum = tf.Variable(0.0, trainable=False, name="sum")  # of this window
        self.count = tf.Variable(0, trainable=False, name="count", dtype=tf.int64)  # of its steps
        self.best = tf.Variable(0.0, trainable=False, name="best")  # lowest mean of a window; 0 before the first
        self.halvings = tf.Variable(0, trainable=False, name="halvings", dtype=tf.int64)

    def update(self, measure: tf.Tensor) -> None:
        """Once a step, with a value that all ranks share."""
        total, count, best = self.sum + measure, self.count + 1, self.best.value()
        mean, full, first = total / float(self.steps), tf.equal(count, self.steps), tf.equal(best, 0.0)
        stalled = full & ~first & (mean > 0.99 * best)
        self.halvings.assign_add(tf.cast(stalled, tf.int64))
        self.best.assign(tf.where(full, tf.where(first, mean, tf.minimum(best, mean)), best))
        self.sum.assign(tf.where(full, 0.0, total))
        self.count.assign(tf.where(full, tf.zeros_like(count), count))


class _Halved(tf.keras.optimizers.schedules.LearningRateSchedule):
    """`rate`, halved every so many steps and as often as `stall` says, each where there is such a thing."""

    def __init__(self, rate: float, every: int, stall: Stall | None):
        self.rate, self.every, self.stall = rate, every, stall

    def __call__(self, step):
        halvings = tf.cast(step // self.every, tf.float32) if self.every else tf.constant(0.0)
        if self.stall is not None:
            halvings += tf.cast(self.stall.halvings, tf.float32)
        return self.rate * 0.5**halvings


class BEGAN(GenerativeModel):
    Config = Config

    @classmethod
    def batch_statistics(cls, config):
        return "none"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        self.generator = decoder(config, "generator")
        self.encoder, self.decoder = encoder(config), decoder(config, "decoder")
        self.sampler = self.average(decoder(config, "sampler"), self.generator)
        self.k = tf.Variable(0.0, trainable=False, name="k")
        self.stall = Stall(config.stall_steps) if config.stall_steps else None
        for name, rate, variables in (
            (
                "d",
                config.discriminator_rate or config.rate,
                [*self.encoder.trainable_variables, *self.decoder.trainable_variables],
            ),
            ("g", config.rate, self.generator.trainable_variables),
        ):
            if config.halve_every or self.stall is not None:  # An optimizer of a constant rate has other variables.
                rate = _Halved(rate, config.halve_every, self.stall)
            self.optimize(name, tf.keras.optimizers.Adam(rate, config.beta1), variables)

    def reconstruction(self, images: tf.Tensor) -> tf.Tensor:
        """L(v) = |v - D(v)|, the mean over batch and pixels."""
        return tf.reduce_mean(tf.abs(images - self.decoder(self.encoder(images))))

    def train_step(self, batches):
        (batch,) = batches
        z_g, z_d = (self.uniform([tf.shape(batch["image"])[0], self.config.latent], stream) for stream in (0, 1))
        with tf.GradientTape() as tape_d:
            real = self.reconstruction(batch["image"])
            d_loss = real - self.k * self.reconstruction(self.generator(z_d))
        with tf.GradientTape() as tape_g:
            fake = self.reconstruction(self.generator(z_g))
        # Both gradients are of the weights from before the step.
        self.minimize("d", tape_d, d_loss)
        self.minimize("g", tape_g, fake)
        # Reduced, since every rank carries the same k.
        real, fake = self.reduce([real, fake])
        measure = real + tf.abs(self.config.gamma * real - fake)
        rate = tf.identity(self.optimizers["g"].learning_rate)  # of this step
        self.k.assign(losses.began_balance(self.k, real, fake, self.config.gamma, self.config.lambda_k))
        if self.stall is not None:
            self.stall.update(measure)
        self.update_averages(self.config.average)
        return {"m_global": measure, "k": self.k.value(), "loss_real": real, "loss_fake": fake, "rate": rate}

    def generate(self, inputs, seeds):
        return tf.clip_by_value(self.sampler(self.latents(seeds, self.config.latent, "uniform")), -1.0, 1.0)
