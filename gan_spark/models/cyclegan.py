"""CycleGAN: unpaired image-to-image translation (Zhu, Park, Isola and Efros, 2017; arXiv 1703.10593).

Two residual generators, a to b and b to a, with instance normalisation and reflection padding; two patch discriminators
with the least-squares loss, halved for them, which are shown former images as well (`pool`); an L1 cycle loss both ways
(lambda 10), an optional identity loss; Adam at 2e-4 with beta1 0.5, constant unless `decay_steps` say how long it falls
to 0, as in the paper's second half. Layer by layer as the authors' code, github.com/junyanz/CycleGAN and
pytorch-CycleGAN-and-pix2pix, which has `flip`, crops of 256 from 286 (128 from 143), a pool of 50 and an identity loss
of 0.5 by default; the paper has the last for paintings to photographs alone, and it is 0 here.

Differences: the pool takes in one image a step, of rank 0, and is alike on all ranks (in that code, with one image a
step, each with a chance of a half); each image of a batch is replaced by one of the pool half of the time;
transposed convolutions of 4x4 in place of 3x3 (each output then sees as many taps); 4x4 convolutions are padded to the
size of their input, where that code's last two lose or win a pixel a side; instance normalisation has a scale and a
shift, as the first of the two repositories, begun at 1 and 0; both directions are one step of one optimizer, as in the
second; samples are drawn from moving averages of the generators.
"""

import dataclasses
import math

import tensorflow as tf

from ..config import UserError, option
from . import losses
from .base import GenerativeModel
from .blocks import InstanceNorm, falling_rate, reflect, side_by_side

RANKS = 4096  # a rank's seed is its number above a multiple of this


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("cyclegan", "", choices=("cyclegan",))
    image_size: int = option(64, "pixels a side, a multiple of 4", low=8, high=1024)
    channels: int = option(3, "of the image", choices=(1, 3))
    width: int = option(64, "filters next to the image", low=1, high=1024)
    blocks: int = option(6, "residual blocks of a generator", low=0, high=64)
    layers: int = option(
        3,
        "convolutions with stride 2 of a discriminator: its patches are of 16, 34, 70, ... pixels for 1, 2, 3, ...; 0"
        " for as many as make them the share of the image that 70 are of 256, at least 1",
        low=0,
        high=8,
    )
    cycle: float = option(10.0, "lambda, weight of the cycle loss", low=0.0)
    identity: float = option(
        0.0, "weight of the identity loss as a share of lambda; 0.5 keeps the colours of photographs", low=0.0
    )
    flip: bool = option(
        False,
        "images of training are mirrored half of the time, those of a and of b apart, as by the authors; wrong where"
        " left and right tell a from b",
    )
    enlarge: int = option(
        0,
        "pixels a side to which images of training are enlarged, to be cropped at random to their size; 0 for none, 286"
        " for 256 in the authors' code",
        low=0,
        high=2048,
    )
    pool: int = option(
        0, "former images by each generator that its discriminator is shown too; 50 in the paper, 0 for none", low=0
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


def depth_of(image_size: int) -> int:
    """Convolutions with stride 2 by which a discriminator's patch is as large a share of the image as 70 of 256."""
    return max(1, round(math.log2(image_size / 32)))


def discriminator(config: Config, name: str) -> tf.keras.Model:
    """Images -> a map of scores, one a patch."""
    layers, depth = tf.keras.layers, config.layers or depth_of(config.image_size)
    image = tf.keras.Input([config.image_size, config.image_size, config.channels])
    x = layers.LeakyReLU(0.2)(layers.Conv2D(config.width, 4, 2, "same", kernel_initializer=_init())(image))
    for level in range(1, depth + 1):
        strides = 2 if level < depth else 1
        x = layers.Conv2D(config.width * min(2**level, 8), 4, strides, "same", kernel_initializer=_init())(x)
        x = layers.LeakyReLU(0.2)(InstanceNorm()(x))
    return tf.keras.Model(
        image, layers.Conv2D(1, 4, padding="same", kernel_initializer=_init(), dtype="float32")(x), name=name
    )


class Pool(tf.Module):
    """Former images of a generator, alike on all ranks: rank 0's first image of a step takes a place by chance."""

    def __init__(self, size: int, shape: tuple[int, int, int]):
        super().__init__()
        self.size = size
        self.count = tf.Variable(0, trainable=False, name="count", dtype=tf.int64)
        self.images = tf.Variable(tf.zeros([size, *shape]), trainable=False, name="images")

    def mixed(self, images: tf.Tensor, chances: tf.Tensor) -> tf.Tensor:
        """`images`, each of which whose row of `chances` [n, 2] in [0, 1] begins below a half is a former one."""
        place = tf.cast(chances[:, 1] * tf.cast(self.count, tf.float32), tf.int64)
        former = tf.gather(self.images, tf.clip_by_value(place, 0, tf.maximum(self.count - 1, 0)))
        replaced = (chances[:, 0] < 0.5) & (self.count > 0)
        return tf.where(replaced[:, None, None, None], former, images)

    def take(self, image: tf.Tensor, chance: tf.Tensor) -> None:
        """The next free place for `image`, or where none is free that of `chance` in [0, 1]; both as all ranks have
        them.
        """
        full = self.count >= self.size
        place = tf.where(full, tf.minimum(tf.cast(chance * self.size, tf.int64), self.size - 1), self.count)
        self.images.scatter_nd_update([[place]], [image])
        self.count.assign(tf.minimum(self.count + 1, self.size))


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
        if 0 < config.enlarge < config.image_size:
            raise UserError(
                f"model.enlarge = {config.enlarge}: expected 0, or no less than model.image_size = {config.image_size}"
            )
        self.to_b, self.to_a = generator(config, "to_b"), generator(config, "to_a")
        self.critic_a, self.critic_b = discriminator(config, "critic_a"), discriminator(config, "critic_b")
        self.sampler_b = self.average(generator(config, "sampler_b"), self.to_b)
        self.sampler_a = self.average(generator(config, "sampler_a"), self.to_a)
        shape = (config.image_size, config.image_size, config.channels)
        self.pools = [Pool(config.pool, shape) for _ in "ab"] if config.pool else []
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

    def augmented(self, images: tf.Tensor, stream: int) -> tf.Tensor:
        """Images of training as they are shown: each enlarged and cropped to its size anew, and mirrored or not."""
        count, side = tf.shape(images)[0], self.config.image_size
        chances = self.uniform([count, 3], stream, 0.0)
        if self.config.enlarge:
            images = tf.image.resize(images, [self.config.enlarge] * 2, "bicubic")
            room = self.config.enlarge - side
            corners = tf.minimum(tf.cast(chances[:, :2] * (room + 1.0), tf.int32), room)
            rows, columns = (corners[:, axis, None] + tf.range(side) for axis in (0, 1))
            images = tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)
            images = tf.clip_by_value(images, -1.0, 1.0)
        if self.config.flip:
            images = tf.where(chances[:, 2, None, None, None] < 0.5, images[:, :, ::-1], images)
        return images

    def shown(self, fakes: tuple[tf.Tensor, tf.Tensor]) -> list[tf.Tensor]:
        """Generated images, some of them replaced by former ones; then the pools take in rank 0's first ones."""
        count = tf.shape(fakes[0])[0]
        mixed = [
            pool.mixed(fake, self.uniform([count, 2], stream, 0.0))
            for pool, fake, stream in zip(self.pools, fakes, (2, 3), strict=True)
        ]
        # All other ranks add zeros, and the mean of who adds anything undoes the mean over ranks. By a variable: what
        # has constants alone for inputs, a reduce of zeros too, TensorFlow computes once, while it optimises a graph.
        flag = tf.cast(self.step < (2**62 if self.seed % RANKS == 0 else 0), tf.float32)
        values = [*(fake[0] for fake in fakes), *tf.unstack(self.uniform([2], 4, 0.0))]
        *means, share = self.reduce([*(value * flag for value in values), flag])
        image_a, image_b, chance_a, chance_b = (tf.math.divide_no_nan(mean, share) for mean in means)
        self.pools[0].take(image_a, chance_a)
        self.pools[1].take(image_b, chance_b)
        return mixed

    def train_step(self, batches):
        (batch,) = batches
        a, b = (self.augmented(batch[part]["image"], stream) for stream, part in enumerate("ab"))
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
            if self.pools:
                with tape.stop_recording():
                    shown_a, shown_b = self.shown((fake_a, fake_b))
                fake_scores = self.critic_a(shown_a, training=True), self.critic_b(shown_b, training=True)
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
