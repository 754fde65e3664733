"""DCGAN: deep convolutional GAN (Radford, Metz and Chintala, 2015; arXiv 1511.06434).

Strided and fractionally-strided convolutions, batch norm but at the generator's output and the discriminator's input,
ReLU and tanh in the generator, LeakyReLU 0.2 in the discriminator, N(0, 0.02) initial weights, Adam at 2e-4 with beta1
0.5, z uniform in the paper and normal here.

The further options are the aids of 1606.03498 and others, each off by default; `aids.py` has them.

Differences: kernels of 4 rather than 5 (each output pixel of a stride-2 transposed convolution then sees the same
number of taps); both networks step on one pass of the same batch; one-sided label smoothing (1606.03498) and a moving
average of the generator that samples are drawn from. The authors' code (github.com/Newmu/dcgan_code) moreover has
squared weights at 1e-5 in the loss (2.5e-5 for MNIST), steps the networks on batches in turn, samples with the batch's
own statistics, begins at 128 filters, and for MNIST joins the class to dense layers. Spectral normalisation is
Keras's: kernels are projected at each pass, so the gradient does not go through the singular value, and
`discriminator_above` does not hold them still.
"""

import dataclasses

import tensorflow as tf

from ..config import UserError, option
from . import losses
from .aids import History, MinibatchDiscrimination, SeededNoise, optimizer
from .base import GenerativeModel
from .blocks import BatchNorm, InstanceNorm, pyramid


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
    normalisation: str = option(
        "local",
        "batch norm over what train.statistics says, over all ranks' batch always ('synchronised'), instance norm, or"
        " none",
        choices=("local", "synchronised", "instance", "none"),
    )
    real_target: float = option(0.9, "target of real images; under 1 is one-sided label smoothing", low=0.5, high=1.0)
    average: float = option(
        0.999, "decay of the generator's moving average; 0 for its newest weights", low=0.0, high=0.99999
    )
    generator_rate: float = option(2e-4, "learning rate", low=0.0, high=1.0)
    discriminator_rate: float = option(
        2e-4, "learning rate; another than the generator's is the two time scales of 1706.08500", low=0.0, high=1.0
    )
    generator_optimizer: str = option("adam", "of the generator", choices=("adam", "sgd"))
    discriminator_optimizer: str = option("adam", "of the discriminator", choices=("adam", "sgd"))
    beta1: float = option(0.5, "Adam's", low=0.0, high=0.999)
    batches: str = option(
        "apart",
        "the discriminator sees real and generated images in batches of their own, or as one",
        choices=("apart", "together"),
    )
    spectral_norm: bool = option(
        False,
        "divide the discriminator's kernels by their largest singular value (1802.05957); best with normalisation"
        " 'none' or 'instance'",
    )
    minibatch: int = option(0, "kernels of minibatch discrimination; 0 for none", low=0, high=1000)
    feature_matching: float = option(0.0, "weight of feature matching in the generator's loss", low=0.0)
    historical_averaging: float = option(0.0, "weight of the distance of all weights from their running mean", low=0.0)
    clip: float = option(0.0, "largest norm of a network's gradient; 0 for any", low=0.0)
    generator_noise: float = option(
        0.0, "deviation of noise added inside the generator, in training and after", low=0.0
    )
    generator_dropout: float = option(0.0, "dropout inside the generator, in training and after", low=0.0, high=0.9)
    discriminator_above: float = option(0.0, "the discriminator steps only where its loss is above this", low=0.0)
    generator_above: float = option(0.0, "the generator steps only where its loss is above this", low=0.0)


def _normalised(config: Config, reduce, inputs):
    if config.normalisation == "none":
        return inputs
    if config.normalisation == "instance":
        return InstanceNorm()(inputs)
    return BatchNorm(reduce if config.normalisation == "synchronised" else None)(inputs)


def generator(config: Config, reduce=list) -> tf.keras.Model:
    """z [n, latent] -> images in [-1, 1], [n, image_size, image_size, channels]. With noise or dropout inside: [z,
    seeds [n, 1]] -> images.
    """
    side, doublings = pyramid(config.image_size)
    bias = config.normalisation == "none"
    z, seeds = tf.keras.Input([config.latent]), tf.keras.Input([1], dtype=tf.int64)
    noisy = config.generator_noise or config.generator_dropout

    def hidden(x, stream: int):
        x = tf.keras.layers.ReLU()(_normalised(config, reduce, x))
        return (
            SeededNoise(config.generator_noise, config.generator_dropout, 2 * stream + 1)([x, seeds[:, 0]])
            if noisy
            else x
        )

    filters = config.width * 2 ** (doublings - 1)
    x = tf.keras.layers.Dense(side * side * filters, use_bias=bias, kernel_initializer=_init())(z)
    x = hidden(tf.keras.layers.Reshape([side, side, filters])(x), 0)
    for level in reversed(range(doublings - 1)):
        x = hidden(
            tf.keras.layers.Conv2DTranspose(
                config.width * 2**level, 4, 2, "same", use_bias=bias, kernel_initializer=_init()
            )(x),
            level + 1,
        )
    x = tf.keras.layers.Conv2DTranspose(config.channels, 4, 2, "same", kernel_initializer=_init())(x)
    return tf.keras.Model(
        [z, seeds] if noisy else z, tf.keras.layers.Activation("tanh", dtype="float32")(x), name="generator"
    )


def discriminator(config: Config, reduce=list, features: bool = False) -> tf.keras.Model:
    """Images in [-1, 1] -> logits [n, 1], positive for real; with `features`, [logits, last hidden layer [n, d]]."""
    _, doublings = pyramid(config.image_size)
    bias = config.normalisation == "none"

    def spectral(layer):
        # In float32, as it writes to the kernel what it reads.
        return tf.keras.layers.SpectralNormalization(layer, dtype="float32") if config.spectral_norm else layer

    image = tf.keras.Input([config.image_size, config.image_size, config.channels])
    x = image
    for level in range(doublings):
        x = spectral(
            tf.keras.layers.Conv2D(
                config.width * 2**level, 4, 2, "same", use_bias=level == 0 or bias, kernel_initializer=_init()
            )
        )(x)
        x = x if level == 0 else _normalised(config, reduce, x)
        x = tf.keras.layers.LeakyReLU(0.2)(x)
    hidden = x = tf.keras.layers.Flatten()(x)
    if config.minibatch:
        x = MinibatchDiscrimination(config.minibatch)(x)
    logits = spectral(tf.keras.layers.Dense(1, kernel_initializer=_init(), dtype="float32"))(x)
    return tf.keras.Model(image, [logits, hidden] if features else logits, name="discriminator")


class DCGAN(GenerativeModel):
    Config = Config
    cross_entropy = "d_loss"

    @classmethod
    def batch_statistics(cls, config):
        normalised = config.normalisation in ("local", "synchronised")
        return "whole" if normalised or config.minibatch or config.feature_matching else "none"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        if config.minibatch and config.batches == "together":
            raise UserError(
                "model.minibatch with model.batches = 'together': real and generated images would count as one"
                " another's neighbours; use 'apart'"
            )
        self.generator = generator(config, reduce)
        self.discriminator = discriminator(config, reduce, features=True)
        self.sampler = self.average(generator(config, reduce), self.generator)
        self.optimize(
            "d",
            optimizer(config.discriminator_optimizer, config.discriminator_rate, config.beta1),
            self.discriminator.trainable_variables,
        )
        self.optimize(
            "g",
            optimizer(config.generator_optimizer, config.generator_rate, config.beta1),
            self.generator.trainable_variables,
        )
        self.histories = (
            {name: History(group) for name, group in self.groups.items()} if config.historical_averaging else {}
        )
        # `tf.Module` finds variables in lists and dicts, not in plain objects.
        self.history_means = [mean for history in self.histories.values() for mean in history.means]

    def _draw(self, network: tf.keras.Model, z: tf.Tensor, seeds: tf.Tensor, training: bool) -> tf.Tensor:
        return network([z, seeds[:, None]] if len(network.inputs) == 2 else z, training=training)

    def _look(self, real: tf.Tensor, fake: tf.Tensor):
        if self.config.batches == "apart":  # so that batch norm sees a batch of all real or all generated images
            return (*self.discriminator(real, training=True), *self.discriminator(fake, training=True))
        logits, hidden = self.discriminator(tf.concat([real, fake], 0), training=True)
        (real_logits, fake_logits), (real_hidden, fake_hidden) = tf.split(logits, 2), tf.split(hidden, 2)
        return real_logits, real_hidden, fake_logits, fake_hidden

    def train_step(self, batches):
        (batch,) = batches
        config, real = self.config, batch["image"]
        count = tf.shape(real)[0]
        z = self.normal([count, config.latent])
        seeds = tf.cast(self.uniform([count], stream=1) * 2.0**60, tf.int64)
        with tf.GradientTape(persistent=True) as tape:
            fake = self._draw(self.generator, z, seeds, training=True)
            real_logits, real_hidden, fake_logits, fake_hidden = self._look(real, fake)
            d_loss = losses.discriminator(real_logits, fake_logits, config.real_target)
            g_loss = losses.generator_non_saturating(fake_logits)
            objectives = {"d": d_loss, "g": g_loss}
            if config.feature_matching:
                objectives["g"] += config.feature_matching * losses.feature_matching(
                    real_hidden, fake_hidden, self.statistics.mean
                )
            for name, history in self.histories.items():
                objectives[name] += config.historical_averaging * history.penalty()
        self.minimize("d", tape, objectives["d"], config.clip, config.discriminator_above)
        self.minimize("g", tape, objectives["g"], config.clip, config.generator_above)
        for history in self.histories.values():
            history.update(self.step)
        self.update_averages(config.average)
        return {
            "d_loss": d_loss,
            "g_loss": g_loss,
            "d_real": tf.reduce_mean(tf.sigmoid(real_logits)),
            "d_fake": tf.reduce_mean(tf.sigmoid(fake_logits)),
        }

    def decode(self, z):
        """Images of latents [n, latent]."""
        return self._draw(self.sampler, z, tf.zeros([tf.shape(z)[0]], tf.int64), training=False)

    def generate(self, inputs, seeds):
        return self._draw(self.sampler, self.latents(seeds, self.config.latent), seeds, training=False)
