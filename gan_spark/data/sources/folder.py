"""Source of folders of image files."""

import functools
import os
import posixpath
import re
from collections.abc import Iterator
from typing import NamedTuple

from pyspark import StorageLevel

from ... import lake
from ...config import Ingest, UserError
from .. import images
from .rows import SPLIT_NAMES, Source, are_numbers, class_names, padded, stated

_IMAGE_NAME = re.compile(r"\.(jpe?g|png|gif|bmp|webp|tiff?|p[bgpn]m|avif|jp2|j2k|ico|tga)$", re.IGNORECASE)
# What systems leave beside images: of NAS devices, of archives made on a Mac, of file systems, of Windows.
_SYSTEM_FOLDERS = (
    "@eadir",
    "@recycle",
    "#recycle",
    "__macosx",
    "lost+found",
    "$recycle.bin",
    "system volume information",
)

# By which stores tell that a file was written anew: S3, Google, Azure, HDFS and a disk.
_VERSIONS = ("ETag", "etag", "content_md5", "mtime", "modificationTime", "last_modified", "LastModified")


class Part(NamedTuple):
    """Files that have a label and a split in common."""

    folder: str  # below the root, "" for the root itself
    label: str | None
    split: str | None
    whole: bool  # at any depth, or only those directly in it
    beside: str = ""  # what kind of folder they lie beside, and should lie in


def source(spark, config: Ingest) -> Source:
    """Files in one folder a class, or all flat; and so in folders `train`, `val` and `test`, where there are no others.

    Every file counts, whatever its name; tasks list them and read them. Links to folders are followed.
    """
    root = lake.to_url(config.path)
    fs, base = lake.filesystem(root)
    if not fs.isdir(base):
        raise UserError(f"ingest.path = {config.path!r}: expected a folder of images")
    context = spark.sparkContext
    parts, labels = _parts(context, root)
    splits = frozenset(part.split for part in parts if part.split)
    classes = class_names(labels, config.classes) if labels else ()
    listing = context.parallelize(parts, len(parts)).mapPartitions(
        functools.partial(_list, root, config.max_file_mb * 2**20, _names(labels, config.classes), splits)
    )
    frame = listing.toDF("id string, url string, label string, split string, reason string, version string").persist(
        StorageLevel.DISK_ONLY
    )
    count = frame.count()
    if not count:
        raise UserError(f"ingest.path = {config.path!r}: the folder is empty")
    return Source(padded(frame), classes, count, splits=splits)


def _parts(context, root: str) -> tuple[list[Part], set[str]]:
    """Parts of what is below `root`, and the labels among them."""
    [top] = _subfolders(context, [root])
    splits = {name: SPLIT_NAMES.get(name.lower()) for name, has_files in top.items() if has_files}
    if not splits or None in splits.values():
        parts = [Part("", None, None, False, beside="class folder" if splits else "")]
        parts += [Part(name, name, None, True) for name in top]
        return parts, set(splits)
    # Folders that are named as splits are splits; classes are inside of them.
    below = dict(zip(splits, _subfolders(context, [lake.join(root, name) for name in splits]), strict=True))
    labels = {name for folders in below.values() for name, has_files in folders.items() if has_files}
    parts = [Part("", None, None, False, beside="folder of a split")]
    parts += [Part(name, None, None, True) for name in top if name not in splits]
    for folder, split in splits.items():
        parts.append(Part(folder, None, split, whole=not labels, beside="class folder" if labels else ""))
        parts += [Part(f"{folder}/{name}", name, split, True) for name in below[folder] if labels]
    return parts, labels


def _subfolders(context, urls: list[str]) -> list[dict[str, bool]]:
    """By folder: the names of its folders that hold a file at any depth, or that cannot be listed, and whether a file
    of them may be an image of a class.
    """
    return context.parallelize(urls, len(urls)).map(lambda url: dict(_folders_with_files(url))).collect()


def _folders_with_files(url: str) -> Iterator[tuple[str, bool]]:
    fs, base = lake.filesystem(url)
    for entry, problem in _entries(fs, base):
        name = posixpath.basename(entry["name"].rstrip("/"))
        if entry["type"] != "directory" or problem or _IMAGE_NAME.search(name):
            continue
        hidden = None
        for child, child_problem in walk(fs, entry["name"]):
            if child_problem or child["type"] != "directory":
                path = posixpath.join(name, child["name"].removeprefix(entry["name"]).lstrip("/"))
                hidden = hidden is not False and (_hidden_folder(path) is not None or not _is_utf8(path))
                if not hidden:
                    break
        if hidden is not None:
            yield name, not hidden


def _hidden_folder(path: str) -> str | None:
    """The first folder of a file's path that is hidden or a system's own."""
    folders = path.split("/")[:-1]
    return next((name for name in folders if name.startswith(".") or name.lower() in _SYSTEM_FOLDERS), None)


def _is_utf8(path: str) -> bool:
    return not re.search("[\ud800-\udfff]", path)  # What Python makes of bytes that are not


def _names(labels: set[str], names: tuple[str, ...]) -> dict[str, str]:
    """The names of labels that have one."""
    if names and are_numbers(labels):
        return {label: names[int(label)] for label in labels if 0 <= int(label) < len(names)}
    return {label: label for label in labels if not names or label in names}


def walk(fs, folder: str) -> Iterator[tuple[dict, str | None]]:
    """(entry as fsspec's `ls` gives it, None) of all that is in the folder, at any depth.

    (folder, why) of a folder that cannot be listed, or of a link that is not followed.
    """
    # fsspec's own walk passes over folders below the first level that cannot be listed, and not every filesystem's find
    # takes a handler.
    waiting, followed = [folder], set()
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(_entries(fs, folder))
        except OSError as error:
            yield {"name": folder, "type": "directory"}, error.strerror or str(error)
            continue
        for entry, problem in entries:
            if problem is None and entry["type"] == "directory":
                if target := entry.get("target"):
                    if target in followed:
                        yield entry, "a link to a folder that another link led to, which is not followed again"
                        continue
                    followed.add(target)
                waiting.append(entry["name"])
            yield entry, problem


def files(spark, url: str):
    """DataFrame of `id`, the URLs of the files in the folder, at any depth, and of folders that cannot be listed."""
    # Not Spark's own listing of files, which passes over names that begin with _ or a dot.
    context = spark.sparkContext
    return context.parallelize([url], 1).flatMap(_urls).repartition(context.defaultParallelism).toDF("id string")


def _urls(url: str) -> Iterator[tuple[str]]:
    fs, base = lake.filesystem(url)
    for entry, problem in walk(fs, base):
        if problem is not None and entry["name"] == base:
            raise OSError(f"{url}: the folder cannot be listed: {problem}")
        if problem is not None or entry["type"] != "directory":
            yield (lake.join(url, entry["name"].removeprefix(base.rstrip("/") + "/")),)


def _entries(fs, folder: str) -> Iterator[tuple[dict, str | None]]:
    """(entry, None) of what is in the folder; a link to a folder is one, whose `target` is where it leads.

    (entry, why) of a link that leads back.
    """
    for entry in fs.ls(folder, detail=True):
        problem = None
        if entry["name"].rstrip("/") == folder.rstrip("/"):
            continue  # Some object stores list an empty object that stands for the folder itself.
        if entry.get("islink") and fs.isdir(entry["name"]):
            target, here = os.path.realpath(entry["name"]), os.path.realpath(folder)
            if f"{here}/".startswith(target.rstrip("/") + "/"):
                problem = "a link to a folder that it is in, which is not followed"
            entry = {**entry, "type": "directory", "target": target}
        yield entry, problem


def _list(
    root: str, max_bytes: int, names: dict[str, str], splits: frozenset[str], parts: Iterator[Part]
) -> Iterator[tuple]:
    """(id, url, label, split, reason, version) of every file of each part."""
    fs, base = lake.filesystem(root)
    base = base.rstrip("/") + "/"
    for part in parts:
        entries = walk(fs, base + part.folder) if part.whole else _entries(fs, base + part.folder)
        label, split = names.get(part.label), stated(part.split, splits)
        for entry, problem in entries:
            path = entry["name"].rstrip("/").removeprefix(base)
            if problem is None and entry["type"] == "directory" and not _IMAGE_NAME.search(path):
                continue
            if problem is not None:
                linked = "target" in entry
                reason = problem if linked else f"a folder that cannot be listed: {problem}"
            else:
                reason = why_not(fs, entry, path, part, max_bytes)
            if reason is None and part.label is not None and label is None:
                reason = f"label {part.label} has no name in ingest.classes"
            url = lake.join(root, path) if problem is None and _is_utf8(path) else None
            yield _readable(path), url, label, split, reason, _version(entry)


def why_not(fs, entry: dict, path: str, part: Part, max_bytes: int) -> str | None:
    """Why the entry is no image of its part."""
    if not _is_utf8(path):
        return "its name is not UTF-8"
    if entry["type"] == "directory":
        return "a folder, not a file"
    if entry["type"] != "file" and not fs.isfile(entry["name"]):  # a link to a file is one
        return "not a file"
    if (hidden := _hidden_folder(path)) is not None:
        return f"inside {hidden!r}, a hidden or system folder"
    if part.beside:
        return f"not inside a {part.beside}, as the other files are"
    if (entry["size"] or 0) > max_bytes:
        return f"{entry['size']} bytes, over the limit of {max_bytes >> 20} MB"
    return None


def _version(entry: dict) -> str | None:
    """Size, and what else the store tells of which content a file has: its ETag, or when it was changed."""
    told = next((entry[key] for key in _VERSIONS if entry.get(key) is not None), None)
    # Of a link it tells the link's own.
    return None if told is None or entry.get("islink") else f"{entry.get('size')} {told}"


def _readable(path: str) -> str:
    """The path as text, with bytes that are not UTF-8 written as such."""
    return path if _is_utf8(path) else os.fsencode(path).decode("utf-8", "backslashreplace")


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
