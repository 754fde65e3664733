"""Replacement of whole folders of the lake, so that a job that dies leaves the old one or the new one.

Object stores have no rename: there a folder is replaced by copies, and is without its MARKERS for as long as that
takes.
"""

import posixpath
import re
import time
import uuid

import fsspec

from ..config import UserError
from .files import exists, filesystem, is_object_store, join, read_bytes, remove, write_bytes

MANIFEST, SUCCESS = MARKERS = ("_gan_spark.json", "_SUCCESS")  # of a dataset, and of a table, that is whole
OWNER = "_made_by_gan_spark.json"  # of a folder that this project made
SNAPSHOTS = "_snapshots"  # folder of a dataset in which each of its snapshots is described
_STALE = 24 * 3600  # seconds without a change, after which what was staged is a dead job's


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
    for staged, url in moves.items():
        _adopt(staged, url)
    away, placed = [], []
    try:
        for url in moves.values():
            if exists(url):
                away.append(url)
                _displace(url)
        for staged, url in moves.items():
            placed.append(url)
            _move(staged, url)
    except BaseException as error:  # a signal that ends the job, too
        taken = isinstance(error, _Taken)
        if taken:
            (placed or away).pop()
        for url in placed:
            _unmark_and_remove(url)
        _put_back(*(url for url in away if not (taken and _is_there(url))))
        raise
    _forget(*moves.values())


def recover(*urls: str) -> None:
    """Ends a `replace_all` of these folders that died half-way: all are the old ones again, or all are the new ones.

    `urls` come in the order in which `replace_all` had them.
    """
    kept = [url for url in urls if exists(displaced(url))]
    if kept and (exists(journal(kept[0])) if is_object_store(kept[0]) else not all(map(exists, urls))):
        _put_back(*urls)
    else:
        _forget(*urls)


def tidy(*urls: str) -> None:
    """Prepares these folders for a job that writes them: `recover`, and removal of what killed jobs had staged, which
    its `OWNER` shows.
    """
    recover(*urls)
    for url in urls:
        parent, name = url.rstrip("/").rsplit("/", 1)
        fs, path = filesystem(parent)
        staged = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}")
        for entry in fs.ls(path, detail=False) if fs.exists(path) else ():
            entry = entry.rstrip("/")
            if staged.fullmatch(posixpath.basename(entry)) and _is_ours(fs, entry) and _is_stale(fs, entry):
                fs.rm(entry, recursive=True)


def _is_ours(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    return fs.exists(f"{path}/{OWNER}") or not fs.find(path)


def _is_stale(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether the folder is a dead job's; False where the filesystem does not tell when its files were changed."""
    try:
        return max(fs.modified(name).timestamp() for name in fs.find(path) or [path]) < time.time() - _STALE
    except (NotImplementedError, OSError):
        return False


def displaced(url: str) -> str:
    """The URL at which `replace` keeps what stood at `url`."""
    parent, name = url.rstrip("/").rsplit("/", 1)
    return f"{parent}/.{name}.old"


def journal(url: str) -> str:
    """The marker that stands beside `displaced(url)` on object stores once that is whole.

    From then on the displaced folder counts, and not what is at `url`.
    Of several folders the first is the first to have one; when they are in place it is the first to lose it, when they
    are put back the last.
    """
    return f"{displaced(url)}.whole"


def _displace(url: str) -> None:
    if is_object_store(url):
        _check_free(displaced(url))
        _copy(url, displaced(url))
        write_bytes(journal(url), b"")
        _unmark_and_remove(url)
    else:
        _move(url, displaced(url))


def _put_back(*urls: str) -> None:
    back = [url for url in urls if exists(journal(url) if is_object_store(url) else displaced(url))]
    # All before any: one that is missing says that this died on its way.
    for url in back:
        _unmark_and_remove(url)
    for url in reversed(back):
        if is_object_store(url):
            _copy(displaced(url), url)
            remove(journal(url))
        else:
            _move(displaced(url), url)
    for url in urls:
        _discard(displaced(url))


def _forget(*urls: str) -> None:
    for url in urls:
        remove(journal(url))
    for url in urls:
        _discard(displaced(url))


def _unmark_and_remove(url: str) -> None:
    for name in MARKERS:
        remove(join(url, name))
    _discard(url)


def _adopt(staged: str, url: str) -> None:
    """Gives a folder of a former version, which has none, the staged folder's `OWNER`, as it may soon be in halves."""
    if exists(url) and exists(join(staged, OWNER)) and not exists(join(url, OWNER)):
        write_bytes(join(url, OWNER), read_bytes(join(staged, OWNER)))


def _discard(url: str) -> None:
    """Removes a folder, its `OWNER` last: what a job that dies over it leaves can still be told as ours."""
    if exists(join(url, OWNER)):
        fs, path = filesystem(url)
        for entry in fs.ls(path, detail=False):
            if posixpath.basename(entry.rstrip("/")) not in (OWNER, ""):
                fs.rm(entry, recursive=True)
    remove(url)


class _Taken(UserError):
    """Another job has put a folder where this one was about to put its own."""


def _is_there(url: str) -> bool:
    fs, path = filesystem(url)
    # On an object store a folder that was emptied may still be listed.
    return bool(fs.find(path)) if is_object_store(url) else fs.exists(path)


def _check_free(url: str) -> None:
    if _is_there(url):
        raise _taken(url)


def _taken(url: str) -> _Taken:
    return _Taken(
        f"{url} is there, and was not a moment ago: another job writes it at the same time. What that job put there"
        " stays, and nothing of this one; wait for the other to end, and run this one again"
    )


def _move(source: str, target: str) -> None:
    # A local filesystem moves a folder into one that exists; HDFS refuses that in the same instant.
    _check_free(target)
    if is_object_store(source):
        _copy(source, target)
        remove(source)
    else:
        fs, path = filesystem(source)
        try:
            fs.mv(path, filesystem(target)[1], recursive=True)
        except FileExistsError as error:
            raise _taken(target) from error


def _copy(source: str, target: str) -> None:
    """Copies a folder on an object store: first what says that it is ours, last what says that it is whole."""
    fs, path = filesystem(source)
    into = filesystem(target)[1]
    names = fs.find(path)
    owner = [name for name in names if posixpath.basename(name) == OWNER]
    markers = [name for name in names if posixpath.basename(name) in MARKERS]
    for group in (owner, [name for name in names if name not in owner + markers], markers):
        if group:
            fs.copy(group, [into + name.removeprefix(path) for name in group])
