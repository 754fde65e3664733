"""Columns of images, as pixels: encoded bytes, a dataset's raw column, or Spark's image struct."""

import collections
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasHandleInvalid
from pyspark.sql import functions as F

from ..config import UserError
from ..data import batches, images
from . import carry

log = logging.getLogger(__name__)
_NPY = b"\x93NUMPY"
_STRUCT = {"origin", "height", "width", "nChannels", "mode", "data"}
_PREPARED_BYTES = 64 * 2**20  # what waits for a forward pass, about
INVALID = ("keep", "skip", "error")
NULL = "it is null"


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
        return images.from_struct(value)
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


def answers(
    inputs: Iterable, prepare: Callable, call: Callable[[np.ndarray], np.ndarray], batch_size: int
) -> Iterator[tuple[list, list[str | None]]]:
    """`call` on batches of `prepare(value)` of one shape, part by part, in the order of the values: (an answer a value,
    None for null and bad ones; why each was not used, None where it was).
    """
    outputs, reasons, places, batch, size = [], [], [], [], 0
    for value in inputs:
        prepared, reason = _prepared(prepare, value)
        is_full = len(batch) == batch_size or size >= _PREPARED_BYTES
        if batch and prepared is not None and (is_full or prepared.shape != batch[0].shape):
            yield _called(call, outputs, places, batch), reasons
            outputs, reasons, places, batch, size = [], [], [], [], 0
        if prepared is not None:
            places.append(len(outputs))
            batch.append(prepared)
            size += prepared.nbytes
        outputs.append(None)
        reasons.append(reason)
    if outputs:
        yield _called(call, outputs, places, batch), reasons


def _prepared(prepare: Callable, value) -> tuple[np.ndarray | None, str | None]:
    """(`prepare(value)`, None), or (None, why there is none)."""
    if value is None:
        return None, NULL
    try:
        return prepare(value), None
    except images.BadImage as error:
        return None, str(error)


def _called(call: Callable, outputs: list, places: list[int], batch: list[np.ndarray]) -> list:
    """`outputs` with the answers to the batch in their places."""
    if batch:
        for place, answer in zip(places, call(np.stack(batch)), strict=True):
            outputs[place] = np.asarray(answer, np.float64)
    return outputs


def udf(prepare: Callable, carried: carry.Carried, counter, name: str = "", invalid: str = "keep"):
    """Column to array<double>: the carried function of `prepare(value)`; null where the value is null or `BadImage`,
    which `counter` counts. With `invalid` "error", such a value of the column `name` ends the job.
    """

    @F.pandas_udf("array<double>")
    def apply(columns: Iterator[pd.Series]) -> Iterator[pd.Series]:
        call, seen, bad = carry.built(carried), 0, collections.Counter()
        # Spark hands over few rows at once; the network is given more of them.
        inputs = (value for column in columns for value in values(column))
        for outputs, reasons in answers(inputs, prepare, call, carry.BATCH):
            unused = [reason for reason in reasons if reason is not None]
            if unused and invalid == "error":
                raise UserError(
                    f"inputCol = {name!r}: expected values that can be used (handleInvalid = 'error'), found one that"
                    f" cannot: {unused[0]}; handleInvalid = 'skip' leaves its row out, 'keep' gives null"
                )
            seen += len(outputs)
            bad.update(reason for reason in unused if reason != NULL)
            yield pd.Series(outputs, dtype=object)
        if bad:
            counter.add(bad.total())
            log.warning(
                "%d of %d images cannot be used and %s: %s",
                bad.total(),
                seen,
                "are left out" if invalid == "skip" else "are null",
                "; ".join(f"{count} x {reason}" for reason, count in bad.most_common(3)),
            )

    return apply


class HandlesInvalid(HasHandleInvalid):
    """A stage that says what becomes of the rows whose input it cannot use, and how many there were."""

    handleInvalid = Param(
        Params._dummy(),
        "handleInvalid",
        "what becomes of a row whose input is null or cannot be used: 'keep' (the output is null), 'skip' (the row is"
        " left out) or 'error'",
        TypeConverters.toString,
    )

    def __init__(self):
        super().__init__()
        # Spark's own stages begin with "error". These gave null before there was a choice, and pipelines that were
        # saved then still do.
        self._setDefault(handleInvalid="keep")

    def setHandleInvalid(self, value: str):
        return self._set(handleInvalid=value)

    @property
    def rejected(self) -> int:
        """Rows whose input is not null and cannot be used, in all jobs so far (a task that ran twice counts twice).
        Executors' logs say why.
        """
        return sum(counter.value for counter in self.__dict__.get("_counters", []))

    def _checked(self, frame, column: str, kinds: Sequence[str] = ("image",)) -> None:
        """`UserError` where `column` is not of these kinds, or where it is not known what becomes of invalid rows.
        Jobs hand Python few of the column's images at once from now on.
        """
        check(frame, column, kinds)
        if self.getHandleInvalid() not in INVALID:
            raise UserError(f"handleInvalid = {self.getHandleInvalid()!r}: expected one of {', '.join(INVALID)}")
        if dict(frame.dtypes)[column] != "string":
            batches.lower(frame.sparkSession, batches.FILES)

    def _answered(self, frame, name: str, column, prepare: Callable, carried: carry.Carried):
        """`frame` with the column `name`, array<double>: the carried function of `prepare(value)` of each of
        `column`'s.
        """
        counter, invalid = frame.sparkSession.sparkContext.accumulator(0), self.getHandleInvalid()
        self.__dict__.setdefault("_counters", []).append(counter)
        answered = frame.withColumn(name, udf(prepare, carried, counter, self.getInputCol(), invalid)(column))
        if invalid != "skip":
            return answered
        # Not by a filter, which Spark moves below the function, and then calls it twice on every row.
        return answered.withColumn(name, F.explode(F.when(F.col(name).isNotNull(), F.array(name))))
