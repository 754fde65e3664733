"""CycleGAN: unpaired image-to-image translation (Zhu, Park, Isola and Efros, 2017; arXiv 1703.10593).

Two residual generators, a to b and b to a, with instance normalisation and reflection padding; two
patch discriminators with the least-squares loss; an L1 cycle loss both ways (lambda 10), an optional identity
loss; Adam at 2e-4 with beta1 0.5, constant unless `decay_steps` say how long it falls to 0, as in the paper's second
half.

Differences: no history of 50 former images for the discriminators, as it would be each rank's
own state; no random crops and mirroring; transposed convolutions of 4x4 (each output then sees as many taps); samples
are drawn from moving averages of the generators.
"""

import dataclasses

import tensorflow as tf

from ..config import UserError, option
from . import losses
from .base import GenerativeModel
from .blocks import InstanceNorm, falling_rate, reflect, side_by_side


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("cyclegan", "", choices=("cyclegan",))
    image_size: int = option(64, "pixels a side, a multiple of 4", low=8, high=1024)
    channels: int = option(3, "of the image", choices=(1, 3))
    width: int = option(64, "filters next to the image", low=1, high=1024)
    blocks: int = option(6, "residual blocks of a generator", low=0, high=64)
    layers: int = option(
        3,
        "convolutions with stride 2 of a discriminator: its patches are of 16, 34, 70, ... pixels for 1, 2, 3, ...",
        low=1,
        high=8,
    )
    cycle: float = option(10.0, "lambda, weight of the cycle loss", low=0.0)
    identity: float = option(
        0.0, "weight of the identity loss as a share of lambda; 0.5 keeps the colours of photographs", low=0.0
    )
    average: float = option(
        0.999, "decay of the generators' moving averages; 0 for their newest weights", low=0.0, high=0.99999
    )
    rate: float = option(2e-4, "Adam's learning rate", low=0.0, high=1.0)
    constant_steps: int = option(0, "steps at the full rate, before it falls", low=0)
    decay_steps: int = option(0, "steps in which it falls to 0", low=0)
    beta1: float = option(0.5, "Adam's", low=0.0, high=0.999)


def _init():
    return tf.keras.initializers.RandomNormal(0.0, 0.02)


def generator(config: Config, name: str) -> tf.keras.Model:
    """Images in [-1, 1] of one domain -> images of the other."""
    layers = tf.keras.layers
    image = tf.keras.Input([config.image_size, config.image_size, config.channels])

    def block(x, filters, size, strides=1, padding="same"):
        return layers.ReLU()(
            InstanceNorm()(layers.Conv2D(filters, size, strides, padding, kernel_initializer=_init())(x))
        )

    x = block(reflect(image, 3), config.width, 7, padding="valid")
    x = block(block(x, 2 * config.width, 3, 2), 4 * config.width, 3, 2)
    for _ in range(config.blocks):
        y = block(reflect(x, 1), 4 * config.width, 3, padding="valid")
        x = layers.Add(dtype="float32")(
            [x, InstanceNorm()(layers.Conv2D(4 * config.width, 3, kernel_initializer=_init())(reflect(y, 1)))]
        )
    for filters in (2 * config.width, config.width):
        x = layers.ReLU()(InstanceNorm()(layers.Conv2DTranspose(filters, 4, 2, "same", kernel_initializer=_init())(x)))
    x = layers.Conv2D(config.channels, 7, kernel_initializer=_init())(reflect(x, 3))
    return tf.keras.Model(image, layers.Activation("tanh", dtype="float32")(x), name=name)


def discriminator(config: Config, name: str) -> tf.keras.Model:
    """Images -> a map of scores, one a patch."""
    layers = tf.keras.layers
    image = tf.keras.Input([config.image_size, config.image_size, config.channels])
    x = layers.LeakyReLU(0.2)(layers.Conv2D(config.width, 4, 2, "same", kernel_initializer=_init())(image))
    for level in range(1, config.layers + 1):
        strides = 2 if level < config.layers else 1
        x = layers.Conv2D(config.width * min(2**level, 8), 4, strides, "same", kernel_initializer=_init())(x)
        x = layers.LeakyReLU(0.2)(InstanceNorm()(x))
    return tf.keras.Model(
        image, layers.Conv2D(1, 4, padding="same", kernel_initializer=_init(), dtype="float32")(x), name=name
    )


class CycleGAN(GenerativeModel):
    Config = Config

    @classmethod
    def reads(cls, config):
        return ("a", "b")

    @classmethod
    def takes(cls, config):
        return ("a", "b")

    @classmethod
    def batch_statistics(cls, config):
        return "none"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        if config.image_size % 4:
            raise UserError(f"model.image_size = {config.image_size}: expected a multiple of 4")
        self.to_b, self.to_a = generator(config, "to_b"), generator(config, "to_a")
        self.critic_a, self.critic_b = discriminator(config, "critic_a"), discriminator(config, "critic_b")
        self.sampler_b = self.average(generator(config, "sampler_b"), self.to_b)
        self.sampler_a = self.average(generator(config, "sampler_a"), self.to_a)
        rate = falling_rate(config.rate, config.constant_steps, config.decay_steps)
        self.optimize(
            "d",
            tf.keras.optimizers.Adam(rate, config.beta1),
            [*self.critic_a.trainable_variables, *self.critic_b.trainable_variables],
        )
        self.optimize(
            "g",
            tf.keras.optimizers.Adam(rate, config.beta1),
            [*self.to_b.trainable_variables, *self.to_a.trainable_variables],
        )

    def train_step(self, batches):
        (batch,) = batches
        a, b = batch["a"]["image"], batch["b"]["image"]
        with tf.GradientTape(persistent=True) as tape:
            fake_b, fake_a = self.to_b(a, training=True), self.to_a(b, training=True)
            cycle = losses.l1(a, self.to_a(fake_b, training=True)) + losses.l1(b, self.to_b(fake_a, training=True))
            fake_scores = self.critic_a(fake_a, training=True), self.critic_b(fake_b, training=True)
            real_scores = self.critic_a(a, training=True), self.critic_b(b, training=True)
            adversarial = sum(losses.least_squares(scores, 1.0) for scores in fake_scores)
            g_loss = adversarial + self.config.cycle * cycle
            if self.config.identity:
                same = losses.l1(a, self.to_a(a, training=True)) + losses.l1(b, self.to_b(b, training=True))
                g_loss += self.config.cycle * self.config.identity * same
            d_loss = 0.5 * sum(
                losses.least_squares(real, 1.0) + losses.least_squares(fake, 0.0)
                for real, fake in zip(real_scores, fake_scores, strict=True)
            )
        self.minimize("g", tape, g_loss)
        self.minimize("d", tape, d_loss)
        self.update_averages(self.config.average)
        return {"d_loss": d_loss, "adversarial": adversarial, "cycle": cycle}

    def generate(self, inputs, seeds):
        return (
            self.sampler_b(inputs["a"], training=False)
            if "a" in inputs
            else self.sampler_a(inputs["b"], training=False)
        )

    def preview(self, batch, seeds):
        """a, a to b, b, b to a."""
        a, b = batch["a"]["image"][:16], batch["b"]["image"][:16]
        return side_by_side(a, self.generate({"a": a}, seeds), b, self.generate({"b": b}, seeds))
