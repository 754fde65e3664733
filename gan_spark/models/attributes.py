"""Reader of attributes: LeNet's kind of network (LeCun et al., 1998) with one head an attribute, for pictures of source
'shapes'.

It is trained apart from any generator, and says of a generated image what is to be seen in it.
"""

import dataclasses

import tensorflow as tf

from ..config import option
from ..data.shapes import ATTRIBUTES
from .base import TrainedModel
from .blocks import Dropout, pyramid


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("attributes", "", choices=("attributes",))
    image_size: int = option(64, "pixels a side", low=8, high=1024)
    channels: int = option(3, "of the image", choices=(1, 3))
    width: int = option(16, "filters next to the image; doubled at each halving", low=1, high=1024)
    features: int = option(128, "units of the last hidden layer", low=1)
    dropout: float = option(0.4, "of the last hidden layer", low=0.0, high=0.95)
    noise: float = option(0.1, "deviation of noise on the images in training, which are in [-1, 1]", low=0.0)
    rate: float = option(1e-3, "Adam's learning rate", low=0.0, high=1.0)


def indices(label: tf.Tensor) -> list[tf.Tensor]:
    """Indices of each attribute, in the order of ATTRIBUTES, from those of combinations; int32 [n] each."""
    digits = []
    for values in reversed(ATTRIBUTES.values()):
        digits.append(label % len(values))
        label = label // len(values)
    return digits[::-1]


class Attributes(TrainedModel):
    Config = Config
    monitored = "all"

    @classmethod
    def reads(cls, config):
        return ("image", "label")

    @classmethod
    def batch_statistics(cls, config):
        return "none"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        layers = tf.keras.layers
        image = x = tf.keras.Input([config.image_size, config.image_size, config.channels])
        for level in range(pyramid(config.image_size)[1]):
            x = layers.MaxPool2D()(layers.Conv2D(config.width * 2**level, 3, padding="same", activation="relu")(x))
        x = Dropout(config.dropout, self.fresh_key)(layers.Dense(config.features, "relu")(layers.Flatten()(x)))
        self.network = tf.keras.Model(
            image,
            [layers.Dense(len(values), name=name, dtype="float32")(x) for name, values in ATTRIBUTES.items()],
            name="attributes",
        )
        self.optimize("reader", tf.keras.optimizers.Adam(config.rate), self.network.trainable_variables)

    def train_step(self, batches):
        (batch,) = batches
        truth = indices(batch["label"])
        noisy = batch["image"] + self.config.noise * self.normal(tf.shape(batch["image"]))
        with tf.GradientTape() as tape:
            heads = self.network(noisy, training=True)
            loss = tf.add_n(
                [
                    tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(index, logits))
                    for index, logits in zip(truth, heads, strict=True)
                ]
            )
        self.minimize("reader", tape, loss)
        right = [tf.equal(tf.argmax(logits, 1, tf.int32), index) for index, logits in zip(truth, heads, strict=True)]
        return {"loss": loss, "all": tf.reduce_mean(tf.cast(tf.reduce_all(right, 0), tf.float32))}

    def read(self, images: tf.Tensor) -> tf.Tensor:
        """Index of each attribute, int32 [n, attributes]."""
        return tf.stack([tf.argmax(logits, 1, tf.int32) for logits in self.network(images, training=False)], 1)

    def held_out(self, batch):
        right = tf.equal(self.read(batch["image"]), tf.stack(indices(batch["label"]), 1))
        values = {"all": tf.reduce_all(right, 1), **dict(zip(ATTRIBUTES, tf.unstack(right, axis=1), strict=True))}
        return {name: tf.cast(value, tf.float32) for name, value in values.items()}
