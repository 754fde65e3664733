"""A Keras network of ImageNet's classes, served by its name and a file of weights."""

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from .. import lake, networks
from ..config import UserError
from .functions import Answers
from .limits import Limits
from .metrics import Metrics
from .versions import Version


class _Classifier(tf.Module):
    def __init__(self, name: str, weights: str):
        super().__init__()
        self.network = networks.load(name, weights)
        self._preprocess = networks.preprocess(name)

    def classify(self, images: tf.Tensor) -> tf.Tensor:
        """Class probabilities [n, classes] of images in [-1, 1]."""
        return self.network(self._preprocess((images + 1.0) * 127.5), training=False)


class Single:
    """The one version of a network, in place of a registry's."""

    def __init__(self, network: str, weights: str, class_index: str, limits: Limits, threads: int, metrics: Metrics):
        self.name = network
        self._weights, self._class_index = weights, class_index
        self._settings = (limits, threads, metrics)
        self.current: Version | None = None
        self.challenger, self.share = None, 0.0

    def load_first(self) -> None:
        names = class_names(self._class_index)
        model = _Classifier(self.name, self._weights)
        _, height, width, channels = model.network.input_shape
        if len(names) != model.network.output_shape[-1]:
            raise UserError(
                f"--class-index names {len(names)} classes; {self.name} has {model.network.output_shape[-1]}"
            )
        labels, descriptions = zip(*names, strict=True)
        answered = Answers(model, (), (), labels, (height, width, channels), "stretch", 0, descriptions)
        self.current = Version(1, self.name, 0, answered, *self._settings)

    @contextlib.contextmanager
    def lease(self, key: str = "", version: str = "") -> Iterator[Version]:
        with self.current.lease() as current:
            yield current

    def waiting(self) -> int:
        return self.current.waiting()

    async def watch(self) -> None:
        """There is nothing to watch."""


def class_names(path: str) -> list[tuple[str, str]]:
    """(class, description) by index, of a JSON file {"0": [class, description], ...}; of Keras's own where none is
    named, which it fetches.
    """
    if not path:
        from tensorflow.keras.applications.imagenet_utils import decode_predictions

        try:
            answers = decode_predictions(np.eye(1000, dtype=np.float32), top=1)
        except Exception as error:  # Keras raises a bare Exception where it cannot fetch.
            raise UserError(
                f"Keras's file of class names cannot be fetched: {error}; name one by --class-index"
            ) from error
        return [(name, description) for ((name, description, _),) in answers]
    try:
        table = lake.read_json(lake.to_url(path))
        return [(str(table[str(place)][0]), str(table[str(place)][1])) for place in range(len(table))]
    except FileNotFoundError:
        raise UserError(f"--class-index {path}: no such file") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f'--class-index {path}: expected JSON of the form {{"0": [class, description], ...}}: {error!r}'
        ) from None
