"""Files that several jobs change: each changes what is there at that moment, and no change is lost.

S3 writes on the condition that an object is the one that was read. Elsewhere those who change a file of a folder do so
one after another: on a disk by a lock that goes with its process, on other stores by a file beside it.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import fsspec

from ..config import UserError
from .files import create, filesystem, join, mounted, read_bytes, remove, write_bytes

_SECONDS = 30  # that another job may be changing a file
_S3 = ("s3:", "s3a:", "s3n:")


def change(url: str, update: Callable[[bytes | None], bytes]) -> None:
    """Writes to the file what `update` makes of its bytes, or of None where there is none; of what is there by then, if
    another job writes it meanwhile: `update` is called again, and may raise to give it up.
    """
    while True:
        try:
            former = read_bytes(url)
        except FileNotFoundError:
            former = None
        data = update(former)
        if data == former or exchange(url, former, data):
            return


def exchange(url: str, former: bytes | None, data: bytes) -> bool:
    """Writes the file whole if it holds `former`, for None if there is none; whether it did.

    On an object store that is not S3, two that do so within the same moment may both believe to be first.
    """
    if former is None:
        return create(url, data)
    if url.startswith(_S3):
        return _exchange_object(*filesystem(url), former, data)
    with _alone(url):
        try:
            if read_bytes(url) != former:
                return False
        except FileNotFoundError:
            return False
        write_bytes(url, data)
        return True


def _exchange_object(fs: fsspec.AbstractFileSystem, path: str, former: bytes, data: bytes) -> bool:
    try:
        tag = fs.info(path)["ETag"]  # before it is read, which then is this one or a newer one
        if cast(Any, fs.cat_file(path)) != former:
            return False
        fs.pipe_file(path, data, IfMatch=tag)
        return True
    except FileNotFoundError:
        return False
    except OSError:  # That of a condition that is not met has no name of its own.
        present = cast(Any, fs.cat_file(path))
        if present == former:
            raise
        return present == data  # It was written, and the answer lost.


@contextlib.contextmanager
def _alone(url: str) -> Iterator[None]:
    """Nobody else is in this block for a file of the same folder; `UserError` where somebody is for too long."""
    folder, name = url.rsplit("/", 1)
    if mounted(url).startswith("file:") and (place := _locked(filesystem(folder)[1], url)) is not None:
        try:
            yield
        finally:
            os.close(place)
        return
    lock = join(folder, f".{name}.lock")
    _wait(lambda: create(lock, os.urandom(8).hex().encode()), url, f"; or, where no job runs, remove {lock}")
    try:
        yield
    finally:
        remove(lock)


def _locked(folder: str, url: str) -> int | None:
    """A descriptor that has the lock of a folder for as long as it is open; None where the mount has no locks."""
    place = os.open(folder, os.O_RDONLY)

    def lock() -> bool:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            return False

    try:
        _wait(lock, url)
        return place
    except OSError:
        os.close(place)
        return None
    except BaseException:
        os.close(place)
        raise


def _wait(take: Callable[[], bool], url: str, remedy: str = "") -> None:
    deadline = time.monotonic() + _SECONDS
    while not take():
        if time.monotonic() > deadline:
            raise UserError(
                f"{url}: another job has been changing it for {_SECONDS} seconds, which takes far less than one: see"
                f" whether one hangs, and run this one again{remedy}"
            )
        time.sleep(0.05)
