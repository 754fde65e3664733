"""StackGAN, stage II: an image of stage I and its text to four times the side (Zhang et al., 2017; arXiv 1612.03242).

The image of stage I, whose run stays frozen, is reduced by strided convolutions, joined with an augmented condition of
the stage's own, tiled, and goes through residual blocks and nearest-neighbour upsampling. There is no z.

Differences from the paper, beside those that `stackgan.py` names: how often the image of stage I is halved is a
config value (2 in the paper), since an image of 16x16 has few pixels to lose.
"""

import dataclasses

import tensorflow as tf

from ..config import UserError, option
from .blocks import BatchNorm
from .stackgan import StackGAN, conditioned, tiled, upsampled

FACTOR = 4


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("stackgan2", "", choices=("stackgan2",))
    image_size: int = option(256, "pixels a side; four times stage I's", low=32, high=1024)
    channels: int = option(3, "of the image", choices=(1, 3))
    stage1: str = option("", "run of a stackgan1", run=True)
    text: str = option("captions", "as in stage I", choices=("captions", "embedding"))
    embedding: int = option(1024, "size of a text's embedding, as in stage I", low=1)
    conditioning: int = option(128, "size of c", low=1)
    halvings: int = option(2, "of the image of stage I", low=0, high=4)
    blocks: int = option(4, "residual blocks", low=0, high=64)
    width: int = option(32, "filters of the generator next to the image; doubled at each halving", low=1, high=1024)
    discriminator_width: int = option(64, "filters of the discriminator next to the image; doubled at each halving", low=1, high=1024)
    compressed: int = option(128, "N_d, size of the embedding in the discriminator", low=1)
    kl: float = option(1.0, "lambda, weight of the conditioning augmentation's KL term", low=0.0)
    real_target: float = option(0.9, "target of real images with their text; under 1 is one-sided label smoothing", low=0.5, high=1.0)
    average: float = option(0.999, "decay of the generator's moving average; 0 for its newest weights", low=0.0, high=0.99999)
    generator_rate: float = option(2e-4, "Adam's learning rate", low=0.0, high=1.0)
    discriminator_rate: float = option(2e-4, "Adam's learning rate", low=0.0, high=1.0)
    constant_steps: int = option(0, "before the rates fall", low=0)
    decay_steps: int = option(0, "in which the rates fall to 0; 0 for constant rates", low=0)
    beta1: float = option(0.5, "Adam's", low=0.0, high=0.999)


class StackGAN2(StackGAN):
    Config = Config

    def __init__(self, config, reduce=list, seed=0, stage1=None):
        if stage1 is None:
            raise UserError("model.stage1 is empty: expected the name of a stackgan1's run")
        for key, expected in (("image_size", config.image_size / FACTOR), ("channels", config.channels), ("text", config.text), ("embedding", config.embedding)):
            if getattr(stage1.config, key) != expected:
                raise UserError(f"model.{key} = {getattr(config, key)!r}; stage I's is {getattr(stage1.config, key)!r}, expected {expected!r}")
        super().__init__(config, reduce, seed, stage1.encoder)
        self.stage1 = stage1

    def network(self):
        config, layers = self.config, tf.keras.layers
        low = config.image_size // FACTOR
        doublings = config.halvings + FACTOR.bit_length() - 1
        image, embedding, noise = tf.keras.Input([low, low, config.channels]), tf.keras.Input([config.embedding]), tf.keras.Input([config.conditioning])
        c, mean, log_variance = conditioned(embedding, noise, config.conditioning)
        x = layers.ReLU()(layers.Conv2D(config.width * 4, 3, padding="same")(image))
        for level in range(3, config.halvings + 3):
            x = layers.ReLU()(BatchNorm()(layers.Conv2D(config.width * 2**level, 4, 2, "same", use_bias=False)(x)))
        filters = config.width * 2**doublings
        x = layers.Concatenate()([x, tiled(c, x.shape[1])])
        x = layers.ReLU()(BatchNorm()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)))
        for _ in range(config.blocks):
            y = layers.ReLU()(BatchNorm()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)))
            x = layers.ReLU()(x + BatchNorm()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(y)))
        for level in reversed(range(doublings)):
            x = upsampled(x, config.width * 2**level)
        made = layers.Conv2D(config.channels, 3, padding="same", activation="tanh", dtype="float32")(x)
        return tf.keras.Model([image, embedding, noise], [made, mean, log_variance], name="generator")

    def given(self, embedding):
        count, config = tf.shape(embedding)[0], self.stage1.config
        return [self.stage1.draw(self.normal([count, config.latent]), embedding, self.normal([count, config.conditioning], stream=3))]

    def generate(self, inputs, seeds):
        """The same seeds and texts make the same images of stage I as they do there."""
        embedding = self.embeddings(inputs, tf.zeros([tf.shape(seeds)[0]]))
        noise = self.latents(seeds, self.config.conditioning, stream=2)
        return self.sampler([self.stage1.generate(inputs, seeds), embedding, noise], training=False)[0]
