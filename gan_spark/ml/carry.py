"""Keras networks on their way to Spark's workers: looked at once on the driver, broadcast once, built once in each
Python worker.
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


@functools.lru_cache(maxsize=4)
def made(carried: Carried) -> Any:
    """On a worker: the same object for every task of this process."""
    process.set_threads(1)
    return carried.make(carried.broadcast.value)


# --- networks of tf.keras.applications -------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Network:
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
        """`network` up to the output that is wanted."""
        import tensorflow as tf

        if self.output in ("features", "predictions"):
            return network
        known = [layer.name for layer in network.layers]
        if self.output not in known:
            raise UserError(f"layer = {self.output!r}: no such layer in {self.name} (there are: {', '.join(known)})")
        return tf.keras.Model(network.input, network.get_layer(self.output).output)


def network(spark, wanted: Network) -> Carried:
    """On the driver. `UserError` where the name, the weights or the layer is wrong."""
    stamp = ""
    if wanted.weights not in ("imagenet", "") and lake.exists(lake.to_url(wanted.weights)):
        fs, path = lake.filesystem(lake.to_url(wanted.weights))
        stamp = fs.ukey(path)  # another file of the same name is carried anew
    return _network(spark, wanted, stamp)


@functools.lru_cache(maxsize=4)
def _network(spark, wanted: Network, stamp: str) -> Carried:
    built = wanted.whole(wanted.weights)
    wanted.cut(built)
    return carry(spark, built.get_weights(), functools.partial(_apply, wanted))


def _apply(wanted: Network, weights: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 [n, side, side, 3] -> the output, flattened, float32 [n, d]."""
    import tensorflow as tf

    whole = wanted.whole("")
    whole.set_weights(weights)
    cut, scale = wanted.cut(whole), networks.preprocess(wanted.name)

    @tf.function(input_signature=[tf.TensorSpec([None, SIZES[wanted.name], SIZES[wanted.name], 3], tf.uint8)])
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
