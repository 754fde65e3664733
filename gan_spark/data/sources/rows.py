"""Rows of image references, which every source gives."""

import dataclasses
import re
from collections.abc import Iterable

import pandas as pd
import pyarrow as pa

# `content` is encoded bytes, or raw pixels where height, width and channels are given. `version` is any text that is
# another one once the file at `url` is another; null where nothing tells.
ROW = (
    "id string, url string, content binary, height int, width int, channels int, label string, split string, reason"
    " string, caption string, embedding array<float>, version string"
)
_SPARK = dict(field.split() for field in ROW.split(", "))
_ARROW = {"string": pa.string(), "binary": pa.binary(), "int": pa.int32(), "array<float>": pa.list_(pa.float32())}
_SCHEMA = pa.schema([(name, _ARROW[kind]) for name, kind in _SPARK.items()])
CHUNK = 1024  # rows that a reader hands on at once


@dataclasses.dataclass(frozen=True)
class Source:
    frame: object  # pyspark DataFrame of ROW
    classes: tuple[str, ...]  # names of the labels 0, 1, ...; empty without labels
    count: int
    captioned: bool = False
    embedding: tuple[int, ...] = ()  # (how many an image, size of each)
    holds_files: bool = False  # `content` is whole files, as large as `ingest.max_file_mb` lets them be
    splits: frozenset[str] = frozenset()  # that the source itself divides its images into; empty where it does not


SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def stated(split: str | None, splits: Iterable[str]) -> str | None:
    """The split of a row; None, so that its id decides, of a training image whose source has no test images."""
    return None if split == "train" and "test" not in splits else split


def are_numbers(labels: Iterable[str]) -> bool:
    return all(re.fullmatch("-?[0-9]+", label) for label in labels)


def class_names(labels: Iterable[str], names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the classes, which are `names` if there are any, of a source's labels: whole numbers sort as such."""
    return names or tuple(sorted(labels, key=(lambda label: (int(label), label)) if are_numbers(labels) else None))


def frame_of(spark, rows: list[dict]):
    return spark.createDataFrame(
        pd.DataFrame(rows, columns=list(_SPARK)).astype(object).where(lambda frame: frame.notna(), None), ROW
    )


def chunk(**columns) -> pa.RecordBatch:
    """A batch of source rows; columns that are not given are null."""
    nulls = [None] * len(columns["id"])
    return pa.RecordBatch.from_arrays(
        [pa.array(columns.get(field.name, nulls), field.type) for field in _SCHEMA], schema=_SCHEMA
    )


def padded(frame):
    """`frame` with ROW's other columns, null."""
    from pyspark.sql import functions as F

    return frame.select(
        [F.col(name) if name in frame.columns else F.lit(None).cast(kind).alias(name) for name, kind in _SPARK.items()]
    )
