"""Char-CNN-RNN text encoder, trained with images (Reed et al., 2016; arXiv 1605.05395, 1605.05396).

Convolutions over characters, a recurrent network over what they leave, and its mean over time; images and texts of one
class are to be found by each other among all of the batch, or of their rank's share of it (`statistics.py`). `encode`
is what the text-to-image models use.

Differences: the loss is a cross-entropy over cosines (Radford et al., 2021; arXiv 2103.00020), which spreads the
embeddings, where the paper's hinge over inner products stops at a margin and leaves them along few directions
(docs/trials.md); the images' features are learnt with the texts', by a small convolutional network, where the paper
takes GoogLeNet's; GRU cells; widths are config values. The authors' code (github.com/reedscot/icml2016) has 384, 512
and 256 filters, the third kernel of 4, no third pooling, no padding, and dropout before its last layer.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from ..config import option
from . import losses
from .base import TrainedModel
from .blocks import pyramid

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+=<>()[]{} "
_PLACES = np.full(256, -1, np.int32)
_PLACES[list(ALPHABET.encode())] = np.arange(len(ALPHABET))


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("text_encoder", "", choices=("text_encoder",))
    image_size: int = option(64, "pixels a side", low=8, high=1024)
    channels: int = option(3, "of the image", choices=(1, 3))
    embedding: int = option(1024, "size of an embedding", low=1)
    length: int = option(201, "characters of a text that are read", low=24, high=10000)
    width: int = option(256, "filters and units of the text's network", low=1)
    image_width: int = option(32, "filters next to the image; doubled at each halving", low=1)
    temperature: float = option(0.1, "by which cosines are divided in the loss", low=0.001, high=10.0)
    rate: float = option(7e-4, "Adam's learning rate", low=0.0, high=1.0)


def phrasing(captions: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """One line of each caption, string [n]: the one at `share` [n] in [0, 1) of its lines."""
    lines = tf.strings.split(tf.strings.strip(captions), "\n")
    counts = lines.row_lengths()
    chosen = tf.cast(share * tf.cast(counts, tf.float32), tf.int64)
    return tf.gather(lines.flat_values, lines.row_starts() + tf.minimum(chosen, counts - 1))


def characters(texts: tf.Tensor, length: int) -> tf.Tensor:
    """One-hot characters [n, length, 69] of texts [n]; other characters, and what is missing, are zeros."""
    codes = tf.io.decode_raw(tf.strings.lower(texts), tf.uint8, fixed_length=length)
    return tf.one_hot(tf.gather(tf.constant(_PLACES), tf.cast(codes, tf.int32)), len(ALPHABET))


def text_network(config: Config) -> tf.keras.Model:
    """One-hot characters [n, length, 69] -> embeddings [n, embedding]."""
    layers = tf.keras.layers
    text = x = tf.keras.Input([config.length, len(ALPHABET)])
    for kernel, pool in ((4, 3), (4, 3), (3, 2)):
        x = layers.MaxPool1D(pool)(layers.Conv1D(config.width, kernel, padding="same", activation="relu")(x))
    x = layers.GlobalAveragePooling1D()(layers.GRU(config.width, return_sequences=True)(x))
    return tf.keras.Model(text, layers.Dense(config.embedding, dtype="float32")(x), name="text")


def image_network(config: Config) -> tf.keras.Model:
    """Images in [-1, 1] -> embeddings [n, embedding]."""
    layers = tf.keras.layers
    image = x = tf.keras.Input([config.image_size, config.image_size, config.channels])
    for level in range(pyramid(config.image_size)[1]):
        x = layers.Conv2D(config.image_width * 2**level, 4, 2, "same", activation="relu")(x)
    return tf.keras.Model(image, layers.Dense(config.embedding, dtype="float32")(layers.Flatten()(x)), name="image")


class TextEncoder(TrainedModel):
    Config = Config

    @classmethod
    def reads(cls, config):
        return ("image", "caption", "label")

    @classmethod
    def batch_statistics(cls, config):
        return "whole"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        self.text, self.image = text_network(config), image_network(config)
        self.optimize(
            "encoder",
            tf.keras.optimizers.Adam(config.rate),
            [*self.text.trainable_variables, *self.image.trainable_variables],
        )

    def encode(self, texts: tf.Tensor) -> tf.Tensor:
        """Embeddings [n, embedding] of texts, string [n].

        Their norm is sqrt(embedding), which what is trained on them takes in best.
        """
        return (
            tf.math.l2_normalize(self.text(characters(texts, self.config.length), training=False), 1)
            * self.config.embedding**0.5
        )

    def scores(self, images: tf.Tensor, texts: tf.Tensor) -> tf.Tensor:
        """Cosines of every image's embedding with every text's, [images, texts]."""
        text = self.text(characters(texts, self.config.length), training=False)
        return cosines(self.image(images, training=False), text)

    def train_step(self, batches):
        (batch,) = batches
        texts = phrasing(batch["caption"], self.uniform([tf.shape(batch["caption"])[0]], low=0.0))
        with tf.GradientTape() as tape:
            image = self.image(batch["image"], training=True)
            text = self.text(characters(texts, self.config.length), training=True)
            label, image, text = map(self.statistics.gather, (batch["label"], image, text))
            scores = cosines(image, text)
            loss = losses.contrastive(scores / self.config.temperature, label)
        self.minimize("encoder", tape, loss)
        return {"loss": loss, "matched": tf.reduce_mean(matched(scores, label))}

    def held_out(self, batch):
        scores = self.scores(batch["image"], phrasing(batch["caption"], tf.zeros([tf.shape(batch["caption"])[0]])))
        return {"matched": matched(scores, batch["label"])}


def cosines(images: tf.Tensor, texts: tf.Tensor) -> tf.Tensor:
    """Cosines [images, texts] of embeddings [n, embedding]."""
    return tf.matmul(tf.math.l2_normalize(images, 1), tf.math.l2_normalize(texts, 1), transpose_b=True)


def matched(scores: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """1 for each image whose best text in the batch is of its class, else 0; [batch]."""
    return tf.cast(tf.equal(tf.gather(labels, tf.argmax(scores, 1)), labels), tf.float32)
