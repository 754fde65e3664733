"""Folders of image files."""

import functools
import posixpath
import re
from collections.abc import Iterator

from pyspark import StorageLevel

from .. import lake
from ..config import Ingest, UserError
from .rows import Source, padded

_IMAGE_NAME = re.compile(r"\.(jpe?g|png|gif|bmp|webp|tiff?|ppm|pgm)$", re.IGNORECASE)


def source(spark, config: Ingest) -> Source:
    """Files in one folder a class, or all flat. Every file counts, whatever its name; tasks list them and read them."""
    root = lake.to_url(config.path)
    fs, base = lake.filesystem(root)
    if not fs.isdir(base):
        raise UserError(f"ingest.path = {config.path!r}: expected a folder of images")
    context = spark.sparkContext
    folders = context.parallelize([root], 1).flatMap(_subfolders).collect()
    classes = tuple(sorted(name for name in folders if not name.startswith(".")))
    max_bytes = config.max_file_mb * 2**20
    listing = context.parallelize([None, *folders], len(folders) + 1).mapPartitions(functools.partial(_list, root, max_bytes, bool(classes)))
    frame = listing.toDF("id string, url string, label string, reason string").persist(StorageLevel.DISK_ONLY)
    count = frame.count()
    if not count:
        raise UserError(f"ingest.path = {config.path!r}: the folder is empty")
    return Source(padded(frame), classes, count)


def _subfolders(root: str) -> Iterator[str]:
    """Names of the folders that hold a file at any depth, or that cannot be listed."""
    fs, base = lake.filesystem(root)
    for entry in fs.ls(base, detail=True):
        name, errors = posixpath.basename(entry["name"].rstrip("/")), []
        if entry["type"] == "directory" and not _IMAGE_NAME.search(name):
            if any(files for _, _, files in fs.walk(entry["name"], on_error=errors.append)) or errors:
                yield name


def _list(root: str, max_bytes: int, by_class: bool, classes: Iterator[str | None]) -> Iterator[tuple]:
    """(id, url, label, reason) of every file of each class; of the files beside the class folders for None."""
    fs, base = lake.filesystem(root)
    base = base.rstrip("/") + "/"
    for label in classes:
        errors = []
        found = fs.ls(base, detail=True) if label is None else fs.find(base + label, withdirs=True, detail=True, on_error=errors.append).values()
        for error in errors:
            yield str(error.filename).rstrip("/").removeprefix(base), None, label, f"a folder that cannot be listed: {error.strerror}"
        for entry in found:
            name = entry["name"].rstrip("/").removeprefix(base)
            reason = None
            if entry["type"] == "directory":
                if not _IMAGE_NAME.search(name):
                    continue
                reason = "a folder, not a file"
            elif entry["type"] != "file" and not fs.isfile(entry["name"]):  # a link to a file is one
                reason = "not a file"
            elif label is not None and label.startswith("."):
                reason = "inside a hidden folder"
            elif by_class and label is None:
                reason = "not inside a class folder, as the other files are"
            elif (entry["size"] or 0) > max_bytes:
                reason = f"{entry['size']} bytes, over the limit of {max_bytes >> 20} MB"
            yield name, lake.join(root, name), label, reason
