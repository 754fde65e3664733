"""Files in the lake: every path is a URL, and one set of calls serves all stores.

`file:`, `hdfs:`, `s3a:` and the rest go through fsspec, `hdfs:` by a filesystem of `hdfs`; `dbfs:` through its mount.
"""

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from typing import Any, cast

import fsspec

from ..config import UserError

_OBJECT_STORES = ("s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "wasb", "wasbs")
_SCHEMES = (*_OBJECT_STORES, "hdfs", "webhdfs", "viewfs", "file", "dbfs", "http", "https", "ftp")
_REMOVALS = 100  # times that it is tried to remove a folder which somebody else removes too
_EXTRAS = {"hdfs": "hdfs", "s3": "s3", "s3a": "s3", "s3n": "s3"}  # what opens a scheme, as gan-spark[...]


def is_object_store(url: str) -> bool:
    return url.partition("://")[0] in _OBJECT_STORES


def to_url(path: str) -> str:
    """A URL for `path`: local paths become absolute `file://` URLs, `~` is the user's home, URLs stay as they are.

    `UserError` for what would become a folder of an odd name in the working directory.
    """
    if "://" in path or path.startswith("dbfs:/"):
        return path.rstrip("/")
    path = os.path.expanduser(path.removeprefix("file:") if path.startswith("file:/") else path)
    scheme, colon, _ = path.partition(":")
    if colon and scheme in _SCHEMES:
        raise UserError(f"{path!r}: expected two slashes after the scheme: {scheme}://, a bucket or host, and a path")
    if path.startswith(("~", "$")):
        raise UserError(f"{path!r}: nothing is put in for {path.split('/')[0]}; expected a URL or a path written out")
    return "file://" + os.path.abspath(path)


def mounted(url: str) -> str:
    """The URL by which all but Spark open `url`: Databricks mounts `dbfs:` at /dbfs on every machine."""
    return "file:///dbfs/" + url.removeprefix("dbfs:").lstrip("/") if url.startswith("dbfs:/") else url


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `url` and the path inside it; `UserError` where it cannot be opened."""
    url = mounted(url)
    if url.startswith("file:"):
        # Not through fsspec's parser, to which "::" in a file's name means a chain of filesystems.
        fs = fsspec.filesystem("file")
        return fs, fs._strip_protocol(url)
    try:
        fs, path = _hdfs(url) if url.startswith("hdfs:") else fsspec.core.url_to_fs(url)
    except (ImportError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{url}: no filesystem for this URL: {error}{_remedy(url, error)}") from error
    fs.invalidate_cache()  # of listings: other processes write too
    return fs, path


def _hdfs(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    from . import hdfs  # An extra has what that imports.

    root, path = hdfs.split(url)
    return hdfs.HdfsFileSystem(root), path


def _remedy(url: str, error: Exception) -> str:
    """What to install for a URL's scheme; nothing where that is not what is missing."""
    scheme = url.partition(":")[0]
    if scheme not in _EXTRAS or not isinstance(error, ImportError):
        return ""
    return f'; {scheme}: takes pip install "gan-spark[{_EXTRAS[scheme]}]", for the Python of driver and executors'


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return fs.exists(path)


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    return cast(bytes, fs.cat_file(path))  # It opens files as bytes; fsspec's types say text too.


def write_bytes(url: str, data: bytes) -> None:
    """Writes the file whole or not at all: under another name first, then renamed; object stores do that themselves."""
    fs, path = filesystem(url)
    if is_object_store(url):
        fs.pipe_file(path, data)
        return
    with writing(url), _part(fs, path, data) as part:
        fs.mv(part, path)


def create(url: str, data: bytes) -> bool:
    """Writes the file whole, unless one is there; whether it was written. Of several that try at once, one does.

    Where a filesystem is neither a disk, an object store nor HDFS, two that try within the same moment may both believe
    so.
    """
    fs, path = filesystem(url)
    if is_object_store(url):
        return _create_object(fs, path, data)
    with writing(url), _part(fs, path, data) as part:
        if mounted(url).startswith("file:"):
            with contextlib.suppress(OSError):  # Not every mount has links; where the file is there, it is told below.
                os.link(part, path)
                return True
        if mounted(url).startswith("hdfs:"):
            return cast(Any, fs).place(part, path)
        if fs.exists(path):
            return False
        fs.mv(part, path)
        return True


@contextlib.contextmanager
def _part(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> Iterator[str]:
    """The path of a file beside `path` that holds `data`; it goes, whatever happens, unless it is moved."""
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{uuid.uuid4().hex[:8]}"
    try:
        fs.pipe_file(part, data)
        yield part
    finally:
        with contextlib.suppress(Exception):  # It was moved; or what else went wrong is to be told.
            fs.rm_file(part)


class Full(UserError, OSError):
    """There is no room for a file."""


_IS_FULL = re.compile("No space left on device|Disk quota exceeded")


@contextlib.contextmanager
def writing(url: str) -> Iterator[None]:
    """Whatever is written meanwhile is of `url`: `Full` names it where a disk is full, which is an error without a
    file's name in Python, and one of their own in other libraries.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (reason := _IS_FULL.search(str(error))):
            raise
        raise Full(
            f"{url}: cannot be written: {reason[0]}; what was there is as it was. Make room, or name another place, and"
            " run this job again"
        ) from error


def _create_object(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    try:
        fs.pipe_file(path, data, mode="create")
        return True
    except OSError:  # That of a condition that is not met has no name of its own.
        fs.invalidate_cache()
        if fs.exists(path):
            return cast(Any, fs.cat_file(path)) == data  # It may have been this one, whose answer was lost.
        raise


def read_json(url: str) -> Any:
    return json.loads(read_bytes(url))


def write_json(url: str, value: Any) -> None:
    write_bytes(url, to_json(value))


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def remove(url: str) -> None:
    """Removes what is at `url`, if anything; somebody else may be removing it at the same moment."""
    fs, path = filesystem(url)
    for left in reversed(range(_REMOVALS)):
        if not fs.exists(path):
            return
        try:
            fs.rm(path, recursive=True)
        except FileNotFoundError:  # What was listed is gone.
            fs.invalidate_cache()
            if not left:
                raise
