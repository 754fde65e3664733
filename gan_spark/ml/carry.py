"""Keras networks that are carried to Spark's workers.

They are looked at once on the driver, broadcast once, and built once in each Python worker.
"""

import dataclasses
import functools
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import lake, networks, process
from ..config import UserError
from ..data import images

BATCH = 32  # rows a forward pass, at most
# Side of the images that each was trained on.
SIZES = {
    "EfficientNetB0": 224,
    "InceptionV3": 299,
    "MobileNetV2": 224,
    "ResNet50": 224,
    "VGG16": 224,
    "VGG19": 224,
    "Xception": 299,
}


@dataclasses.dataclass(frozen=True)
class Carried:
    """What workers make of a broadcast value; itself small enough for a task's closure."""

    key: str
    broadcast: Any = dataclasses.field(compare=False)
    make: Callable[[Any], Any] = dataclasses.field(compare=False)


def carry(spark, value: Any, make: Callable[[Any], Any]) -> Carried:
    return Carried(uuid.uuid4().hex, spark.sparkContext.broadcast(value), make)


def built(carried: Carried) -> Any:
    """On a worker: the same object for every task of this process, while `process.cached` keeps it."""

    def make():
        process.limit_task_threads()
        return carried.make(carried.broadcast.value)

    return process.cached(("carried", carried.key), make)


# --- networks of tf.keras.applications -------------------------------------------------


@dataclasses.dataclass(frozen=True)
class KerasNetwork:
    """A network by name. `output`: "features" (pooled), "predictions" (class probabilities) or the name of a layer."""

    name: str
    output: str = "features"
    weights: str = "imagenet"  # or "" for random ones of `seed`, or the URL of a weights file
    seed: int = 0

    def whole(self, weights: str):
        import tensorflow as tf

        if self.name not in SIZES:
            raise UserError(f"modelName = {self.name!r}: expected one of {', '.join(SIZES)}")
        tf.keras.utils.set_random_seed(self.seed)
        size = SIZES[self.name]
        top = (
            {"include_top": True}
            if self.output == "predictions"
            else {"include_top": False, "pooling": "avg", "input_shape": (size, size, 3)}
        )
        return networks.load(self.name, weights, **top)

    def cut(self, network):
        """`network` up to the output that is asked for."""
        import tensorflow as tf

        if self.output in ("features", "predictions"):
            return network
        layer_names = [layer.name for layer in network.layers]
        if self.output not in layer_names:
            raise UserError(
                f"layer = {self.output!r}: no such layer in {self.name} (there are: {', '.join(layer_names)})"
            )
        return tf.keras.Model(network.input, network.get_layer(self.output).output)


def carry_network(spark, network: KerasNetwork) -> Carried:
    """On the driver. `UserError` where the name, the weights or the layer is wrong."""
    stamp = ""
    if network.weights not in ("imagenet", "") and lake.exists(lake.to_url(network.weights)):
        fs, path = lake.filesystem(lake.to_url(network.weights))
        stamp = fs.ukey(path)  # another file of the same name is carried anew
    return process.cached(("weights", spark, network, stamp), lambda: _carry_network(spark, network))


def _carry_network(spark, network: KerasNetwork) -> Carried:
    whole = network.whole(network.weights)
    network.cut(whole)
    return carry(spark, whole.get_weights(), functools.partial(_apply, network))


def _apply(network: KerasNetwork, weights: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 [n, side, side, 3] -> the output, flattened, float32 [n, d]."""
    import tensorflow as tf

    whole, size = network.whole(""), SIZES[network.name]
    whole.set_weights(weights)
    cut, scale = network.cut(whole), networks.preprocess(network.name)

    @tf.function(input_signature=[tf.TensorSpec([None, size, size, 3], tf.uint8)])
    def apply(pixels):
        return tf.reshape(cut(scale(tf.cast(pixels, tf.float32)), training=False), [tf.shape(pixels)[0], -1])

    return lambda pixels: apply(tf.constant(pixels)).numpy()


def fitted(name: str, pixels: np.ndarray) -> np.ndarray:
    """uint8 [h, w, 1 or 3] to uint8 [side, side, 3], resized as `tf.keras.utils.load_img(...,
    interpolation="bilinear")` does.
    """
    return images.resize(images.convert(pixels, 3), SIZES[name], SIZES[name], "stretch", images.BILINEAR)


# --- models in files -------------------------------------------------------------------


def model_file(spark, data: bytes, url: str) -> tuple[Carried, tuple]:
    """On the driver: (the model in a file's bytes, the shape of one of its inputs). `UserError` where they are no Keras
    model, or carry code.
    """
    model = networks.from_bytes(data, url)
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise UserError(
            f"{url}: expected a model of one input and one output, found {len(model.inputs)} and {len(model.outputs)}"
        )
    return carry(spark, (data, url), _apply_file), tuple(model.input_shape[1:])


def _apply_file(value: tuple[bytes, str]) -> Callable[[np.ndarray], np.ndarray]:
    """float32 [n, ...] -> float32 [n, d]."""
    import tensorflow as tf

    model = networks.from_bytes(*value)

    @tf.function(reduce_retracing=True)
    def apply(batch):
        return tf.reshape(model(batch, training=False), [tf.shape(batch)[0], -1])

    return lambda batch: apply(tf.constant(batch, tf.float32)).numpy()
