"""A small convolutional classifier after LeNet-5 (LeCun, Bottou, Bengio and Haffner, 1998).

It is the feature network where no pre-trained one is to be had: quality measures read its
last hidden layer. Differences: ReLU, max-pooling, wider layers, dropout, Adam.
"""

import dataclasses

import tensorflow as tf

from ..config import option
from .base import TrainedModel
from .blocks import Dropout


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("lenet", "", choices=("lenet",))
    image_size: int = option(28, "pixels a side", low=8, high=1024)
    channels: int = option(1, "of the image", choices=(1, 3))
    classes: int = option(10, "how many", low=2)
    filters: tuple[int, ...] = option((32, 64), "of the convolutions, 5x5, each with max-pooling")
    padding: str = option("same", "of the convolutions", choices=("same", "valid"))
    activation: str = option("relu", "of every hidden layer", choices=("relu", "tanh"))
    features: int = option(128, "units of the last hidden layer", low=1)
    dropout: float = option(0.4, "of the last hidden layer", low=0.0, high=0.95)
    optimizer: str = option("adam", "Adam, or SGD with momentum 0.9", choices=("adam", "sgd"))
    rate: float = option(1e-3, "the optimizer's learning rate", low=0.0, high=1.0)


class LeNet(TrainedModel):
    Config = Config
    monitored = "accuracy"
    widens = True

    @classmethod
    def reads(cls, config):
        return ("image", "label")

    @classmethod
    def batch_statistics(cls, config):
        return "none"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        layers = tf.keras.layers
        image = tf.keras.Input([config.image_size, config.image_size, config.channels])
        x = image
        for number, filters in enumerate(config.filters, 1):
            x = layers.MaxPool2D()(
                layers.Conv2D(filters, 5, padding=config.padding, activation=config.activation, name=f"conv{number}")(x)
            )
        features = layers.Dense(config.features, config.activation, dtype="float32")(layers.Flatten()(x))
        logits = layers.Dense(config.classes, dtype="float32")(Dropout(config.dropout, self.fresh_key)(features))
        self.network = tf.keras.Model(image, [features, logits], name="lenet")
        self.optimize(
            "classifier",
            (
                tf.keras.optimizers.Adam(config.rate)
                if config.optimizer == "adam"
                else tf.keras.optimizers.SGD(config.rate, 0.9)
            ),
            self.network.trainable_variables,
        )

    def train_step(self, batches):
        (batch,) = batches
        with tf.GradientTape() as tape:
            _, logits = self.network(batch["image"], training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits))
        self.minimize("classifier", tape, loss)
        correct = tf.equal(tf.argmax(logits, 1, tf.int32), batch["label"])
        return {"loss": loss, "accuracy": tf.reduce_mean(tf.cast(correct, tf.float32))}

    def classify(self, images: tf.Tensor) -> tf.Tensor:
        """Class probabilities [n, classes]."""
        return tf.nn.softmax(self.network(images, training=False)[1])

    def held_out(self, batch):
        return {
            "accuracy": tf.cast(
                tf.equal(tf.argmax(self.classify(batch["image"]), 1, tf.int32), batch["label"]), tf.float32
            )
        }
