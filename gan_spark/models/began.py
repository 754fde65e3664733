"""BEGAN: boundary equilibrium GAN (Berthelot, Schumm and Metz, 2017; arXiv 1703.10717).

The discriminator is an auto-encoder, and the losses compare its reconstruction errors of real and generated images. k_t
in [0, 1] keeps their ratio at gamma: low gamma, less diversity. 3x3 convolutions with ELU, nearest-neighbour
up-sampling; the decoder has the generator's form.

Differences: one z a step for both losses; the learning rate is halved every `halve_every` steps or never, not when M
stalls; no skip connections and vanishing residuals, which the paper leaves optional; sizes from a smallest map of 7 or
8 pixels up to any even one; samples are drawn from a moving average of the generator.
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
    gamma: float = option(0.5, "ratio of the losses that k_t keeps: diversity", low=0.0, high=1.0)
    lambda_k: float = option(1e-3, "rate of k_t", low=0.0, high=1.0)
    average: float = option(
        0.999, "decay of the generator's moving average; 0 for its newest weights", low=0.0, high=0.99999
    )
    rate: float = option(1e-4, "Adam's learning rate", low=0.0, high=1.0)
    halve_every: int = option(0, "steps after which the learning rate is halved; 0 for never", low=0)
    beta1: float = option(0.5, "Adam's", low=0.0, high=0.999)


def _convolution(filters: int, strides: int = 1):
    return tf.keras.layers.Conv2D(filters, 3, strides, "same", activation="elu")


def decoder(config: Config, name: str) -> tf.keras.Model:
    """Code or z [n, latent] -> images, linear at the end."""
    layers, (side, doublings) = tf.keras.layers, pyramid(config.image_size, 7, 0)
    z = tf.keras.Input([config.latent])
    x = layers.Reshape([side, side, config.width])(layers.Dense(side * side * config.width)(z))
    for level in range(doublings + 1):
        x = _convolution(config.width)(_convolution(config.width)(x))
        if level < doublings:
            x = layers.UpSampling2D(interpolation="nearest")(x)
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
        rate = (
            tf.keras.optimizers.schedules.ExponentialDecay(config.rate, config.halve_every, 0.5, staircase=True)
            if config.halve_every
            else config.rate
        )
        self.optimize(
            "d",
            tf.keras.optimizers.Adam(rate, config.beta1),
            [*self.encoder.trainable_variables, *self.decoder.trainable_variables],
        )
        self.optimize("g", tf.keras.optimizers.Adam(rate, config.beta1), self.generator.trainable_variables)

    def reconstruction(self, images: tf.Tensor) -> tf.Tensor:
        """L(v) = |v - D(v)|, the mean over batch and pixels."""
        return tf.reduce_mean(tf.abs(images - self.decoder(self.encoder(images))))

    def train_step(self, batches):
        (batch,) = batches
        z = self.uniform([tf.shape(batch["image"])[0], self.config.latent])
        with tf.GradientTape(persistent=True) as tape:
            real = self.reconstruction(batch["image"])
            fake = self.reconstruction(self.generator(z))
            d_loss = real - self.k * fake
        self.minimize("d", tape, d_loss)
        self.minimize("g", tape, fake)
        # Reduced, since every rank carries the same k.
        real, fake = self.reduce([real, fake])
        self.k.assign(losses.began_balance(self.k, real, fake, self.config.gamma, self.config.lambda_k))
        self.update_averages(self.config.average)
        return {
            "m_global": real + tf.abs(self.config.gamma * real - fake),
            "k": self.k.value(),
            "loss_real": real,
            "loss_fake": fake,
        }

    def generate(self, inputs, seeds):
        return tf.clip_by_value(self.sampler(self.latents(seeds, self.config.latent, "uniform")), -1.0, 1.0)
