"""DiscoGAN: discovering relations between two unpaired domains (Kim et al., 2017; arXiv 1703.05192).

Two generators, each an encoder and a mirrored decoder; two discriminators that hand out their middle features.
Reconstruction is mean squared error, of images in [0, 1], after going there and back; the generators' loss is (0.1 GAN
+ 0.9 feature matching)(1 - rate) + rate reconstruction, as in the authors' code (github.com/SKTBrain/DiscoGAN,
image_translation.py), with `rate` 0.01 for the first `start_steps` and 0.5 after. Between encoder and decoder lies the
smallest map, as in that file; with `code`, a vector of so many numbers, as in their angle_pairing.py and in the paper's
figure. Adam at 2e-4 with betas 0.5 and 0.999, and the squared weights at 1e-5 in the loss (Keras's own,
decoupled decay is too small at this rate to move a float32 weight). As in that code the discriminators step on one
batch, and the generators on each of the next `generator_steps`; together they are one step.

Differences: tanh at the end, as images are in [-1, 1]; the last layers have biases; depth follows from the image's
size; an image is translated with batch norm's moving
statistics, so that it does not depend on what it is translated with, where that code takes each batch's own.
"""

import dataclasses

import tensorflow as tf

from ..config import option
from . import losses
from .base import GenerativeModel
from .blocks import BatchNorm, pyramid, side_by_side


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("discogan", "", choices=("discogan",))
    image_size: int = option(64, "pixels a side", low=8, high=1024)
    channels: int = option(3, "of the image", choices=(1, 3))
    width: int = option(64, "filters next to the image; doubled at each halving", low=1, high=1024)
    code: int = option(0, "size of the generators' code; 0 for none, as in the authors' translator", low=0)
    start_rate: float = option(0.01, "weight of the reconstruction at first", low=0.0, high=1.0)
    rate_of_reconstruction: float = option(0.5, "and after `start_steps`", low=0.0, high=1.0)
    start_steps: int = option(3333, "steps at `start_rate`", low=0)
    generator_steps: int = option(
        2, "generators' steps for each of the discriminators', each on a batch of its own", low=1, high=100
    )
    rate: float = option(2e-4, "Adam's learning rate", low=0.0, high=1.0)
    weight_decay: float = option(1e-5, "weight of half the squared weights", low=0.0, high=1.0)


def generator(config: Config, name: str) -> tf.keras.Model:
    """Images in [-1, 1] of one domain -> images of the other."""
    layers, (side, doublings) = tf.keras.layers, pyramid(config.image_size)
    image = tf.keras.Input([config.image_size, config.image_size, config.channels])
    x = layers.LeakyReLU(0.2)(layers.Conv2D(config.width, 4, 2, "same", use_bias=False)(image))
    for level in range(1, doublings):
        x = layers.LeakyReLU(0.2)(BatchNorm()(layers.Conv2D(config.width * 2**level, 4, 2, "same", use_bias=False)(x)))
    if config.code:
        filters = config.width * 2 ** (doublings - 1)
        x = layers.LeakyReLU(0.2)(BatchNorm()(layers.Conv2D(config.code, side, use_bias=False)(x)))
        x = layers.ReLU()(BatchNorm()(layers.Conv2DTranspose(filters, side, use_bias=False)(x)))
    for level in reversed(range(doublings - 1)):
        x = layers.ReLU()(BatchNorm()(layers.Conv2DTranspose(config.width * 2**level, 4, 2, "same", use_bias=False)(x)))
    x = layers.Conv2DTranspose(config.channels, 4, 2, "same")(x)
    return tf.keras.Model(image, layers.Activation("tanh", dtype="float32")(x), name=name)


def discriminator(config: Config, name: str) -> tf.keras.Model:
    """Images -> [logits [n, 1], and the features of each level but the first]."""
    layers, (_, doublings) = tf.keras.layers, pyramid(config.image_size)
    image = tf.keras.Input([config.image_size, config.image_size, config.channels])
    x, features = layers.LeakyReLU(0.2)(layers.Conv2D(config.width, 4, 2, "same", use_bias=False)(image)), []
    for level in range(1, doublings):
        x = layers.LeakyReLU(0.2)(BatchNorm()(layers.Conv2D(config.width * 2**level, 4, 2, "same", use_bias=False)(x)))
        features.append(x)
    return tf.keras.Model(image, [layers.Dense(1, dtype="float32")(layers.Flatten()(x)), *features], name=name)


class DiscoGAN(GenerativeModel):
    Config = Config
    cross_entropy = "d_loss"

    @classmethod
    def reads(cls, config):
        return ("a", "b")

    @classmethod
    def takes(cls, config):
        return ("a", "b")

    @classmethod
    def batch_statistics(cls, config):
        return "whole"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        self.batches_per_step = 1 + config.generator_steps
        self.to_b, self.to_a = generator(config, "to_b"), generator(config, "to_a")
        self.critic_a, self.critic_b = discriminator(config, "critic_a"), discriminator(config, "critic_b")

        def adam():
            return tf.keras.optimizers.Adam(config.rate, 0.5, 0.999)

        self.optimize("d", adam(), [*self.critic_a.trainable_variables, *self.critic_b.trainable_variables])
        self.optimize("g", adam(), [*self.to_b.trainable_variables, *self.to_a.trainable_variables])

    def discriminator_step(self, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
        """One step of both discriminators; their mean loss from before it."""
        fakes = self.to_a(b, training=True), self.to_b(a, training=True)
        with tf.GradientTape() as tape:
            d_loss = 0.0
            for critic, real, fake in ((self.critic_a, a, fakes[0]), (self.critic_b, b, fakes[1])):
                d_loss += 0.5 * losses.discriminator(critic(real, training=True)[0], critic(fake, training=True)[0])
            loss = d_loss + self.decay("d")
        self.minimize("d", tape, loss)
        return d_loss

    def generator_step(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
        """One step of both generators; the terms of their loss from before it."""
        rate = tf.where(self.step < self.config.start_steps, self.config.start_rate, self.config.rate_of_reconstruction)
        with tf.GradientTape() as tape:
            fake_b, fake_a = self.to_b(a, training=True), self.to_a(b, training=True)
            # Batch norm's moving statistics stay those of real images, which are what is translated afterwards.
            moving = [*self.to_b.non_trainable_variables, *self.to_a.non_trainable_variables]
            of_real = [variable.read_value() for variable in moving]
            there_and_back = self.to_a(fake_b, training=True), self.to_b(fake_a, training=True)
            for variable, value in zip(moving, of_real, strict=True):
                variable.assign(value)
            # Of images in [0, 1], whose squares are a quarter.
            reconstruction = 0.25 * sum(
                tf.reduce_mean(tf.square(real - back)) for real, back in zip((a, b), there_and_back, strict=True)
            )
            adversarial, matching = 0.0, 0.0
            for critic, real, fake in ((self.critic_a, a, fake_a), (self.critic_b, b, fake_b)):
                _, *real_features = critic(real, training=True)
                fake_logits, *fake_features = critic(fake, training=True)
                adversarial += losses.generator_non_saturating(fake_logits)
                levels = zip(real_features, fake_features, strict=True)
                matching += sum(
                    losses.feature_matching(real_level, fake_level, self.statistics.mean)
                    for real_level, fake_level in levels
                )
            loss = (0.1 * adversarial + 0.9 * matching) * (1.0 - rate) + rate * reconstruction + self.decay("g")
        self.minimize("g", tape, loss)
        return {"adversarial": adversarial, "matching": matching, "reconstruction": reconstruction}

    def decay(self, name: str) -> tf.Tensor:
        """The weight decay's term of one group's loss."""
        return self.config.weight_decay * tf.add_n([tf.nn.l2_loss(variable) for variable in self.groups[name]])

    def train_step(self, batches):
        discriminator_batch, *generator_batches = [(batch["a"]["image"], batch["b"]["image"]) for batch in batches]
        d_loss = self.discriminator_step(*discriminator_batch)
        for batch in generator_batches:
            terms = self.generator_step(*batch)
        return {"d_loss": d_loss, **terms}

    def generate(self, inputs, seeds):
        return self.to_b(inputs["a"], training=False) if "a" in inputs else self.to_a(inputs["b"], training=False)

    def preview(self, batch, seeds):
        """a, a to b, b, b to a."""
        a, b = batch["a"]["image"][:16], batch["b"]["image"][:16]
        return side_by_side(a, self.generate({"a": a}, seeds), b, self.generate({"b": b}, seeds))
