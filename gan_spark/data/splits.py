"""Splits of a dataset: their files, and their rows as arrays."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from .. import lake
from ..config import UserError
from ..lake import tables
from . import schema, snapshots

Row = TypeVar("Row")


def folder(url: str, split: str, part: str = "") -> str:
    """URL of the folder of a split, or of a part of it."""
    return lake.join(url, f"split={split}", *([f"part={part}"] if part else []))


def in_words(split: str, part: str = "") -> str:
    """A split, or a part of it, as errors name it."""
    return f"split {split!r}" + (f", part {part!r}," if part else "")


def files(url: str, split: str, part: str = "", since: str = "", are_new: bool = True) -> list[str]:
    """URLs of the Parquet files of a split, or of a part of it, sorted by their paths in the dataset, so that every
    rank sees the same order. With `since`, the URL of a former snapshot, those that it has not, or has alone.
    """
    beginning = folder("", split, part).lstrip("/") + "/"
    names = {name: place for name, place in snapshots.files(url).items() if name.startswith(beginning)}
    former = snapshots.files(since).keys() if since else names
    return [place for name, place in names.items() if not since or (name not in former) == are_new]


def frame(spark, url: str, split: str, part: str = ""):
    """The DataFrame of a split, or of a part of it; `UserError` where it has no images."""
    names = files(url, split, part)
    if not names:
        raise UserError(f"dataset {url}: its {in_words(split, part)} has no images")
    return tables.read_files(spark, *names)


def lowest_hashes(frame, count: int):
    """The `count` rows whose ids hash lowest, in that order, the same every time.

    The hash is column `seed`, from 0 to 2**62 - 1.
    """
    from pyspark.sql import functions as F

    return frame.withColumn("seed", F.xxhash64("id").bitwiseAND(2**62 - 1)).orderBy("seed", "id").limit(count)


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Lists of `size` rows each, the last one of what is left."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def columns(manifest: schema.Manifest) -> list[str]:
    """Names of the columns that a row holds for a model."""
    return (
        ["image"]
        + ["label"] * bool(manifest.classes)
        + ["caption"] * manifest.captioned
        + ["embedding"] * bool(manifest.embedding)
    )


def unpack(rows: dict, manifest: schema.Manifest) -> dict[str, np.ndarray]:
    """Stored columns to arrays: image uint8, label int32, caption objects, embedding float32."""
    arrays = {"image": schema.unpack(rows["image"], manifest.shape, manifest.encoding)}
    if manifest.classes:
        arrays["label"] = np.asarray(rows["label"], np.int32)
    if manifest.captioned:
        arrays["caption"] = np.asarray(rows["caption"], object)
    if manifest.embedding:
        arrays["embedding"] = schema.unpack_arrays(rows["embedding"], manifest.embedding, np.float32)
    return arrays
