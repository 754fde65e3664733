"""What a run's model answers, as functions of arrays: images of seeds, classes of images.

Both are of a fixed number of rows, since the number of rows can change the last bit of a sum. `exact_sizes` finds the
numbers of rows that change nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from .. import models
from ..config import Generate, UserError
from ..data import images
from ..runs import loading
from ..runs.store import Run

BATCH = Generate().batch_size  # rows of a forward pass of the batch job, whose images are to be had here too
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_PIXELS = 4 * 2**20  # in a forward pass at most, which memory holds


@dataclasses.dataclass(frozen=True)
class Answers:
    """A model with what it takes, and the description of its images."""

    model: models.TrainedModel
    takes: tuple[str, ...]  # by `generate`, beside seeds
    parts: tuple[str, ...]  # of which `takes` are, where the model translates between domains
    classes: tuple[str, ...]
    shape: tuple[int, int, int]  # height, width, channels of the images that it learnt from
    fit: str  # how images of another aspect ratio were fitted
    embedding: int  # numbers of an embedding that it takes; 0 for none

    @property
    def generates(self) -> bool:
        return isinstance(self.model, models.GenerativeModel)

    @property
    def classifies(self) -> bool:
        return hasattr(self.model, "classify")

    @property
    def batch(self) -> int:
        """Rows of a forward pass that makes images: as many as the batch job's, or of large images what memory holds.

        A power of 2.
        """
        fitting = max(1, _PIXELS // (self.shape[0] * self.shape[1]))
        return min(BATCH, 1 << (fitting.bit_length() - 1))

    def generate(self, columns: dict[str, tf.Tensor], part: str = "") -> tf.Tensor:
        """Images in [-1, 1], one a row: `columns` are `seed` and what the model takes; `image` is uint8."""
        inputs = {name: value for name, value in columns.items() if name != "seed"}
        if "image" in inputs:
            inputs[part or "image"] = images.to_unit(inputs.pop("image"))
        if "embedding" in inputs:
            inputs["embedding"] = inputs["embedding"][:, None]  # one phrasing
        return self.model.generate(inputs, columns["seed"])

    def classify(self, columns: dict[str, tf.Tensor]) -> tf.Tensor:
        """Class probabilities [n, classes] of `image`, uint8."""
        return self.model.classify(images.to_unit(columns["image"]))

    def noise(self, rows: int, kinds: Iterable[str]) -> dict[str, tf.Tensor]:
        """Rows of these columns that are all different, to try a function on."""
        random = np.random.default_rng(0)
        columns = {
            "seed": lambda: tf.constant(random.integers(0, 2**31, rows), tf.int64),
            "label": lambda: tf.constant(np.arange(rows) % max(len(self.classes), 1), tf.int32),
            "caption": lambda: tf.constant([f"a picture, number {number}" for number in range(rows)]),
            "embedding": lambda: tf.constant(random.normal(size=(rows, self.embedding)), tf.float32),
            "image": lambda: tf.constant(random.integers(0, 256, (rows, *self.shape)), tf.uint8),
        }
        return {kind: columns[kind]() for kind in kinds}

    def columns(self) -> tuple[str, ...]:
        """Names of the columns that `generate` is called with."""
        return ("seed", *(("image",) if self.parts else self.takes))


def answers(run: Run, step: int) -> Answers:
    """What the model of a run answers at a checkpoint; `UserError` where it neither makes images nor classifies."""
    record = run.record()
    config = loading.model_config(record["config"]["model"])
    model_class = models.find(config.name)
    is_generative = issubclass(model_class, models.GenerativeModel)
    if not is_generative and not hasattr(model_class, "classify"):
        raise UserError(f"run {run.url}: model {config.name!r} neither makes images nor classifies them")
    model = loading.build(config, uses=record["config"]["uses"])
    loading.restore(model, run, step)
    takes = model_class.takes(config) if is_generative else ()
    dataset = record["dataset"]
    return Answers(
        model,
        takes,
        takes if "a" in takes else (),
        tuple(dataset.get("classes", ())),
        (config.image_size, config.image_size, config.channels),
        dataset.get("fit", "crop"),
        getattr(config, "embedding", 0) if "embedding" in takes else 0,
    )


def exact_sizes(
    call: Callable[[dict[str, tf.Tensor]], tf.Tensor], rows: dict[str, tf.Tensor], reference: int
) -> list[int]:
    """Numbers of rows by which `call` gives what it gives of `reference` rows at once, to the last bit of its floats.

    It is called on all of `rows`, different ones, by each number up to theirs. Which way TensorFlow adds up follows
    from shapes and not from values, so that equal sums of many numbers tell that it is the same one.
    """
    count = len(next(iter(rows.values())))
    expected = _by(call, rows, reference, count)
    sizes = [size for size in _SIZES if size <= count and size != reference]
    return sorted([reference, *(size for size in sizes if np.array_equal(_by(call, rows, size, count), expected))])


def _by(call, rows: dict[str, tf.Tensor], size: int, count: int) -> np.ndarray:
    compiled = tf.function(call)
    outputs = [
        compiled({name: value[start : start + size] for name, value in rows.items()}).numpy()
        for start in range(0, count, size)
    ]
    return np.concatenate(outputs)
