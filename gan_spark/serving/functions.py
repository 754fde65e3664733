"""What a run's model answers, as functions of arrays: images of seeds, classes of images.

Both are of a fixed number of rows, since the number of rows can change the last bit of a sum. `exact_sizes` finds the
numbers of rows that change nothing.
"""

import dataclasses
import functools
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
_PIXELS = 2**22  # in a forward pass at most, which memory holds
_TRIED = 2**18  # pixels of the images that numbers of rows are tried on, where a single one is the measure


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
    descriptions: tuple[str, ...] = ()  # of the classes, where these are not what a person reads

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
        return min(BATCH, _power_of_2(_PIXELS // (self.shape[0] * self.shape[1])))

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

    def columns(self) -> tuple[str, ...]:
        """Names of the columns that `generate` is called with."""
        return ("seed", *(("image",) if self.parts else self.takes))

    def calls(self) -> dict[str, "Call"]:
        """What the model can be asked: `generate`, or one for each domain it translates from, and `classify`."""
        calls = {}
        if self.generates:
            for part in self.parts or ("",):
                function = functools.partial(self.generate, part=part)
                calls[f"generate_{part}" if part else "generate"] = Call(
                    function, self.columns(), self.batch, self.batch
                )
        if self.classifies:
            pixels = self.shape[0] * self.shape[1]
            calls["classify"] = Call(self.classify, ("image",), 1, min(32, _power_of_2(_TRIED // pixels)))
        return calls

    def noise(self, rows: int, columns: Iterable[str]) -> dict[str, tf.Tensor]:
        """Rows of these columns that are all different, to try a function on."""
        random = np.random.default_rng(0)
        kinds = {
            "seed": lambda: tf.constant(random.integers(0, 2**31, rows), tf.int64),
            "label": lambda: tf.constant(np.arange(rows) % max(len(self.classes), 1), tf.int32),
            "caption": lambda: tf.constant([f"a picture, number {number}" for number in range(rows)]),
            "embedding": lambda: tf.constant(random.normal(size=(rows, self.embedding)), tf.float32),
            "image": lambda: tf.constant(random.integers(0, 256, (rows, *self.shape)), tf.uint8),
        }
        return {column: kinds[column]() for column in columns}


@dataclasses.dataclass(frozen=True)
class Call:
    """One thing that a model can be asked, as a function of rows: a tensor by column."""

    function: Callable[[dict[str, tf.Tensor]], tf.Tensor]
    columns: tuple[str, ...]
    reference: int  # rows at once, by which it is what it is
    tried: int  # rows at once, to which others are tried


def answers(run: Run, step: int) -> Answers:
    """What the model of a run answers at a checkpoint; `UserError` where it neither makes images nor classifies."""
    record = run.record()
    model = loading.build(model_config(run.url, record), uses=record["config"]["uses"])
    loading.restore(model, run, step)
    return of_model(model, record)


def model_config(url: str, record: dict):
    """The model config of the run at `url`; `UserError` where its model neither makes images nor classifies them."""
    config = loading.model_config(record["config"]["model"])
    model_class = models.find(config.name)
    if not issubclass(model_class, models.GenerativeModel) and not hasattr(model_class, "classify"):
        raise UserError(f"run {url}: model {config.name!r} neither makes images nor classifies them")
    return config


def of_model(model: models.TrainedModel, record: dict) -> Answers:
    """What a loaded model answers, of the run with this record."""
    config = loading.model_config(record["config"]["model"])
    takes = type(model).takes(config) if isinstance(model, models.GenerativeModel) else ()
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


def exact(answers: Answers) -> dict[str, dict[int, Callable]]:
    """For each of the model's `calls`, the numbers of rows that are exact, smallest first, with the function of each.

    Images are what they are in a batch of `Answers.batch`, classes what they are of a single image.
    """
    return {
        name: exact_sizes(call.function, answers.noise(call.tried, call.columns), call.reference)
        for name, call in answers.calls().items()
    }


def exact_sizes(
    call: Callable[[dict[str, tf.Tensor]], tf.Tensor], rows: dict[str, tf.Tensor], reference: int
) -> dict[int, Callable]:
    """Numbers of rows by which `call` gives what it gives of `reference` rows at once, to the last bit of its floats,
    with `call` compiled for each.

    It is called on all of `rows`, different ones, by each number up to theirs. Which way TensorFlow adds up follows
    from shapes and not from values, so that equal sums of many numbers tell that it is the same one.
    """
    count = len(next(iter(rows.values())))
    sizes = sorted({reference, *(size for size in _SIZES if size <= count)})
    compiled = {size: _compiled(call, rows, size) for size in sizes}
    outputs = {size: _by(function, rows, size, count) for size, function in compiled.items()}
    return {size: compiled[size] for size in sizes if np.array_equal(outputs[size], outputs[reference])}


def with_parts(answers: Answers, found: dict[str, dict[int, Callable]]) -> dict[str, dict[int, Callable]]:
    """What `exact` found, and larger numbers of rows by which the graph calls the model on as many at a time as are
    exact: one call from Python costs as much as a small network.
    """
    calls = answers.calls()
    return {
        name: functions
        if max(functions) >= calls[name].tried
        else functions | _larger(calls[name], answers.noise(calls[name].tried, calls[name].columns), functions)
        for name, functions in found.items()
    }


def _larger(call: Call, rows: dict[str, tf.Tensor], functions: dict[int, Callable]) -> dict[int, Callable]:
    """Functions by numbers of rows beyond those of `functions`, the largest of which is called on each part."""
    part = max(functions)
    expected = _by(functions[part], rows, part, call.tried)
    larger = {}
    for size in (size for size in _SIZES if part < size <= call.tried):
        function = _compiled(functools.partial(_in_parts, call.function, part), rows, size)
        if np.array_equal(_by(function, rows, size, call.tried), expected):
            larger[size] = function
    return larger


def _in_parts(call: Callable, part: int, columns: dict[str, tf.Tensor]) -> tf.Tensor:
    """What `call` gives of `part` rows at a time, in one graph."""
    size = next(iter(columns.values())).shape[0]
    parts = {name: tf.reshape(value, [size // part, part, *value.shape[1:]]) for name, value in columns.items()}
    outputs = tf.map_fn(call, parts, fn_output_signature=tf.float32)
    return tf.reshape(outputs, [size, *outputs.shape[2:]])


def largest_exact(answers: Answers, name: str) -> tuple[int, Callable]:
    """The largest number of rows by which the call `name` is exact, with its function: what batch jobs compute by."""
    call = answers.calls()[name]
    rows = answers.noise(call.tried, call.columns)
    reference = _compiled(call.function, rows, call.reference)
    expected = None
    for size in sorted((size for size in _SIZES if call.reference < size <= call.tried), reverse=True):
        if expected is None:
            expected = _by(reference, rows, call.reference, call.tried)
        function = _compiled(call.function, rows, size)
        if np.array_equal(_by(function, rows, size, call.tried), expected):
            return size, function
    return call.reference, reference


def _compiled(call, rows: dict[str, tf.Tensor], size: int) -> Callable:
    specs = {name: tf.TensorSpec([size, *value.shape[1:]], value.dtype) for name, value in rows.items()}
    return tf.function(lambda columns: call(columns)).get_concrete_function(specs)


def _by(function: Callable, rows: dict[str, tf.Tensor], size: int, count: int) -> np.ndarray:
    parts = ({name: value[start : start + size] for name, value in rows.items()} for start in range(0, count, size))
    return np.concatenate([function(part).numpy() for part in parts])


def _power_of_2(number: int) -> int:
    """The largest power of 2 that is not over `number`, at least 1."""
    return 1 << (max(number, 1).bit_length() - 1)
