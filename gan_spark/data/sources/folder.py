"""Source of folders of image files."""

import functools
import posixpath
import re
from collections.abc import Iterator

from pyspark import StorageLevel

from ... import lake
from ...config import Ingest, UserError
from .. import images
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
    listing = context.parallelize([None, *folders], len(folders) + 1).mapPartitions(
        functools.partial(_list, root, max_bytes, bool(classes))
    )
    frame = listing.toDF("id string, url string, label string, reason string").persist(StorageLevel.DISK_ONLY)
    count = frame.count()
    if not count:
        raise UserError(f"ingest.path = {config.path!r}: the folder is empty")
    return Source(padded(frame), classes, count)


def _subfolders(root: str) -> Iterator[str]:
    """Names of the folders that hold a file at any depth, or that cannot be listed."""
    fs, base = lake.filesystem(root)
    for entry in _entries(fs, base):
        name = posixpath.basename(entry["name"].rstrip("/"))
        if entry["type"] != "directory" or _IMAGE_NAME.search(name):
            continue
        if any(problem or child["type"] != "directory" for child, problem in walk(fs, entry["name"])):
            yield name


def walk(fs, folder: str) -> Iterator[tuple[dict, str | None]]:
    """(entry as fsspec's `ls` gives it, None) of all that is in the folder, at any depth.

    (folder, why) of a folder that cannot be listed.
    """
    # fsspec's own walk passes over folders below the first level that cannot be listed, and not every filesystem's find
    # takes a handler.
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        try:
            entries = _entries(fs, folder)
        except OSError as error:
            yield {"name": folder, "type": "directory"}, error.strerror or str(error)
            continue
        for entry in entries:
            if entry["type"] == "directory":
                waiting.append(entry["name"])
            yield entry, None


def _entries(fs, folder: str) -> list[dict]:
    # Some object stores list an empty object that stands for the folder itself.
    return [entry for entry in fs.ls(folder, detail=True) if entry["name"].rstrip("/") != folder.rstrip("/")]


def _list(root: str, max_bytes: int, by_class: bool, classes: Iterator[str | None]) -> Iterator[tuple]:
    """(id, url, label, reason) of every file of each class; of the files beside the class folders for None."""
    fs, base = lake.filesystem(root)
    base = base.rstrip("/") + "/"
    for label in classes:
        entries = ((entry, None) for entry in _entries(fs, base)) if label is None else walk(fs, base + label)
        for entry, problem in entries:
            name = entry["name"].rstrip("/").removeprefix(base)
            if problem is not None:
                yield name, None, label, f"a folder that cannot be listed: {problem}"
                continue
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


def read(url: str, max_file_mb: int) -> bytes:
    """Bytes of an image file. Raises `BadImage` where it cannot be read or is larger."""
    fs, path = lake.filesystem(url)
    try:
        with fs.open(path, "rb") as stream:
            data = stream.read(max_file_mb * 2**20 + 1)
    except PermissionError:
        raise images.BadImage("permission denied") from None
    except FileNotFoundError:
        raise images.BadImage("gone: the file was listed but is not there") from None
    except OSError as error:
        raise images.BadImage(f"cannot be read: {error.strerror or error}") from None
    if len(data) > max_file_mb * 2**20:
        raise images.BadImage(f"over the limit of {max_file_mb} MB")
    return data
