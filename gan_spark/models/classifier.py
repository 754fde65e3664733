"""Transfer learning: a network of Keras with a new head, fine-tuned (Yosinski et al., 2014; arXiv 1411.1792).

The head (1,024 units, ReLU, then softmax) learns on the frozen network with RMSprop; then the network's last layers
learn with it, with SGD and momentum, which is the schedule of Keras's documentation of its applications. With
`head_steps = 0`, `last_layers = -1` and `batch_norm = "trained"` the whole network learns from its start, which makes
weights for others to begin from.

Training images are rotated, shifted, sheared, enlarged or reduced, and mirrored at random, around the middle; what
comes in from outside repeats the edge.
"""

import dataclasses
import math

import tensorflow as tf

from .. import networks
from ..config import UserError, option
from .base import TrainedModel
from .blocks import Dropout


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("classifier", "", choices=("classifier",))
    image_size: int = option(128, "pixels a side", low=32, high=1024)
    channels: int = option(3, "of the image", choices=(1, 3))
    classes: int = option(10, "how many", low=2)
    network: str = option("InceptionV3", "name of a Keras network")
    weights: str = option(
        "imagenet",
        "'imagenet', a weights file (.h5) of the network without its top, or empty for random ones",
        file=True,
    )
    hidden: int = option(1024, "units of the head's hidden layer", low=1)
    dropout: float = option(0.0, "of the head's hidden layer", low=0.0, high=0.95)
    head_steps: int = option(500, "in which the head alone learns", low=0)
    head_rate: float = option(1e-3, "RMSprop's learning rate, for the head alone", low=0.0, high=1.0)
    last_layers: int = option(50, "layers of the network, from its end, that learn after that; -1 for all", low=-1)
    rate: float = option(1e-4, "SGD's learning rate", low=0.0, high=10.0)
    momentum: float = option(0.9, "SGD's", low=0.0, high=0.999)
    batch_norm: str = option(
        "frozen",
        "the network's batch norm in training: by its moving statistics, which stay, or by the batch's",
        choices=("frozen", "trained"),
    )
    class_weights: tuple[float, ...] = option((), "weight of each class's images in the loss; empty for 1 each")
    rotation: float = option(30.0, "degrees at most, either way", low=0.0, high=180.0)
    shift: float = option(0.2, "of the side at most, either way, each direction", low=0.0, high=1.0)
    shear: float = option(0.2, "degrees of the y axis at most, either way", low=0.0, high=89.0)
    zoom: float = option(0.2, "scale from 1 - zoom to 1 + zoom, the same for both sides", low=0.0, high=0.9)
    flip: bool = option(True, "mirror half of the images, left to right")


class Classifier(TrainedModel):
    Config = Config
    monitored = "accuracy"
    widens = True

    @classmethod
    def reads(cls, config):
        return ("image", "label")

    @classmethod
    def batch_statistics(cls, config):
        return "none" if config.batch_norm == "frozen" else "rank"  # Keras's own layers

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        if config.class_weights and len(config.class_weights) != config.classes:
            raise UserError(f"model.class_weights has {len(config.class_weights)} values for {config.classes} classes")
        self.network = self._keras("")
        if config.last_layers > len(self.network.layers):
            raise UserError(
                f"model.last_layers = {config.last_layers}: {config.network} has {len(self.network.layers)} layers;"
                " expected at most that many, or -1 for all"
            )
        layers = tf.keras.layers
        features = tf.keras.Input(self.network.output_shape[1:])
        hidden = Dropout(config.dropout, self.fresh_key)(layers.Dense(config.hidden, "relu")(features))
        self.head = tf.keras.Model(features, layers.Dense(config.classes, dtype="float32")(hidden), name="head")
        for layer in self.network.layers:
            if isinstance(layer, tf.keras.layers.BatchNormalization):
                # Keras's MobileNetV2 has 0.999: after 2,000 steps its statistics still hold an eighth of what they
                # began with, and the network answers with one class.
                layer.momentum = 0.9
        learning = (
            self.network.layers
            if config.last_layers < 0
            else self.network.layers[len(self.network.layers) - config.last_layers :]
        )
        for layer in self.network.layers:
            layer.trainable = layer in learning
        late = self.network.trainable_variables
        self.optimize("head", tf.keras.optimizers.RMSprop(config.head_rate), self.head.trainable_variables)
        self.optimize(
            "all", tf.keras.optimizers.SGD(config.rate, config.momentum), [*late, *self.head.trainable_variables]
        )

    def _keras(self, weights: str) -> tf.keras.Model:
        side = self.config.image_size
        return networks.load(
            self.config.network, weights, include_top=False, pooling="avg", input_shape=(side, side, 3)
        )

    def begin(self):
        if self.config.weights:
            self.network.set_weights(self._keras(self.config.weights).get_weights())

    def logits(self, images: tf.Tensor, training: bool = False, network_training: bool = False) -> tf.Tensor:
        colour = images if self.config.channels == 3 else tf.image.grayscale_to_rgb(images)
        scaled = networks.preprocess(self.config.network)((colour + 1.0) * 127.5)
        return self.head(self.network(scaled, training=network_training), training=training)

    def augmented(self, images: tf.Tensor) -> tf.Tensor:
        config, count = self.config, tf.shape(images)[0]

        def within(limit: float, stream: int):
            return limit * self.uniform([count], stream=stream)

        angle, shear, zoom = (
            within(math.radians(config.rotation), 1),
            within(math.radians(config.shear), 2),
            1.0 + within(config.zoom, 3),
        )
        right, down = within(config.shift * config.image_size, 4), within(config.shift * config.image_size, 5)
        mirror = tf.where(self.uniform([count], stream=6) < 0.0, -1.0, 1.0) if config.flip else tf.ones([count])
        return transformed(images, angle, shear, zoom, right, down, mirror)

    def train_step(self, batches):
        (batch,) = batches
        images, label = self.augmented(batch["image"]), batch["label"]
        weights = tf.gather(tf.constant(self.config.class_weights or (1.0,) * self.config.classes), label)

        def step(name: str, network_training: bool):
            with tf.GradientTape() as tape:
                logits = self.logits(images, True, network_training)
                loss = tf.reduce_mean(weights * tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))
            self.minimize(name, tape, loss)
            return loss, tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), label), tf.float32))

        def late():
            return step("all", self.config.batch_norm == "trained")

        # Large networks take minutes to trace: no phase that has no steps.
        loss, accuracy = (
            tf.cond(self.step < self.config.head_steps, lambda: step("head", False), late)
            if self.config.head_steps
            else late()
        )
        return {"loss": loss, "accuracy": accuracy}

    def classify(self, images: tf.Tensor) -> tf.Tensor:
        """Class probabilities [n, classes]."""
        return tf.nn.softmax(self.logits(images))

    def held_out(self, batch):
        logits = self.logits(batch["image"])
        right = tf.equal(tf.argmax(logits, 1, tf.int32), batch["label"])
        return {
            "accuracy": tf.cast(right, tf.float32),
            "loss": tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], logits),
        }


def transformed(images, angle, shear, zoom, right, down, mirror):
    """Images [n, side, side, c] under one affine map each, about the middle; bilinear.

    They are mirrored, sheared, scaled, turned clockwise (radians), moved right and down (pixels).
    """
    middle = (tf.cast(tf.shape(images)[1], tf.float32) - 1.0) / 2.0
    # From a place in the output to the place in the input that it is taken from.
    a, b = tf.cos(angle) / zoom * mirror, (tf.sin(angle) + tf.tan(shear) * tf.cos(angle)) / zoom * mirror
    c, d = -tf.sin(angle) / zoom, (tf.cos(angle) - tf.tan(shear) * tf.sin(angle)) / zoom
    x, y = middle + right, middle + down
    rows = tf.stack([a, b, middle - a * x - b * y, c, d, middle - c * x - d * y, tf.zeros_like(a), tf.zeros_like(a)], 1)
    size = tf.shape(images)[1:3]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=rows, output_shape=size, fill_value=0.0, interpolation="BILINEAR", fill_mode="NEAREST"
    )
