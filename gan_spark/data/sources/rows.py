"""Rows of image references, which every source gives."""

import dataclasses

import pandas as pd
import pyarrow as pa

# `content` is encoded bytes, or raw pixels where height, width and channels are given.
ROW = (
    "id string, url string, content binary, height int, width int, channels int, label string, split string, reason"
    " string, caption string, embedding array<float>"
)
_SPARK = dict(field.split() for field in ROW.split(", "))
_ARROW = {"string": pa.string(), "binary": pa.binary(), "int": pa.int32(), "array<float>": pa.list_(pa.float32())}
_SCHEMA = pa.schema([(name, _ARROW[kind]) for name, kind in _SPARK.items()])
CHUNK = 1024  # rows that a reader hands on at once


@dataclasses.dataclass(frozen=True)
class Source:
    frame: object  # pyspark DataFrame of ROW
    classes: tuple[str, ...]  # sorted names of the labels; empty without labels
    count: int
    captioned: bool = False
    embedding: tuple[int, ...] = ()  # (how many an image, size of each)
    holds_files: bool = False  # `content` is whole files, as large as `ingest.max_file_mb` lets them be


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
