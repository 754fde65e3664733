"""StackGAN, stage I: from a text to a small image (Zhang et al., 2017; arXiv 1612.03242).

z and the text's augmented condition c become a 4x4 map, which nearest-neighbour upsampling and 3x3 convolutions double
up to the image. Differences from the paper: `stackgan.py` names them.
"""

import dataclasses

import tensorflow as tf

from ..config import UserError, option
from .blocks import BatchNorm, pyramid
from .stackgan import StackGAN, StageConfig, conditioned, upsampled


@dataclasses.dataclass(frozen=True)
class Config(StageConfig):
    name: str = option("stackgan1", "", choices=("stackgan1",))
    image_size: int = option(64, "pixels a side", low=8, high=1024)
    encoder: str = option("", "captions: run of a text_encoder", run="text_encoder")
    latent: int = option(100, "size of z", low=1)
    width: int = option(96, "filters of the generator next to the image; doubled at each halving", low=1, high=1024)


class StackGAN1(StackGAN):
    Config = Config

    def __init__(self, config, reduce=list, seed=0, encoder=None):
        if config.text == "captions" and encoder is None:
            raise UserError("model.text = 'captions' without model.encoder: expected the name of a text_encoder's run")
        super().__init__(config, reduce, seed, encoder)

    def network(self):
        config, layers = self.config, tf.keras.layers
        side, doublings = pyramid(config.image_size)
        z, embedding, noise = (
            tf.keras.Input([size]) for size in (config.latent, config.embedding, config.conditioning)
        )
        c, mean, log_variance = conditioned(embedding, noise, config.conditioning)
        filters = config.width * 2**doublings
        x = layers.Dense(side * side * filters, use_bias=False)(layers.Concatenate()([z, c]))
        x = layers.ReLU()(BatchNorm()(layers.Reshape([side, side, filters])(x)))
        for level in reversed(range(doublings)):
            x = upsampled(x, config.width * 2**level)
        image = layers.Conv2D(config.channels, 3, padding="same", activation="tanh", dtype="float32")(x)
        return tf.keras.Model([z, embedding, noise], [image, mean, log_variance], name="generator")

    def start(self, embedding):
        return [self.normal([tf.shape(embedding)[0], self.config.latent])]

    def draw(self, z: tf.Tensor, embedding: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """Images of latents [n, latent], embeddings, and the noise of c."""
        return self.sampler([z, embedding, noise], training=False)[0]

    def generate(self, inputs, seeds):
        embedding = self.embeddings(inputs, tf.zeros([tf.shape(seeds)[0]]))
        return self.draw(
            self.latents(seeds, self.config.latent), embedding, self.latents(seeds, self.config.conditioning, stream=1)
        )
