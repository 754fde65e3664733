"""Records of what was asked and answered, and of what became of it, in the lake: `<lake>/served/<model>`.

A folder of Parquet files, each written whole under a name of its own, which nothing replaces. A row is a request or a
feedback (`kind`); what does not apply is null.
"""

import datetime
import hashlib
import io
import logging
import math
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq

from .. import lake
from ..config import UserError, check_name
from . import spool

log = logging.getLogger(__name__)
KIND = "served requests"
SCHEMA = pa.schema(
    [
        pa.field("kind", pa.string(), False),  # "request" or "feedback"
        pa.field("request_id", pa.string(), False),
        pa.field("at", pa.timestamp("us", "UTC"), False),
        pa.field("user", pa.string()),  # a hash of the key by which traffic is divided, where a request has one
        pa.field("version", pa.int32()),
        pa.field("run", pa.string()),
        pa.field("step", pa.int64()),
        pa.field("call", pa.string()),
        pa.field("asked", pa.string()),  # JSON, without images
        pa.field("images", pa.int32()),  # how many were made or classified
        pa.field("label", pa.list_(pa.string())),  # the likeliest class of each
        pa.field("probability", pa.list_(pa.float32())),  # of that class
        pa.field("milliseconds", pa.float64()),
        pa.field("features", pa.list_(pa.list_(pa.float32()))),  # of each image that was sent
        pa.field("sent", pa.list_(pa.binary())),  # the images themselves, where that is asked for
        pa.field("correct_label", pa.string()),  # feedback: the class that it should have been
        pa.field("kept", pa.bool_()),  # feedback: whether what was made was kept
    ]
)
ADOPT = 60.0  # seconds between looks for rows that killed processes left
EVERY = 5.0  # seconds between files, where there is something to write
ROWS = 5_000  # after which one is written at once
HELD = 200_000  # rows that are held while the store does not answer; the oldest of more are lost, and told
_TRIES = 5  # at the end


def url(root: str, name: str) -> str:
    return lake.join(lake.to_url(root), "served", check_name("model", name))


def check(place: str) -> None:
    """`UserError` where something else than records is at the URL."""
    lake.check_replaceable(place, KIND, SCHEMA.names)


class Records:
    """Rows on their way to the lake. A thread writes them; `close` writes what is left.

    Meanwhile they are on this machine's disk, too: those of a process that was killed the next one writes, or another
    that is running.
    """

    def __init__(self, place: str):
        self._place = place
        self._folder = spool.folder(place)
        self._rows: list[dict] = []
        self._spool: spool.Spool | None = None  # of these rows
        self._files: list[tuple[spool.Spool, bytes, int]] = []  # where they wait, data, rows: not in the lake yet
        self._adopted = -math.inf  # when it was looked for rows of others
        self._wake, self._lock, self._is_closed = threading.Event(), threading.Lock(), False
        self._is_claimed = False
        self.lost = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, **row) -> None:
        with self._lock:
            if len(self._rows) >= HELD:  # The store hangs.
                self.lost += 1
                return
            row = {"at": datetime.datetime.now(datetime.UTC), **row}
            self._rows.append(row)
            self._spool = self._spool or spool.Spool(self._folder)
            self._spool.add(row)
            if len(self._rows) >= ROWS:
                self._wake.set()

    def close(self) -> None:
        self._is_closed = True
        self._wake.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_closed:
            self._wake.wait(EVERY)
            self._wake.clear()
            if self._write() and time.monotonic() > self._adopted + ADOPT:
                self._adopt()
        for _ in range(_TRIES):
            if self._write():
                self._adopt()
                return
            time.sleep(1)
        log.error("%d rows of %s could not be written and are lost", sum(rows for *_, rows in self._files), self._place)

    def _write(self) -> bool:
        """Writes what there is; whether all of it is in the lake. A file that could not be is tried again as it is."""
        with self._lock:
            rows, waiting = self._rows, self._spool
            self._rows, self._spool = [], None
        if rows:
            self._make_file(rows, waiting)
        while self._files:
            waiting, data, _ = self._files[0]
            if not self._put(waiting.name, data):
                self._forget()
                return False
            waiting.remove()
            self._files.pop(0)
        return True

    def _put(self, name: str, data: bytes) -> bool:
        """Writes a file to the lake; whether it is there."""
        try:
            if not self._is_claimed:
                lake.claim(self._place, KIND, SCHEMA.names)
                self._is_claimed = True
            lake.write_bytes(lake.join(self._place, f"{name}.parquet"), data)
        except Exception as error:  # of the store, of any type
            log.warning("%s cannot be written, and is tried again: %s: %s", self._place, type(error).__name__, error)
            return False
        return True

    def _adopt(self) -> None:
        """Writes the rows that processes which were killed have left on this machine."""
        self._adopted = time.monotonic()
        try:
            for name, rows in spool.orphans(self._folder):
                if rows and not self._put(name, _parquet(rows)):
                    return
                log.info("%d rows that a process left were written to %s", len(rows), self._place)
        except (OSError, ValueError, LookupError, pa.ArrowException):
            log.exception("rows that a process left in %s cannot be written", self._folder)

    def _make_file(self, rows: list[dict], waiting: spool.Spool) -> None:
        try:
            data = _parquet(rows)
        except Exception:  # A defect; the rows to come are to be written all the same.
            self.lost += len(rows)
            waiting.remove()
            log.exception("%d rows of %s cannot be made a file of and are lost", len(rows), self._place)
        else:
            self._files.append((waiting, data, len(rows)))

    def _forget(self) -> None:
        """Lets go of the oldest files, where too much is held."""
        while sum(rows for *_, rows in self._files) > HELD:
            waiting, _, rows = self._files.pop(0)
            waiting.remove()
            self.lost += rows
            log.error("%d rows of %s are lost, since the store has not answered for long", rows, self._place)


def user(key: str) -> str | None:
    """What stands for a key in a row."""
    return hashlib.sha256(key.encode()).hexdigest()[:16] if key else None


def _parquet(rows: list[dict]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out)
    return out.getvalue()


def read(place: str) -> pa.Table:
    """All records at the URL, each request once; no rows where there are none. `UserError` names a file that holds
    something else.

    A worker may die when it has recorded a request and not answered it yet; then another answers and records it, too.
    """
    return _once(read_files(place))


def _once(table: pa.Table) -> pa.Table:
    """The rows without those of requests that a newer row tells of."""
    newest: dict[str, tuple[datetime.datetime, int]] = {}
    kept = []
    columns = (table[name].to_pylist() for name in ("kind", "request_id", "at"))
    for place, (kind, request_id, at) in enumerate(zip(*columns, strict=True)):
        if kind != "request":
            kept.append(place)
        elif request_id not in newest or at >= newest[request_id][0]:
            newest[request_id] = (at, place)
    kept += [place for _, place in newest.values()]
    return table if len(kept) == table.num_rows else table.take(sorted(kept))


def read_files(place: str) -> pa.Table:
    """The rows of all files at the URL, as they are."""
    fs, path = lake.filesystem(place)
    names = sorted(name for name in fs.find(path) if name.endswith(".parquet")) if fs.exists(path) else []
    names = [name for name in names if name.rsplit("/", 1)[1].startswith("part-")]
    tables = []
    for name in names:
        try:
            with fs.open(name, "rb") as stream:
                tables.append(pq.read_table(stream).select(SCHEMA.names).cast(SCHEMA))
        except (pa.ArrowException, KeyError) as error:
            raise UserError(f"{place}: {name} is no file that a service wrote: {error}; move it away") from None
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()
