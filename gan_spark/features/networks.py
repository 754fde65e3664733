"""Feature networks: what a quality measure looks at images through."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import lake, models, process
from ..config import Config, Evaluate, UserError
from ..data import images, schema
from ..runs import loading
from .classifier import trained_lenet


@dataclasses.dataclass(frozen=True)
class Network:
    """A feature network by reference, small enough to travel in a task's closure; loaded once a Python worker."""

    kind: str  # "lenet" or "InceptionV3"
    run: str = ""  # lenet: URL of its run
    step: int = 0
    record: dict | None = None
    weights: str = ""  # InceptionV3: "imagenet" or a file's URL
    arrays: Any = None  # InceptionV3: a broadcast of its weights, so that only the driver fetches them
    hash: str = ""  # of its weights: figures of two networks are no more alike for being called the same

    @property
    def dimensions(self) -> int:
        """Features of an image."""
        return self.record["config"]["model"]["features"] if self.record else 2048

    @property
    def name(self) -> str:
        return (
            f"lenet ({self.run.rsplit('/', 1)[-1]}, step {self.step})"
            if self.kind == "lenet"
            else f"InceptionV3 ({self.weights})"
        )


def network(spark, config: Config) -> Network:
    """The network that `config.evaluate` names; a `lenet` is trained first where the dataset has none yet."""
    manifest = schema.read_manifest(lake.dataset_url(config))
    check(config, manifest)
    if config.evaluate.features == "lenet":
        run = trained_lenet(spark, config, manifest)
        record = run.record()
        name = record["config"]["model"]["name"]
        if name != "lenet":  # Tasks import what a record names, once the driver has looked at it.
            raise UserError(f"run {run.url}: expected the run of a 'lenet', found {name!r}: remove the run")
        step = config.evaluate.classifier_steps
        return Network("lenet", run.url, step, record, hash=run.checkpoint_hash(step))
    weights = config.evaluate.weights if config.evaluate.weights == "imagenet" else lake.to_url(config.evaluate.weights)
    arrays = _inception(weights).get_weights()
    digest = hashlib.sha256(b"".join(hashlib.sha256(array.tobytes()).digest() for array in arrays)).hexdigest()[:16]
    return Network("InceptionV3", weights=weights, arrays=spark.sparkContext.broadcast(arrays), hash=digest)


def check(config: Config, manifest: schema.Manifest) -> None:
    """`UserError` where the network that `config.evaluate` names cannot be had for the dataset."""
    options, dataset = config.evaluate, f"dataset {lake.dataset_url(config)}"
    check_settings(options, manifest.height, manifest.width, f"{dataset} holds")
    if options.features == "lenet" and len(manifest.classes) < _limits("classes")["low"]:
        raise UserError(
            f"evaluate.features = 'lenet': {dataset} has {'one class' if manifest.classes else 'no labels'} to train"
            " it on; use 'InceptionV3'"
        )


def check_settings(options: Evaluate, height: int, width: int, holder: str) -> None:
    """`UserError` where the network that the options name cannot be had for images of that size; `holder`, with its
    verb, has them.
    """
    if options.features == "lenet":
        limits = _limits("image_size")
        if height != width or not limits["low"] <= height <= limits["high"]:
            raise UserError(
                f"evaluate.features = 'lenet': expected square images of {limits['low']} to {limits['high']} pixels a"
                f" side, {holder} {height} x {width}"
            )
    elif options.weights != "imagenet" and not lake.exists(lake.to_url(options.weights)):
        raise UserError(
            f"evaluate.weights = {options.weights!r}: no such file; expected 'imagenet' or a Keras weights file (.h5)"
            " of InceptionV3"
        )


def _limits(name: str) -> Mapping[str, Any]:
    """Limits of an option of the lenet's config."""
    return next(field.metadata for field in dataclasses.fields(models.find("lenet").Config) if field.name == name)


def function(network: Network):
    """uint8 [n, height, width, channels] -> (features [n, d], probabilities [n, classes]), both float64."""
    created = (network.record or {}).get("created")
    key = ("features", network.kind, network.run, network.step, network.weights, created)
    return process.cached(key, lambda: _build(network))


def _build(network: Network):
    import tensorflow as tf

    if network.kind == "lenet":
        model = loading.load_model(network.run, network.step, network.record)

        @tf.function(reduce_retracing=True)
        def classify(pixels):
            features, logits = model.network(images.to_unit(pixels), training=False)
            return features, tf.nn.softmax(logits)

        return _batched(classify)
    model = _inception("")
    model.set_weights(network.arrays.value)

    @tf.function(reduce_retracing=True)
    def resize_and_classify(pixels):
        resized = tf.image.resize(tf.cast(pixels, tf.float32), [299, 299])
        if resized.shape[-1] == 1:
            resized = tf.image.grayscale_to_rgb(resized)
        return model(resized / 127.5 - 1.0, training=False)

    return _batched(resize_and_classify)


def _inception(weights: str):
    """Keras's InceptionV3 with its pooled features, 2,048 of them, and its class probabilities.

    Its weights are not those of the original FID code (arXiv 1706.08500), so figures compare with
    each other and not with published ones.
    """
    import tensorflow as tf

    from ..networks import load

    model = load("InceptionV3", weights)
    return tf.keras.Model(model.input, [model.get_layer("avg_pool").output, model.output])


def _batched(call):
    def apply(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features, probabilities = call(pixels)
        return features.numpy().astype(np.float64), probabilities.numpy().astype(np.float64)

    return apply
