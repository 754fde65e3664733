"""Rows on this machine's disk while they wait to be written to the lake, so that a process that is killed loses none.

A file of lines of JSON, locked by the process that fills it, and named after the file of the lake that its rows are to
be: whoever finds one without its process writes it to the lake under that name, once or again.
"""

import base64
import contextlib
import datetime
import fcntl
import hashlib
import json
import logging
import os
import re
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator

log = logging.getLogger(__name__)
_NAME = re.compile(r"part-\d+-[0-9a-f]{8}")


class Spool:
    """A file that rows are added to. Where the disk cannot take them, that is told, and memory alone holds them."""

    def __init__(self, folder: str):
        """`folder` is "" where none can be written to."""
        self.name = f"part-{time.time_ns()}-{uuid.uuid4().hex[:8]}"
        self._path, self._file = os.path.join(folder, self.name), -1
        if folder:
            try:
                self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
                fcntl.flock(self._file, fcntl.LOCK_EX)
            except OSError as error:
                self._give_up(error)

    def add(self, row: dict) -> None:
        if self._file < 0:
            return
        try:
            os.write(self._file, _line(row))
        except (OSError, TypeError, ValueError) as error:  # a full disk; a row that is no JSON, which is a defect
            self._give_up(error)

    def remove(self) -> None:
        """Once the rows are in the lake."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            os.close(self._file)
            self._file = -1

    def _give_up(self, error: Exception) -> None:
        log.warning("rows are held in memory alone: %s: %s", self._path, error)
        self.remove()


def folder(place: str) -> str:
    """The folder of this machine for rows that go to the URL; "" where it cannot be had, or is somebody else's."""
    mine = os.path.join(tempfile.gettempdir(), f"gan_spark-{os.getuid()}")
    path = os.path.join(mine, hashlib.sha256(place.encode()).hexdigest()[:16])
    try:
        os.makedirs(mine, mode=0o700, exist_ok=True)
        state = os.lstat(mine)
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
            raise OSError(0, "it is there, and not a folder of this user alone")
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        log.warning("rows that wait for the lake are held in memory alone: %s: %s", mine, error.strerror)
        return ""
    return path


@contextlib.contextmanager
def _alone(path: str) -> Iterator[int | None]:
    """A file that no other process has; None where one has it, or it is gone."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file if os.path.exists(path) else None
    except BlockingIOError:
        yield None
    finally:
        os.close(file)


def orphans(folder: str) -> Iterator[tuple[str, list[dict]]]:
    """(Name, rows) of each file whose process has ended. It is removed when the next one is asked for, and stays where
    the iteration ends over it.
    """
    for name in sorted(os.listdir(folder)) if folder else ():
        if not _NAME.fullmatch(name):
            continue
        path = os.path.join(folder, name)
        with _alone(path) as file:
            if file is None:
                continue
            with open(file, "rb", closefd=False) as stream:
                rows = list(_rows(stream.read()))
            yield name, rows
            os.unlink(path)


def _line(row: dict) -> bytes:
    plain = {**row, "at": row["at"].isoformat()}
    if row.get("sent") is not None:
        plain["sent"] = [base64.b64encode(one).decode() for one in row["sent"]]
    return json.dumps(plain, separators=(",", ":")).encode() + b"\n"


def _rows(data: bytes) -> Iterator[dict]:
    """The rows of whole lines: half a line is of a request that was not answered."""
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            row = json.loads(line)
            row["at"] = datetime.datetime.fromisoformat(row["at"])
            if row.get("sent") is not None:
                row["sent"] = [base64.b64decode(one) for one in row["sent"]]
            yield row
