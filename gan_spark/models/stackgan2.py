"""StackGAN, stage II: an image of stage I and its text to four times the side (Zhang et al., 2017; arXiv 1612.03242).

The image of stage I, whose run stays frozen, is reduced by strided convolutions, joined with an augmented condition of
the stage's own, tiled, and goes through residual blocks and nearest-neighbour upsampling. There is no z.

Differences from the paper, beside those that `stackgan.py` names: how often the image of stage I is halved is a config
value (2 in the paper), since an image of 16x16 has few pixels to lose; `consistency` holds the image to stage I's, as
StackGAN-v2's colour consistency does (arXiv 1710.10916), pixel by pixel where that compares means and covariances of
colours.
"""

import dataclasses

import tensorflow as tf

from ..config import UserError, option
from . import losses
from .blocks import BatchNorm
from .stackgan import StackGAN, StageConfig, conditioned, tiled, upsampled

FACTOR = 4


@dataclasses.dataclass(frozen=True)
class Config(StageConfig):
    name: str = option("stackgan2", "", choices=("stackgan2",))
    image_size: int = option(256, "pixels a side; four times stage I's", low=32, high=1024)
    stage1: str = option("", "run of a stackgan1", run="stackgan1")
    halvings: int = option(2, "of the image of stage I", low=0, high=4)
    blocks: int = option(4, "residual blocks", low=0, high=64)
    width: int = option(32, "filters of the generator next to the image; doubled at each halving", low=1, high=1024)
    consistency: float = option(
        0.0, "weight of the squared difference from stage I's image, once averaged to its side", low=0.0
    )


class StackGAN2(StackGAN):
    Config = Config

    def __init__(self, config, reduce=list, seed=0, stage1=None):
        if stage1 is None:
            raise UserError("model.stage1 is empty: expected the name of a stackgan1's run")
        for key, expected in (
            ("image_size", config.image_size / FACTOR),
            ("channels", config.channels),
            ("text", config.text),
            ("embedding", config.embedding),
        ):
            if getattr(stage1.config, key) != expected:
                raise UserError(
                    f"model.{key} = {getattr(config, key)!r}; stage I's is {getattr(stage1.config, key)!r}, expected"
                    f" {expected!r}"
                )
        super().__init__(config, reduce, seed, stage1.encoder)
        self.stage1 = stage1

    def network(self):
        config, layers = self.config, tf.keras.layers
        low = config.image_size // FACTOR
        doublings = config.halvings + FACTOR.bit_length() - 1
        image, embedding, noise = (
            tf.keras.Input([low, low, config.channels]),
            tf.keras.Input([config.embedding]),
            tf.keras.Input([config.conditioning]),
        )
        c, mean, log_variance = conditioned(embedding, noise, config.conditioning)
        x = layers.ReLU()(layers.Conv2D(config.width * 4, 3, padding="same")(image))
        for level in range(3, config.halvings + 3):
            x = layers.ReLU()(BatchNorm()(layers.Conv2D(config.width * 2**level, 4, 2, "same", use_bias=False)(x)))
        filters = config.width * 2**doublings
        x = layers.Concatenate()([x, tiled(c, x.shape[1])])
        x = layers.ReLU()(BatchNorm()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)))
        for _ in range(config.blocks):
            y = layers.ReLU()(BatchNorm()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)))
            x = layers.ReLU()(
                layers.Add(dtype="float32")(
                    [x, BatchNorm()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(y))]
                )
            )
        for level in reversed(range(doublings)):
            x = upsampled(x, config.width * 2**level)
        output = layers.Conv2D(config.channels, 3, padding="same", activation="tanh", dtype="float32")(x)
        return tf.keras.Model([image, embedding, noise], [output, mean, log_variance], name="generator")

    def start(self, embedding):
        count, config = tf.shape(embedding)[0], self.stage1.config
        return [
            self.stage1.draw(
                self.normal([count, config.latent]), embedding, self.normal([count, config.conditioning], stream=3)
            )
        ]

    def terms(self, start, fake):
        weight = self.config.consistency
        return {"consistency": (weight, losses.consistency(fake, start[0]))} if weight else {}

    def generate(self, inputs, seeds):
        """Images in [-1, 1]; the same seeds and texts make the same images of stage I as they do there."""
        embedding = self.embeddings(inputs, tf.zeros([tf.shape(seeds)[0]]))
        noise = self.latents(seeds, self.config.conditioning, stream=2)
        return self.sampler([self.stage1.generate(inputs, seeds), embedding, noise], training=False)[0]
