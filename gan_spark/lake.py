"""Paths in the lake: every one is a URL, and one set of calls serves all stores.

`file:`, `hdfs:`, `s3a:` and the rest go through fsspec; `dbfs:` through its mount. Object stores have no rename:
there a folder is replaced by copies, and is without its MARKERS for as long as that takes.
"""

import json
import os
import posixpath
import uuid
from typing import Any

import fsspec

from .config import Config, UserError


MANIFEST, SUCCESS = MARKERS = ("_gan_spark.json", "_SUCCESS")  # of a dataset, and of a table, that is whole
_OBJECT_STORES = ("s3", "s3a", "s3n", "gs", "gcs", "abfs", "abfss", "wasb", "wasbs")


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
    """`replace` of several folders (staged: URL) together: where one cannot be put in place, all are put back."""
    for url in moves.values():
        recover(url)
    try:
        for url in moves.values():
            if exists(url):
                _displace(url)
        for staged, url in moves.items():
            _move(staged, url)
    except Exception:
        for url in moves.values():
            _put_back(url)
        raise
    for url in moves.values():
        remove(_journal(url))
        remove(displaced(url))


def recover(url: str) -> None:
    """Undoes a `replace` that died on its way."""
    if is_object_store(url) or not exists(url):
        _put_back(url)
    else:
        remove(displaced(url))


def displaced(url: str) -> str:
    """Where `replace` keeps what stood at `url`."""
    parent, name = url.rstrip("/").rsplit("/", 1)
    return f"{parent}/.{name}.old"


def _journal(url: str) -> str:
    """On object stores, what stands beside `displaced(url)` once that is whole: from then on it counts, and not what is at `url`."""
    return f"{displaced(url)}.whole"


def _displace(url: str) -> None:
    if is_object_store(url):
        _copy(url, displaced(url))
        write_bytes(_journal(url), b"")
        _unmark_and_remove(url)
    else:
        _move(url, displaced(url))


def _put_back(url: str) -> None:
    if not is_object_store(url):
        if exists(displaced(url)):
            remove(url)
            _move(displaced(url), url)
        return
    if exists(_journal(url)):
        _unmark_and_remove(url)
        _copy(displaced(url), url)
        remove(_journal(url))
    remove(displaced(url))


def _unmark_and_remove(url: str) -> None:
    for name in MARKERS:
        remove(join(url, name))
    remove(url)


def _move(source: str, target: str) -> None:
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
