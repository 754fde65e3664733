"""Source of any Spark table, or DataFrame."""

import functools
import posixpath
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
from pyspark.sql import functions as F
from pyspark.sql import types as T

from ... import failures, lake
from ...config import Ingest, UserError
from ...lake import tables
from .. import captions, images
from .rows import ROW, SPLIT_NAMES, Source, are_numbers, chunk, class_names, padded

_WHOLE = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
_FILE_SPLIT = "split of the file"  # column
_EMBEDDINGS = ("array<float>", "array<double>", "array<array<float>>", "array<array<double>>")


def source(spark, config: Ingest) -> Source:
    """A Parquet or Delta folder (a path or URL) or a catalog table (a bare name) with a column of images.

    Files that are named as splits, as `train-00000-of-00005.parquet` or `test/part-0.parquet`, are splits.
    """
    try:
        frame = _load(spark, lake.to_url(config.path)) if "/" in config.path else spark.table(config.path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"ingest.path = {config.path!r}: cannot be read as a table: {failures.summary(error)}"
        ) from error
    split_column = config.split_column or (_FILE_SPLIT if _FILE_SPLIT in frame.columns else "")
    return from_frame(
        frame,
        config.id_column,
        config.image_column,
        config.label_column,
        config.caption_column,
        config.embedding_column,
        config.max_file_mb,
        split_column,
        config.classes,
    )


def _load(spark, url: str):
    """The table at `url`, with the split of each row where the files' names state it."""
    fs, path = lake.filesystem(url)
    by_split: dict[str | None, list[str]] = {}
    for entry in fs.ls(path, detail=True) if fs.isdir(path) else []:
        name = posixpath.basename(entry["name"].rstrip("/"))
        is_folder = entry["type"] == "directory"
        if not name.startswith(("_", ".")) and (is_folder or name.endswith(".parquet")):
            by_split.setdefault(_split_of(name, is_folder), []).append(lake.join(url, name))
    if not by_split.keys() - {None} or tables.is_in_delta(url):
        return tables.load(spark, url)
    tables.check_parquet(url)
    frames = [
        tables.read_parquet(spark, *sorted(urls)).withColumn(_FILE_SPLIT, F.lit(split).cast("string"))
        for split, urls in by_split.items()
    ]
    return functools.reduce(lambda one, other: one.unionByName(other), frames)


def _split_of(name: str, is_folder: bool) -> str | None:
    """The split that the name of a file, or of a folder of files, states."""
    match = re.fullmatch(f"({'|'.join(SPLIT_NAMES)}){'' if is_folder else '[-_.].*'}", name.lower())
    return SPLIT_NAMES[match[1]] if match else None


def from_frame(
    frame,
    id_column: str,
    image_column: str,
    label_column: str = "",
    caption_column: str = "",
    embedding_column: str = "",
    max_file_mb: int = 64,
    split_column: str = "",
    classes: tuple[str, ...] = (),
) -> Source:
    """Any DataFrame with a column of images, and one of unique ids, or none, where a hash of the image is its id.

    Null images, and those over `max_file_mb` MB, are rejected by id. A name with dots may lead into a struct.
    """
    label, label_reason = _label(frame, label_column)
    split, split_reason = _split(frame, split_column)
    image = _image(frame, image_column)
    is_large = image.size > max_file_mb * 2**20
    caption, caption_reason = _caption(frame, caption_column)
    reason = F.coalesce(
        F.when(image.column.isNull(), "no image (null)"),
        label_reason,
        split_reason,
        F.when(is_large, F.concat(image.size, F.lit(f" bytes, over the limit of {max_file_mb} MB"))),
        caption_reason,
    )
    id = _column(frame, "id", id_column)[0].cast("string") if id_column else F.lit(None).cast("string")
    labels = {row[0] for row in frame.select(label).distinct().collect() if row[0] is not None} if label_column else {}
    name, is_named = _name(label, labels, classes)
    chosen = frame.select(
        id.alias("id"),
        F.when(~is_large, image.column).alias("content"),
        name.alias("label"),
        split.alias("split"),
        F.coalesce(
            reason,
            F.when(label.isNotNull() & ~is_named, F.format_string("label %s has no name in ingest.classes", label)),
        ).alias("reason"),
        caption.alias("caption"),
        _flat(frame, embedding_column).alias("embedding"),
    )
    rows = padded(chosen)
    if image.convert is not None:
        rows = rows.mapInArrow(image.convert, ROW)
    rows = _with_ids(rows, bool(id_column))
    stated_splits = {row[0] for row in frame.select(split).distinct().collect()} if split_column else set()
    if "test" not in stated_splits:  # Then a training image's id decides.
        rows = rows.withColumn("split", F.when(F.col("split") != "train", F.col("split")))
    return Source(
        rows,
        class_names(labels, classes) if label_column else (),
        frame.count(),
        bool(caption_column),
        _embedding_shape(frame, embedding_column),
        holds_files=True,
        splits=frozenset(stated_splits - {None}),
    )


def _with_ids(rows, are_stated: bool):
    """The rows with an id each: the stated one, or a hash of the image."""
    if are_stated:
        rows = rows.withColumn("reason", F.when(F.col("id").isNull(), "no id (null)").otherwise(F.col("reason")))
    else:
        rows = rows.withColumn("id", F.substring(F.sha2("content", 256), 1, 32))
    return rows.withColumn("id", F.coalesce("id", F.concat(F.lit("null id "), F.monotonically_increasing_id())))


def _column(frame, key: str, name: str) -> tuple[Any, T.DataType]:
    """The column of this very name, dots and all, or the field of a struct to which they lead; and its type."""
    quoted = "`" + name.replace("`", "``") + "`"
    if name in frame.columns:
        return F.col(quoted), frame.schema[name].dataType
    first, *fields = name.split(".")
    column, kind = (F.col(f"`{first}`"), frame.schema[first].dataType) if first in frame.columns else (None, None)
    for field in fields:
        column, kind = (
            (column[field], kind[field].dataType)
            if isinstance(kind, T.StructType) and field in kind.names
            else (None, None)
        )
    if column is None:
        raise UserError(
            f"ingest.{key}_column = {name!r}: not a column of the table (columns: {', '.join(frame.columns)})"
        )
    return column, kind


def _refuse(key: str, name: str, expected: str, kind: T.DataType) -> UserError:
    return UserError(f"ingest.{key}_column = {name!r}: expected {expected}, found {kind.simpleString()}")


class _Image(NamedTuple):
    column: Any
    size: Any  # column of its bytes
    convert: Any = None  # of batches, to ROW


def _image(frame, name: str) -> _Image:
    column, kind = _column(frame, "image", name)
    if isinstance(kind, T.BinaryType):
        return _Image(column, F.length(column))
    if isinstance(kind, T.ArrayType) and isinstance(kind.elementType, T.ByteType):
        return _Image(column, F.size(column), functools.partial(_converted, _of_numbers))
    if isinstance(kind, T.StructType) and {"height", "width", "mode", "data"} <= set(kind.names):
        return _Image(column, F.length(column["data"]), functools.partial(_converted, _of_struct))
    if isinstance(kind, T.StructType) and "bytes" in kind.names and isinstance(kind["bytes"].dataType, T.BinaryType):
        return _Image(column["bytes"], F.length(column["bytes"]))
    raise _refuse("image", name, "a binary column, a struct with `bytes`, or Spark's image struct", kind)


def _converted(convert, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of ROW from such whose `content` is another type: `convert` gives what a value becomes, by column."""
    for batch in batches:
        columns = batch.to_pydict()
        for place, value in enumerate(columns["content"]):
            if value is None or columns["reason"][place] is not None:
                columns["content"][place] = None
                continue
            try:
                converted = convert(value)
            except images.BadImage as error:
                converted = {"content": None, "reason": str(error)}
            for column, item in converted.items():
                columns[column][place] = item
        yield chunk(**columns)


def _of_numbers(numbers: list[int | None]) -> dict:
    if None in numbers:
        raise images.BadImage("an array of bytes with null in it")
    return {"content": bytes(number & 255 for number in numbers)}


def _of_struct(row: dict) -> dict:
    pixels = images.from_struct(row)
    height, width, channels = pixels.shape
    return {"content": pixels.tobytes(), "height": height, "width": width, "channels": channels}


def _label(frame, name: str) -> tuple[Any, Any]:
    """(the label as text, null for none; why there is none)."""
    none = F.lit(None).cast("string")
    if not name:
        return none, none
    column, kind = _column(frame, "label", name)
    is_whole = isinstance(kind, _WHOLE) or (isinstance(kind, T.DecimalType) and kind.scale == 0)
    if not is_whole and not isinstance(kind, (T.StringType, T.BooleanType)):
        raise _refuse("label", name, "text or whole numbers", kind)
    text = column.cast("string")
    is_blank = ~text.rlike(captions.VISIBLE)
    reason = F.when(text.isNull(), "no label (null)").when(is_blank, "no label (blank)")
    return F.when(~is_blank, text), reason


def _name(label, labels: set[str], classes: tuple[str, ...]) -> tuple[Any, Any]:
    """(the class's name, whether the label has one)."""
    if not classes:
        return label, F.lit(True)
    if are_numbers(labels):
        is_named = label.cast("decimal(38,0)").between(0, len(classes) - 1)
        return F.when(is_named, F.array(*map(F.lit, classes))[label.cast("int")]), is_named
    is_named = label.isin(*classes)
    return F.when(is_named, label), is_named


def _split(frame, name: str) -> tuple[Any, Any]:
    """(train, validation or test; why it is none of them)."""
    none = F.lit(None).cast("string")
    if not name:
        return none, none
    column, kind = _column(frame, "split", name)
    if not isinstance(kind, T.StringType):
        raise _refuse("split", name, "text", kind)
    split = none
    for stated_name, canonical in SPLIT_NAMES.items():
        split = F.when(F.lower(F.trim(column)) == stated_name, canonical).otherwise(split)
    if name == _FILE_SPLIT:
        return split, none
    reason = F.when(column.isNull(), "no split (null)").when(
        split.isNull(), F.format_string("split %s is not train, validation or test", column)
    )
    return split, reason


def _caption(frame, name: str) -> tuple[Any, Any]:
    """(the caption, null where it is too long; why it is)."""
    none = F.lit(None).cast("string")
    if not name:
        return none, none
    column, kind = _column(frame, "caption", name)
    if isinstance(kind, T.ArrayType) and isinstance(kind.elementType, T.StringType):
        column = F.concat_ws("\n", column)
    elif not isinstance(kind, T.StringType):
        raise _refuse("caption", name, "text, or an array of text", kind)
    size = F.length(column)
    reason = F.format_string(f"caption of %d characters, over the limit of {captions.LIMIT}", size)
    return F.when(size <= captions.LIMIT, column), F.when(size > captions.LIMIT, reason)


def _flat(frame, name: str):
    """The embeddings of a row end to end, as float32."""
    if not name:
        return F.lit(None).cast("array<float>")
    column, kind = _column(frame, "embedding", name)
    if kind.simpleString() not in _EMBEDDINGS:
        raise _refuse("embedding", name, "an array of float, or an array of such arrays", kind)
    return (F.flatten(column) if kind.simpleString().startswith("array<array") else column).cast("array<float>")


def _embedding_shape(frame, name: str) -> tuple[int, ...]:
    """(how many a row, size of each) of the first row that has one."""
    if not name:
        return ()
    column, _ = _column(frame, "embedding", name)
    first = frame.select(column.alias("embedding")).where("embedding is not null and size(embedding) > 0").first()
    if first is None:
        raise UserError(f"ingest.embedding_column = {name!r}: every row is null or empty")
    values = first["embedding"]
    return (len(values), len(values[0])) if isinstance(values[0], list) else (1, len(values))
