"""CGAN: conditional generative adversarial nets (Mirza and Osindero, 2014; arXiv 1411.1784).

The class, one-hot, is an input of both networks. `network = "perceptron"` is the paper's for MNIST in kind: a ReLU
generator and a maxout discriminator (1302.4389) with dropout. `network = "convolutional"` joins the class to z and, as
constant maps, to the image, and runs DCGAN's networks on them.

Differences from the paper (its authors published no code): z is normal, where theirs is uniform; one hidden layer of
the generator reads z and class together, without dropout, where theirs are of 200 and 1,000 units before one of 1,200,
with it; one maxout layer of the discriminator reads image and class together, where theirs are of 240 and 50 units of 5
pieces before one of 240 of 4; tanh for sigmoid at the generator's end; the non-saturating loss, and one-sided label
smoothing (1606.03498; `real_target = 1` for none); Adam for momentum with a falling rate; samples are drawn from a
moving average of the generator.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from ..config import option
from . import dcgan, losses
from .base import GenerativeModel
from .blocks import Dropout


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("cgan", "", choices=("cgan",))
    image_size: int = option(28, "pixels a side", low=8, high=1024)
    channels: int = option(1, "of the image", choices=(1, 3))
    classes: int = option(10, "how many", low=2)
    latent: int = option(100, "size of z", low=1)
    network: str = option("convolutional", "kind of both networks", choices=("perceptron", "convolutional"))
    width: int = option(64, "convolutional: filters next to the image", low=1, high=1024)
    hidden: int = option(512, "perceptron: units of the generator's layer", low=1)
    maxout: int = option(256, "perceptron: units of the discriminator's layer", low=1)
    pieces: int = option(8, "perceptron: linear pieces of a maxout unit", low=1, high=64)
    dropout: float = option(0.5, "perceptron: of the discriminator's layer", low=0.0, high=0.95)
    real_target: float = option(0.9, "target of real images; under 1 is one-sided label smoothing", low=0.5, high=1.0)
    average: float = option(
        0.999, "decay of the generator's moving average; 0 for its newest weights", low=0.0, high=0.99999
    )
    generator_rate: float = option(2e-4, "Adam's learning rate", low=0.0, high=1.0)
    discriminator_rate: float = option(2e-4, "Adam's learning rate", low=0.0, high=1.0)
    beta1: float = option(0.5, "Adam's", low=0.0, high=0.999)


class Maxout(tf.keras.layers.Layer):
    """The largest of `pieces` linear functions, for each of `units` (arXiv 1302.4389)."""

    def __init__(self, units: int, pieces: int):
        super().__init__()
        self.units, self.pieces = units, pieces
        self.dense = tf.keras.layers.Dense(units * pieces)

    def call(self, inputs):
        return tf.reduce_max(tf.reshape(self.dense(inputs), [-1, self.units, self.pieces]), axis=2)


def generator(config: Config) -> tf.keras.Model:
    """(z [n, latent], one-hot class [n, classes]) -> images in [-1, 1]."""
    layers, shape = tf.keras.layers, [config.image_size, config.image_size, config.channels]
    z, y = tf.keras.Input([config.latent]), tf.keras.Input([config.classes])
    x = layers.Concatenate()([z, y])
    if config.network == "convolutional":
        x = dcgan.generator(
            dcgan.Config(
                image_size=config.image_size,
                channels=config.channels,
                latent=config.latent + config.classes,
                width=config.width,
            )
        )(x)
    else:
        x = layers.Dense(shape[0] * shape[1] * shape[2], "tanh", dtype="float32")(
            layers.Dense(config.hidden, "relu")(x)
        )
        x = layers.Reshape(shape, dtype="float32")(x)
    return tf.keras.Model([z, y], x, name="generator")


def discriminator(config: Config, key: Callable[[], tf.Tensor]) -> tf.keras.Model:
    """(images in [-1, 1], one-hot class) -> logits [n, 1] that the image is a real one of that class."""
    layers, side = tf.keras.layers, config.image_size
    image, y = tf.keras.Input([side, side, config.channels]), tf.keras.Input([config.classes])
    if config.network == "convolutional":
        x = layers.Concatenate()(
            [image, layers.Reshape([side, side, config.classes])(layers.RepeatVector(side * side)(y))]
        )
        logits = dcgan.discriminator(
            dcgan.Config(image_size=side, channels=config.channels + config.classes, width=config.width)
        )(x)
    else:
        x = Maxout(config.maxout, config.pieces)(layers.Concatenate()([layers.Flatten()(image), y]))
        logits = layers.Dense(1, dtype="float32")(Dropout(config.dropout, key)(x))
    return tf.keras.Model([image, y], logits, name="discriminator")


class CGAN(GenerativeModel):
    Config = Config
    cross_entropy = "d_loss"

    @classmethod
    def reads(cls, config):
        return ("image", "label")

    @classmethod
    def takes(cls, config):
        return ("label",)

    @classmethod
    def batch_statistics(cls, config):
        return "whole" if config.network == "convolutional" else "none"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        self.generator = generator(config)
        self.discriminator = discriminator(config, self.fresh_key)
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
        z = self.normal([tf.shape(batch["image"])[0], self.config.latent])
        y = tf.one_hot(batch["label"], self.config.classes)
        with tf.GradientTape(persistent=True) as tape:
            real_logits = self.discriminator([batch["image"], y], training=True)
            fake_logits = self.discriminator([self.generator([z, y], training=True), y], training=True)
            d_loss = losses.discriminator(real_logits, fake_logits, self.config.real_target)
            g_loss = losses.generator_non_saturating(fake_logits)
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
        return self.sampler(
            [self.latents(seeds, self.config.latent), tf.one_hot(inputs["label"], self.config.classes)], training=False
        )

    def preview(self, batch, seeds):
        # Column by column one class, in a grid of 8.
        return self.generate({"label": tf.cast(seeds % 8 % self.config.classes, tf.int32)}, seeds)
