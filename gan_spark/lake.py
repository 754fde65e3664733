"""Paths in the lake: every one is a URL, and one set of calls serves all stores.

`file:`, `hdfs:`, `s3a:` and the rest go through fsspec; `dbfs:` through its mount.
"""

import json
import os
import uuid
from typing import Any

import fsspec

from .config import Config, UserError


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


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec filesystem of `url` and the path inside it."""
    if url.startswith("dbfs:/"):
        url = "file:///dbfs/" + url.removeprefix("dbfs:").lstrip("/")
    if url.startswith("file:"):
        # Not through fsspec's parser, to which "::" in a file's name means a chain of filesystems.
        fs = fsspec.filesystem("file")
        return fs, fs._strip_protocol(url)
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"{url}: no filesystem for this URL: {error}") from error


def join(url: str, *parts: str) -> str:
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    fs, path = filesystem(url)
    return fs.exists(path)


def read_bytes(url: str) -> bytes:
    fs, path = filesystem(url)
    return fs.cat_file(path)


def write_bytes(url: str, data: bytes) -> None:
    """Writes the file whole or not at all: under another name first, then renamed."""
    fs, path = filesystem(url)
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
                _move(url, displaced(url))
        for staged, url in moves.items():
            _move(staged, url)
    except Exception:
        for url in moves.values():
            if exists(displaced(url)):
                remove(url)
                _move(displaced(url), url)
        raise
    for url in moves.values():
        remove(displaced(url))


def recover(url: str) -> None:
    """Undoes a `replace` that died between its two renames."""
    if exists(displaced(url)):
        if exists(url):
            remove(displaced(url))
        else:
            _move(displaced(url), url)


def _move(source: str, target: str) -> None:
    fs, path = filesystem(source)
    fs.mv(path, filesystem(target)[1], recursive=True)


def displaced(url: str) -> str:
    """Where `replace` keeps what stood at `url`."""
    parent, name = url.rstrip("/").rsplit("/", 1)
    return f"{parent}/.{name}.old"
