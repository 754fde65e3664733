"""Parts that both stages of StackGAN share (Zhang et al., 2017; arXiv 1612.03242).

Text, its conditioning augmentation, the discriminator, the step.

Differences from the paper, in both stages: one phrasing's embedding a step; the KL term is averaged over the
dimensions of c, as in the authors' code, so that its weight does not depend on their number; the learning rate is
constant or falls linearly; one-sided label smoothing (1606.03498); both networks step on one pass; moving averages of
the generators. The authors' code (github.com/hanzhanggit/StackGAN) moreover has bottleneck residual blocks in stage
I's generator and in both discriminators, a leaky ReLU before c's mean and variance, truncated noise, lambda 2, the
mean of four phrasings' embeddings, another image as the wrong one in place of another text, and crops and mirroring
from 76 pixels; stage II's discriminator there goes on to 32 times its width and back.
"""

import dataclasses

import tensorflow as tf

from ..config import UserError, option
from . import losses
from .base import GenerativeModel
from .blocks import BatchNorm, falling_rate, pyramid
from .text import phrasing


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """Options of both stages."""

    channels: int = option(3, "of the image", choices=(1, 3))
    text: str = option(
        "captions", "read by the text encoder of a run, or the dataset's embeddings", choices=("captions", "embedding")
    )
    embedding: int = option(1024, "size of a text's embedding", low=1)
    conditioning: int = option(128, "size of c", low=1)
    discriminator_width: int = option(
        64, "filters of the discriminator next to the image; doubled at each halving", low=1, high=1024
    )
    compressed: int = option(128, "N_d, size of the embedding in the discriminator", low=1)
    kl: float = option(1.0, "lambda, weight of the conditioning augmentation's KL term", low=0.0)
    real_target: float = option(
        0.9, "target of real images with their text; under 1 is one-sided label smoothing", low=0.5, high=1.0
    )
    average: float = option(
        0.999, "decay of the generator's moving average; 0 for its newest weights", low=0.0, high=0.99999
    )
    generator_rate: float = option(2e-4, "Adam's learning rate", low=0.0, high=1.0)
    discriminator_rate: float = option(2e-4, "Adam's learning rate", low=0.0, high=1.0)
    constant_steps: int = option(0, "before the rates fall", low=0)
    decay_steps: int = option(0, "in which the rates fall to 0; 0 for constant rates", low=0)
    beta1: float = option(0.5, "Adam's", low=0.0, high=0.999)


def conditioned(embedding, noise, size: int):
    """Conditioning augmentation: c = mean + exp(log_variance / 2) noise, [n, size]; with its mean and log_variance."""
    mean, log_variance = tf.split(tf.keras.layers.Dense(2 * size, dtype="float32")(embedding), 2, axis=1)
    return mean + tf.exp(0.5 * log_variance) * noise, mean, log_variance


def upsampled(x, filters: int):
    """Twice the side by nearest neighbours, then 3x3 convolution, batch norm, ReLU."""
    x = tf.keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)(tf.keras.layers.UpSampling2D()(x))
    return tf.keras.layers.ReLU()(BatchNorm()(x))


def tiled(x, side: int):
    """[n, size] to [n, side, side, size], the same everywhere."""
    return tf.keras.layers.Reshape([side, side, x.shape[-1]])(tf.keras.layers.RepeatVector(side * side)(x))


def image_network(config) -> tf.keras.Model:
    """Images -> features at the pyramid's smallest side, 4x4 for sizes that are powers of 2."""
    layers = tf.keras.layers
    image = x = tf.keras.Input([config.image_size, config.image_size, config.channels])
    for level in range(pyramid(config.image_size)[1]):
        x = layers.Conv2D(config.discriminator_width * 2**level, 4, 2, "same", use_bias=level == 0)(x)
        x = layers.LeakyReLU(0.2)(x if level == 0 else BatchNorm()(x))
    return tf.keras.Model(image, x, name="discriminator_image")


def joint_network(config) -> tf.keras.Model:
    """(features of images, embeddings) -> logits [n, 1] that the image is real and the text is its own."""
    layers, (side, doublings) = tf.keras.layers, pyramid(config.image_size)
    filters = config.discriminator_width * 2 ** (doublings - 1)
    features, embedding = tf.keras.Input([side, side, filters]), tf.keras.Input([config.embedding])
    text = layers.LeakyReLU(0.2)(layers.Dense(config.compressed)(embedding))
    x = layers.Concatenate()([features, tiled(text, side)])
    x = layers.LeakyReLU(0.2)(BatchNorm()(layers.Conv2D(filters, 1, use_bias=False)(x)))
    return tf.keras.Model(
        [features, embedding], layers.Dense(1, dtype="float32")(layers.Flatten()(x)), name="discriminator_joint"
    )


class StackGAN(GenerativeModel):
    """One stage; a subclass has its `network`, what that starts from (`start`), and the `encoder` of texts."""

    cross_entropy = "d_loss"

    @classmethod
    def reads(cls, config):
        return ("image", *cls.takes(config))

    @classmethod
    def takes(cls, config):
        return ("caption",) if config.text == "captions" else ("embedding",)

    @classmethod
    def batch_statistics(cls, config):
        return "whole"

    def __init__(self, config, reduce, seed, encoder):
        super().__init__(config, reduce, seed)
        self.encoder = encoder
        if config.text == "captions" and encoder is not None and encoder.config.embedding != config.embedding:
            raise UserError(
                f"model.embedding = {config.embedding}; the text encoder's embeddings have {encoder.config.embedding}"
                " numbers"
            )
        self.generator = self.network()
        self.sampler = self.average(self.network(), self.generator)
        self.image_features, self.joint = image_network(config), joint_network(config)
        discriminator = [*self.image_features.trainable_variables, *self.joint.trainable_variables]
        for name, rate, variables in (
            ("d", config.discriminator_rate, discriminator),
            ("g", config.generator_rate, self.generator.trainable_variables),
        ):
            self.optimize(
                name,
                tf.keras.optimizers.Adam(falling_rate(rate, config.constant_steps, config.decay_steps), config.beta1),
                variables,
            )

    def network(self) -> tf.keras.Model:
        """[*start, embedding, noise] -> [images in [-1, 1], mean and log_variance of c]."""
        raise NotImplementedError(f"{type(self).__name__}.network: every stage defines its generator")

    def start(self, embedding: tf.Tensor) -> list[tf.Tensor]:
        """What the generator starts from in a step of training: z, or an image of stage I."""
        raise NotImplementedError(f"{type(self).__name__}.start: every stage defines what it starts from")

    def terms(self, start: list[tf.Tensor], fake: tf.Tensor) -> dict[str, tuple[float, tf.Tensor]]:
        """Terms of the generator's loss that a stage adds: weight and value, by name."""
        return {}

    def embeddings(self, batch: dict[str, tf.Tensor], share: tf.Tensor) -> tf.Tensor:
        """[n, embedding] of one phrasing of each text: the one at `share` [n] in [0, 1) of them."""
        if self.config.text == "captions":
            return self.encoder.encode(phrasing(batch["caption"], share))
        values = batch["embedding"]
        if values.shape[2] != self.config.embedding:
            raise UserError(
                f"model.embedding = {self.config.embedding}; the dataset's embeddings have {values.shape[2]} numbers"
            )
        return tf.gather(values, tf.cast(share * values.shape[1], tf.int32), batch_dims=1)

    def train_step(self, batches):
        (batch,) = batches
        config, real = self.config, batch["image"]
        if real.shape[0] == 1 and self.statistics.size == 1:
            raise UserError(
                "train.batch_size gives a rank one image: expected two or more, as the text of another image of its"
                " batch is the wrong one"
            )
        count = tf.shape(real)[0]
        embedding = self.embeddings(batch, self.uniform([count], stream=1, low=0.0))
        start, noise = self.start(embedding), self.normal([count, config.conditioning], stream=2)
        with tf.GradientTape(persistent=True) as tape:
            fake, mean, log_variance = self.generator([*start, embedding, noise], training=True)
            real_features = self.image_features(real, training=True)
            real_logits = self.joint([real_features, embedding], training=True)
            wrong_logits = self.joint([real_features, self.statistics.before(embedding)], training=True)
            fake_logits = self.joint([self.image_features(fake, training=True), embedding], training=True)
            d_loss = losses.matching_aware(real_logits, wrong_logits, fake_logits, config.real_target)
            kl = tf.reduce_mean(losses.kl_standard_normal(mean, log_variance)) / config.conditioning
            adversarial = losses.generator_non_saturating(fake_logits)
            terms = {"kl": (config.kl, kl), **self.terms(start, fake)}
            g_loss = adversarial + tf.add_n([weight * value for weight, value in terms.values()])
        self.minimize("d", tape, d_loss)
        self.minimize("g", tape, g_loss)
        self.update_averages(config.average)
        probability = {
            name: tf.reduce_mean(tf.sigmoid(logits))
            for name, logits in (("d_real", real_logits), ("d_wrong", wrong_logits), ("d_fake", fake_logits))
        }
        return {
            "d_loss": d_loss,
            "g_loss": adversarial,
            **{name: value for name, (_, value) in terms.items()},
            **probability,
        }
