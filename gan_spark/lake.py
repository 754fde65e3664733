"""Paths in the lake: every one is a URL, and one set of calls serves all stores.

`file:`, `hdfs:`, `s3a:` and the rest go through fsspec; `dbfs:` through its mount. Object stores have no rename:
there a folder is replaced by copies, and is without its MARKERS for as long as that takes.
"""

import json
import os
import posixpath
import re
import time
import uuid
from typing import Any

import fsspec

from .config import Config, UserError


MANIFEST, SUCCESS = MARKERS = ("_gan_spark.json", "_SUCCESS")  # of a dataset, and of a table, that is whole
_OBJECT_STORES = ("s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "wasb", "wasbs")
_STALE = 24 * 3600  # seconds without a change, after which what was staged is a dead job's


def is_object_store(url: str) -> bool:
    return url.partition("://")[0] in _OBJECT_STORES


def to_url(path: str) -> str:
    """A URL for `path`: local paths become absolute `file://` URLs, URLs stay as they are."""
    if "://" in path:
        return path.rstrip("/")
    if path.startswith("dbfs:/"):
        return path.rstrip("/")
    if path.startswith("file:/"):
        path = path.removeprefix("file:")
    return "file://" + os.path.abspath(path)


def dataset_url(config: Config) -> str:
    return join(to_url(config.lake), "datasets", config.dataset)


def table_url(config: Config) -> str:
    """Where the config's generated images go: `<lake>/generated/<run>` unless it says otherwise."""
    name = config.generate.table or config.run
    return to_url(name) if "/" in name else join(to_url(config.lake), "generated", name)


def mounted(url: str) -> str:
    """The URL by which other than Spark opens `url`: Databricks mounts `dbfs:` at /dbfs on every machine."""
    return "file:///dbfs/" + url.removeprefix("dbfs:").lstrip("/") if url.startswith("dbfs:/") else url


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `url` and the path inside it."""
    url = mounted(url)
    if url.startswith("file:"):
        # Not through fsspec's parser, to which "::" in a file's name means a chain of filesystems.
        fs = fsspec.filesystem("file")
        return fs, fs._strip_protocol(url)
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: no filesystem for this URL: {error}") from error
    fs.invalidate_cache()  # of listings: other processes write too
    return fs, path


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return fs.exists(path)


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    return fs.cat_file(path)


def write_bytes(url: str, data: bytes) -> None:
    """Writes the file whole or not at all: under another name first, then renamed; an object store does that by itself."""
    fs, path = filesystem(url)
    if is_object_store(url):
        fs.pipe_file(path, data)
        return
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{uuid.uuid4().hex[:8]}"
    fs.pipe_file(part, data)
    fs.mv(part, path)


def read_json(url: str) -> Any:
    return json.loads(read_bytes(url))


def write_json(url: str, value: Any) -> None:
    write_bytes(url, (json.dumps(value, indent=2) + "\n").encode())


def remove(url: str) -> None:
    fs, path = filesystem(url)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def staging(url: str) -> str:
    """A URL beside `url` to write to before `replace`."""
    parent, name = url.rstrip("/").rsplit("/", 1)
    return f"{parent}/.{name}.{uuid.uuid4().hex[:8]}"


def replace(staged: str, url: str) -> None:
    """Puts the staged folder at `url`; what stood there is kept until the new one is in place."""
    replace_all({staged: url})


def replace_all(moves: dict[str, str]) -> None:
    """`replace` of several folders (staged: URL) together: where one cannot be put in place, all are put back.

    `UserError` where another job puts one of them in place at the same time; what that job put there stays.
    """
    recover(*moves.values())
    away, placed = [], []
    try:
        for url in moves.values():
            if exists(url):
                away.append(url)
                _displace(url)
        for staged, url in moves.items():
            placed.append(url)
            _move(staged, url)
    except Exception as error:
        taken = isinstance(error, _Taken)
        if taken:
            (placed or away).pop()
        for url in placed:
            _unmark_and_remove(url)
        _put_back(*(url for url in away if not (taken and _is_there(url))))
        raise
    _forget(*moves.values())


def recover(*urls: str) -> None:
    """Undoes a `replace_all` of these folders, in its order, that died on its way: all are the old ones again, or all are the new ones."""
    kept = [url for url in urls if exists(displaced(url))]
    if kept and (exists(_journal(kept[0])) if is_object_store(kept[0]) else not all(map(exists, urls))):
        _put_back(*urls)
    else:
        _forget(*urls)


def tidy(*urls: str) -> None:
    """For a job that is to write these folders: `recover`, and what jobs that were killed had staged for them is removed."""
    recover(*urls)
    for url in urls:
        parent, name = url.rstrip("/").rsplit("/", 1)
        fs, path = filesystem(parent)
        staged = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}")
        for found in fs.ls(path, detail=False) if fs.exists(path) else ():
            if staged.fullmatch(posixpath.basename(found.rstrip("/"))) and _is_stale(fs, found):
                fs.rm(found, recursive=True)


def _is_stale(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether the folder is a dead job's; False where the filesystem does not tell when its files were changed."""
    try:
        return max(fs.modified(name).timestamp() for name in fs.find(path) or [path]) < time.time() - _STALE
    except (NotImplementedError, OSError):
        return False


def displaced(url: str) -> str:
    """Where `replace` keeps what stood at `url`."""
    parent, name = url.rstrip("/").rsplit("/", 1)
    return f"{parent}/.{name}.old"


def _journal(url: str) -> str:
    """On object stores, what stands beside `displaced(url)` once that is whole: from then on it counts, and not what is at `url`.

    Of several folders the first is the first to have one; when they are in place it is the first to lose it, when they are put back the last.
    """
    return f"{displaced(url)}.whole"


def _displace(url: str) -> None:
    if is_object_store(url):
        _check_free(displaced(url))
        _copy(url, displaced(url))
        write_bytes(_journal(url), b"")
        _unmark_and_remove(url)
    else:
        _move(url, displaced(url))


def _put_back(*urls: str) -> None:
    back = [url for url in urls if exists(_journal(url) if is_object_store(url) else displaced(url))]
    # All before any: one that is missing says that this died on its way.
    for url in back:
        _unmark_and_remove(url)
    for url in reversed(back):
        if is_object_store(url):
            _copy(displaced(url), url)
            remove(_journal(url))
        else:
            _move(displaced(url), url)
    for url in urls:
        remove(displaced(url))


def _forget(*urls: str) -> None:
    for url in urls:
        remove(_journal(url))
    for url in urls:
        remove(displaced(url))


def _unmark_and_remove(url: str) -> None:
    for name in MARKERS:
        remove(join(url, name))
    remove(url)


class _Taken(UserError):
    """Another job has put a folder where this one was about to put its own."""


def _is_there(url: str) -> bool:
    fs, path = filesystem(url)
    # On an object store a folder that was emptied may still be listed.
    return bool(fs.find(path)) if is_object_store(url) else fs.exists(path)


def _check_free(url: str) -> None:
    if _is_there(url):
        raise _Taken(f"{url} is there, and was not a moment ago: another job writes it at the same time. What that job put there stays, and nothing of this one; wait for the other to end, and run this one again")


def _move(source: str, target: str) -> None:
    # A filesystem moves a folder into one that exists.
    _check_free(target)
    if is_object_store(source):
        _copy(source, target)
        remove(source)
    else:
        fs, path = filesystem(source)
        fs.mv(path, filesystem(target)[1], recursive=True)


def _copy(source: str, target: str) -> None:
    """On an object store; the files that say that a folder is whole come last."""
    fs, path = filesystem(source)
    into = filesystem(target)[1]
    names = fs.find(path)
    last = [name for name in names if posixpath.basename(name) in MARKERS]
    for some in ([name for name in names if name not in last], last):
        if some:
            fs.copy(some, [into + name.removeprefix(path) for name in some])
