"""Columns of images, as pixels: encoded bytes, a dataset's raw column, or Spark's image struct."""

import collections
import io
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from pyspark.sql import functions as F

from ..config import UserError
from ..data import images
from . import carry

log = logging.getLogger(__name__)
_NPY = b"\x93NUMPY"
_STRUCT = {"origin", "height", "width", "nChannels", "mode", "data"}
_MODES = {0: 1, 16: 3, 24: 4}  # OpenCV's 8-bit types to their channels


def check(frame, column: str, kinds: Sequence[str] = ("image",)) -> None:
    """`UserError` where `column` of `frame` is not there, or is of another kind: "image", "string" or "numbers"."""
    types = dict(frame.dtypes)
    if column not in types:
        raise UserError(f"inputCol = {column!r}: not a column (columns: {', '.join(types)})")
    column_type = types[column]
    struct = column_type.startswith("struct<") and {field.name for field in frame.schema[column].dataType} >= _STRUCT
    numbers = ("vector", "array<double>", "array<float>", "array<int>", "array<bigint>")
    fits = {
        "image": column_type == "binary" or struct,
        "string": column_type == "string",
        "numbers": column_type in numbers,
    }
    names = {
        "image": "binary (an encoded image, or the image column of a dataset) or Spark's image struct",
        "string": "string (a URI)",
        "numbers": "a vector or an array of numbers",
    }
    if not any(fits[kind] for kind in kinds):
        expected = " or ".join(names[kind] for kind in kinds)
        raise UserError(f"inputCol = {column!r}: expected {expected}; found {column_type}")


def values(column: pd.Series | pd.DataFrame) -> Iterator:
    """The column's values in order; rows of an image struct as dicts, None for null."""
    if isinstance(column, pd.Series):
        yield from column
    else:
        for row in column.to_dict("records"):
            yield None if row["data"] is None else row


def pixels(value: bytes | dict) -> np.ndarray:
    """One value to uint8 [h, w, 1 or 3], RGB, in the image's own size. Raises `images.BadImage`."""
    if isinstance(value, dict):
        return _of_struct(value)
    value = bytes(value)
    if value.startswith(_NPY):
        return _of_npy(value)
    return images.read(value, 3)


def _of_npy(value: bytes) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(value), allow_pickle=False)
    except Exception as error:  # NumPy raises many types on hostile bytes.
        raise images.BadImage(f"not the image column of a dataset: {error}") from None
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise images.BadImage(f"array of {array.dtype} {array.shape}; expected uint8 (height, width, 1 or 3)")
    return array


def _of_struct(row: dict) -> np.ndarray:
    """Spark keeps channels in the order BGR or BGRA, row by row."""
    channels = _MODES.get(int(row["mode"]))
    if channels is None:
        raise images.BadImage(
            f"image struct of mode {row['mode']}; expected one of {', '.join(map(str, _MODES))} (8 bits a channel)"
        )
    height, width = int(row["height"]), int(row["width"])
    data = np.frombuffer(bytes(row["data"]), np.uint8)
    if height < 1 or width < 1 or data.size != height * width * channels:
        raise images.BadImage(f"image struct of {height} x {width} x {channels} with {data.size} bytes")
    shaped = data.reshape(height, width, channels)
    return shaped if channels == 1 else np.ascontiguousarray(shaped[:, :, 2::-1])


def answers(
    inputs: Sequence, prepare: Callable, call: Callable[[np.ndarray], np.ndarray], batch_size: int
) -> tuple[list, list[str]]:
    """`call` on batches of `prepare(value)` of one shape: (an answer a value, None for null and bad ones; the reasons
    of the bad ones).
    """
    outputs, reasons, places, batch = [None] * len(inputs), [], [], []

    def flush() -> None:
        for place, answer in zip(places, call(np.stack(batch)), strict=True):
            outputs[place] = answer
        places.clear(), batch.clear()

    for place, value in enumerate(inputs):
        if value is None:
            continue
        try:
            prepared = prepare(value)
        except images.BadImage as error:
            reasons.append(str(error))
            continue
        if batch and (len(batch) == batch_size or prepared.shape != batch[0].shape):
            flush()
        batch.append(prepared)
        places.append(place)
    if batch:
        flush()
    return outputs, reasons


def udf(prepare: Callable, carried: carry.Carried, counter):
    """Column to array<double>: the carried function of `prepare(value)`; null where the value is null or `BadImage`,
    which `counter` counts.
    """

    @F.pandas_udf("array<double>")
    def apply(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        call, seen, bad = carry.built(carried), 0, collections.Counter()
        for batch in batches:
            inputs = list(values(batch))
            outputs, reasons = answers(inputs, prepare, call, carry.BATCH)
            seen += len(inputs)
            bad.update(reasons)
            arrays = [None if output is None else np.asarray(output, np.float64) for output in outputs]
            yield pd.Series(arrays, dtype=object)
        if bad:
            counter.add(bad.total())
            log.warning(
                "%d of %d images cannot be used and are null: %s",
                bad.total(),
                seen,
                "; ".join(f"{count} x {reason}" for reason, count in bad.most_common(3)),
            )

    return apply


class CountsRejected:
    """A stage that says how many images, or other inputs, it could not use."""

    @property
    def rejected(self) -> int:
        """Rows whose output is null as their input cannot be used, in all jobs so far (a task that ran twice counts
        twice). Executors' logs say why.
        """
        return sum(counter.value for counter in self.__dict__.get("_counters", []))

    def _counter(self, spark):
        counter = spark.sparkContext.accumulator(0)
        self.__dict__.setdefault("_counters", []).append(counter)
        return counter
