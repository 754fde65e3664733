"""GAN: generative adversarial nets (Goodfellow et al., 2014; arXiv 1406.2661).

Two perceptrons of one hidden layer each: z uniform in [-1, 1], ReLU, sigmoid outputs, Xavier
weights, and the paper's two losses for the generator: the minimax value itself, or the
non-saturating one.

Differences: Adam rather than momentum; no maxout or dropout in the discriminator (`cgan` has them); samples are drawn
from a moving average of the generator. The authors' code for MNIST (github.com/goodfeli/adversarial) has two hidden
layers of 1,200 in the generator, z uniform with deviation 1, uniform initial weights, output biases from the data's
mean, half of this discriminator's loss, and a rate that falls.
"""

import dataclasses

import tensorflow as tf

from ..config import option
from . import losses
from .base import GenerativeModel


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("gan", "", choices=("gan",))
    image_size: int = option(28, "pixels a side", low=2, high=1024)
    channels: int = option(1, "of the image", choices=(1, 3))
    latent: int = option(100, "size of z", low=1)
    hidden: int = option(128, "units of the hidden layer, in both networks", low=1)
    loss: str = option("non_saturating", "of the generator", choices=("minimax", "non_saturating"))
    average: float = option(
        0.999, "decay of the generator's moving average; 0 for its newest weights", low=0.0, high=0.99999
    )
    generator_rate: float = option(1e-3, "Adam's learning rate", low=0.0, high=1.0)
    discriminator_rate: float = option(1e-3, "Adam's learning rate", low=0.0, high=1.0)
    beta1: float = option(0.5, "Adam's", low=0.0, high=0.999)


def generator(config: Config) -> tf.keras.Model:
    """z [n, latent] -> images in [-1, 1]: a sigmoid's [0, 1], stretched."""
    layers, shape = tf.keras.layers, [config.image_size, config.image_size, config.channels]
    z = tf.keras.Input([config.latent])
    x = layers.Dense(config.hidden, "relu")(z)
    x = layers.Dense(shape[0] * shape[1] * shape[2], "sigmoid", dtype="float32")(x)
    return tf.keras.Model(z, layers.Reshape(shape, dtype="float32")(2.0 * x - 1.0), name="generator")


def discriminator(config: Config) -> tf.keras.Model:
    """Images in [-1, 1] -> logits [n, 1]."""
    layers = tf.keras.layers
    image = tf.keras.Input([config.image_size, config.image_size, config.channels])
    x = layers.Dense(config.hidden, "relu")(layers.Flatten()(0.5 * (image + 1.0)))
    return tf.keras.Model(image, layers.Dense(1, dtype="float32")(x), name="discriminator")


class GAN(GenerativeModel):
    Config = Config
    cross_entropy = "d_loss"

    @classmethod
    def batch_statistics(cls, config):
        return "none"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        self.generator = generator(config)
        self.discriminator = discriminator(config)
        self.sampler = self.average(generator(config), self.generator)
        self.optimize(
            "d",
            tf.keras.optimizers.Adam(config.discriminator_rate, config.beta1),
            self.discriminator.trainable_variables,
        )
        self.optimize(
            "g", tf.keras.optimizers.Adam(config.generator_rate, config.beta1), self.generator.trainable_variables
        )

    def train_step(self, batches):
        (batch,) = batches
        z = self.uniform([tf.shape(batch["image"])[0], self.config.latent])
        with tf.GradientTape(persistent=True) as tape:
            real_logits = self.discriminator(batch["image"])
            fake_logits = self.discriminator(self.generator(z))
            d_loss = losses.discriminator(real_logits, fake_logits)
            g_loss = (
                losses.generator_minimax(fake_logits)
                if self.config.loss == "minimax"
                else losses.generator_non_saturating(fake_logits)
            )
        self.minimize("d", tape, d_loss)
        self.minimize("g", tape, g_loss)
        self.update_averages(self.config.average)
        return {
            "d_loss": d_loss,
            "g_loss": g_loss,
            "d_real": tf.reduce_mean(tf.sigmoid(real_logits)),
            "d_fake": tf.reduce_mean(tf.sigmoid(fake_logits)),
        }

    def generate(self, inputs, seeds):
        return self.sampler(self.latents(seeds, self.config.latent, "uniform"))
