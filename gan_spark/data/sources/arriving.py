"""Source of the rows that one micro-batch of a stream holds: image files as they arrive in a folder, a table's rows, or
messages.

Files have the ids that source 'folder' gives them, so that a folder can be ingested whole and streamed from then on.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator

from ... import lake
from ...config import Ingest, Stream, UserError
from . import folder, messages, table
from .rows import Source, class_names, padded

_FILES = "path string, modificationTime timestamp, length bigint, content binary"  # of Spark's source of files
_LISTED = "id string, url string, label string, split string, reason string, version string"


def stream(spark, config: Ingest, options: Stream):
    """The streaming DataFrame of what arrives at `ingest.path`: files by name alone, rows of a Delta table, or messages
    of a Kafka topic.

    `UserError` for a source that nothing can arrive at.
    """
    rows_a_batch = options.files_a_batch
    if config.source == "kafka":
        return messages.stream(spark, config, options)
    if config.source == "folder" or (config.source == "table" and "/" in config.path):
        fs, path = lake.filesystem(lake.to_url(config.path))
        if not fs.isdir(path):
            raise UserError(f"ingest.path = {config.path!r}: expected a folder at which images arrive, found none")
    if config.source == "folder":
        reader = spark.readStream.format("binaryFile").schema(_FILES).option("recursiveFileLookup", True)
        return (
            reader.option("maxFilesPerTrigger", rows_a_batch)
            .load(lake.to_url(config.path))
            .select("path", "length", "modificationTime")
        )
    if config.source == "table" and "/" in config.path:
        # What the table deletes or writes anew stays in the dataset: rows that are there already add nothing.
        reader = spark.readStream.format("delta").option("skipChangeCommits", True)
        return reader.option("maxFilesPerTrigger", rows_a_batch).load(lake.to_url(config.path))
    raise UserError(
        f"ingest.source = {config.source!r}: expected 'folder', 'kafka', or 'table' with the folder of a Delta table,"
        " at which images can arrive"
    )


def source(batch, config: Ingest, classes: tuple[str, ...]) -> Source:
    """A micro-batch of `stream`; `classes` are those of the dataset, where there is one with labels."""
    if config.source == "kafka":
        names = classes if config.new_classes == "refuse" and classes else config.classes
        read = messages.source(batch, config, names)
        return dataclasses.replace(read, classes=tuple(dict.fromkeys((*classes, *read.classes))))
    if config.source == "table":
        columns = (config.label_column, config.caption_column, config.embedding_column, config.max_file_mb)
        names = classes if config.new_classes == "refuse" and classes else config.classes
        return table.from_frame(batch, config.id_column, config.image_column, *columns, config.split_column, names)
    root = lake.to_url(config.path)
    found = batch.rdd.map(lambda row: _label(_place(root, row["path"]))).distinct().collect()
    labels = {label for label in found if label is not None}
    if classes and config.new_classes == "refuse":
        names = classes
    else:
        names = class_names(labels - set(classes), config.classes) if labels else ()
        names = tuple(dict.fromkeys((*classes, *names)))
    listed = functools.partial(_listed, root, config.max_file_mb * 2**20, frozenset(names))
    frame = batch.rdd.mapPartitions(listed).toDF(_LISTED)
    return Source(padded(frame), names, batch.count())


def unlabelled(batch, config: Ingest) -> Source:
    """A micro-batch of `stream` for whom labels are nothing: whatever folders files are in."""
    if config.source == "table":
        return table.from_frame(batch, config.id_column, config.image_column, max_file_mb=config.max_file_mb)
    root = lake.to_url(config.path)
    listed = functools.partial(_listed, root, config.max_file_mb * 2**20, frozenset())
    return Source(padded(batch.rdd.mapPartitions(listed).toDF(_LISTED)), (), batch.count())


def _place(root: str, path: str) -> str:
    """A file's path below `root`; Spark writes the URLs of both in its own way."""
    plain, below = (re.sub(r"^[\w+.-]+:/*", "", url) for url in (root, path))
    return below.removeprefix(plain.rstrip("/") + "/")


def _label(place: str) -> str | None:
    """The folder below the root that a file is in; None of one directly in the root."""
    return place.partition("/")[0] if "/" in place else None


def _listed(root: str, max_bytes: int, names: frozenset[str], rows: Iterator) -> Iterator[tuple]:
    """(id, url, label, split, reason, version) of every file."""
    fs, _ = lake.filesystem(root)
    for row in rows:
        path = _place(root, row["path"])
        label = _label(path)
        beside = "class folder" if names and label is None else ""
        entry = {"name": path, "type": "file", "size": row["length"]}
        reason = folder.why_not(fs, entry, path, folder.Part(path, label, None, True, beside), max_bytes)
        if reason is None and names and label not in names:
            reason = f"label {label} has no name in ingest.classes"
        version = f"{row['length']} {row['modificationTime'].timestamp()}"
        yield path, lake.join(root, path), label if label in names else None, None, reason, version
