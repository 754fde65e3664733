"""DCGAN: deep convolutional GAN (Radford, Metz and Chintala, 2015; arXiv 1511.06434).

Strided and fractionally-strided convolutions, batch norm but at the generator's output and the
discriminator's input, ReLU and tanh in the generator, LeakyReLU 0.2 in the discriminator,
N(0, 0.02) initial weights, Adam at 2e-4 with beta1 0.5, z uniform in the paper and normal here.

Differences: kernels of 4 rather than 5 (each output pixel of a stride-2 transposed convolution then sees the same
number of taps); both networks step on one pass of the same batch; one-sided
label smoothing (1606.03498) and a moving average of the generator that samples are drawn from.
"""

import dataclasses

import tensorflow as tf

from ..config import option
from . import losses
from .base import GenerativeModel
from .blocks import BatchNorm, pyramid


def _init():
    # One for each layer: an initializer that is used twice gives the same values twice.
    return tf.keras.initializers.RandomNormal(0.0, 0.02)


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("dcgan", "", choices=("dcgan",))
    image_size: int = option(28, "pixels a side", low=8, high=1024)
    channels: int = option(1, "of the image", choices=(1, 3))
    latent: int = option(100, "size of z", low=1)
    width: int = option(64, "filters next to the image; doubled at each halving", low=1, high=1024)
    batch_norm: str = option("local", "statistics of each rank's batch, or of all ranks'", choices=("local", "synchronised", "none"))
    real_target: float = option(0.9, "target of real images; under 1 is one-sided label smoothing", low=0.5, high=1.0)
    average: float = option(0.999, "decay of the generator's moving average; 0 for its newest weights", low=0.0, high=0.99999)
    generator_rate: float = option(2e-4, "Adam's learning rate", low=0.0, high=1.0)
    discriminator_rate: float = option(2e-4, "Adam's learning rate", low=0.0, high=1.0)
    beta1: float = option(0.5, "Adam's", low=0.0, high=0.999)


def _normalised(config: Config, reduce, inputs):
    if config.batch_norm == "none":
        return inputs
    return BatchNorm(reduce if config.batch_norm == "synchronised" else None)(inputs)


def generator(config: Config, reduce=list) -> tf.keras.Model:
    """z [n, latent] -> images in [-1, 1], [n, image_size, image_size, channels]."""
    side, doublings = pyramid(config.image_size)
    z = tf.keras.Input([config.latent])
    filters = config.width * 2 ** (doublings - 1)
    x = tf.keras.layers.Dense(side * side * filters, use_bias=config.batch_norm == "none", kernel_initializer=_init())(z)
    x = tf.keras.layers.Reshape([side, side, filters])(x)
    x = tf.keras.layers.ReLU()(_normalised(config, reduce, x))
    for level in reversed(range(doublings - 1)):
        x = tf.keras.layers.Conv2DTranspose(config.width * 2**level, 4, 2, "same", use_bias=config.batch_norm == "none", kernel_initializer=_init())(x)
        x = tf.keras.layers.ReLU()(_normalised(config, reduce, x))
    x = tf.keras.layers.Conv2DTranspose(config.channels, 4, 2, "same", kernel_initializer=_init())(x)
    return tf.keras.Model(z, tf.keras.layers.Activation("tanh", dtype="float32")(x), name="generator")


def discriminator(config: Config, reduce=list) -> tf.keras.Model:
    """Images in [-1, 1] -> logits [n, 1], positive for real."""
    _, doublings = pyramid(config.image_size)
    image = tf.keras.Input([config.image_size, config.image_size, config.channels])
    x = image
    for level in range(doublings):
        x = tf.keras.layers.Conv2D(config.width * 2**level, 4, 2, "same", use_bias=level == 0 or config.batch_norm == "none", kernel_initializer=_init())(x)
        x = x if level == 0 else _normalised(config, reduce, x)
        x = tf.keras.layers.LeakyReLU(0.2)(x)
    x = tf.keras.layers.Flatten()(x)
    return tf.keras.Model(image, tf.keras.layers.Dense(1, kernel_initializer=_init(), dtype="float32")(x), name="discriminator")


class DCGAN(GenerativeModel):
    Config = Config

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        self.generator = generator(config, reduce)
        self.discriminator = discriminator(config, reduce)
        self.sampler = self.average(generator(config, reduce), self.generator)
        self.optimize("d", tf.keras.optimizers.Adam(config.discriminator_rate, config.beta1), self.discriminator.trainable_variables)
        self.optimize("g", tf.keras.optimizers.Adam(config.generator_rate, config.beta1), self.generator.trainable_variables)

    def train_step(self, batches):
        (batch,) = batches
        real = batch["image"]
        z = self.normal([tf.shape(real)[0], self.config.latent])
        with tf.GradientTape(persistent=True) as tape:
            fake = self.generator(z, training=True)
            # Apart, so that batch norm sees a batch of all real or all generated images.
            real_logits = self.discriminator(real, training=True)
            fake_logits = self.discriminator(fake, training=True)
            d_loss = losses.discriminator(real_logits, fake_logits, self.config.real_target)
            g_loss = losses.generator_non_saturating(fake_logits)
        self.minimize("d", tape, d_loss)
        self.minimize("g", tape, g_loss)
        self.update_averages(self.config.average)
        return {"d_loss": d_loss, "g_loss": g_loss, "d_real": tf.reduce_mean(tf.sigmoid(real_logits)), "d_fake": tf.reduce_mean(tf.sigmoid(fake_logits))}

    def generate(self, inputs, seeds):
        return self.sampler(self.latents(seeds, self.config.latent), training=False)
