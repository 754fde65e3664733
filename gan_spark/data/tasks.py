"""What a task of an ingest does: rows of a source are decoded, and written as Parquet files; it reports a line a file.

Another attempt at the same task writes other files, and what a task that failed has written is in no report.
"""

import contextlib
import dataclasses
import hashlib
import math
import uuid
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark import TaskContext

from .. import lake
from ..config import Ingest
from . import captions, images, parts, schema, sources, splits

REPORT = "split string, part string, name string, rows long, groups long, flat long, digest binary, seal string"
REJECTED = ""  # stands for a split in what tasks report
UNCHANGED = "unchanged"  # likewise: rows that are in the dataset already, as their file's bytes show
CHANGED = "changed since it was ingested under this id; ingest.mode = 'replace', or give it a new id"
ROW_GROUP_BYTES = 16 * 2**20
_HASH_BYTES = 8
_FLAT = 16  # levels of 256: pixels that span fewer use under 1/16 of their range
_DECODED = {  # `split` may be REJECTED or UNCHANGED; `reason` is None for what is not rejected
    "id": pa.string(),
    "image": pa.binary(),
    "label": pa.int32(),
    "caption": pa.string(),
    "embedding": pa.binary(),
    "source_version": pa.binary(),
    "source_hash": pa.binary(),
    "split": pa.string(),
    "part": pa.string(),
    "reason": pa.string(),
    "flat": pa.bool_(),
}


@dataclasses.dataclass(frozen=True)
class Work:
    """What all tasks of an ingest are told."""

    config: Ingest
    manifest: schema.Manifest
    kept: frozenset[str]  # ids of the training images that keep their label, for parts 'labels'
    folder: str  # URL
    rejects: str  # URL
    group_rows: int  # of a row group
    token: str = ""  # in the files' names, where other jobs write to the same folder


def rows_schema(manifest: schema.Manifest) -> pa.Schema:
    fields = [pa.field("id", pa.string(), False), pa.field("image", pa.binary(), False)]
    fields += [pa.field("label", pa.int32(), False)] * bool(manifest.classes)
    fields += [pa.field("caption", pa.string(), False)] * manifest.captioned
    fields += [pa.field("embedding", pa.binary(), False)] * bool(manifest.embedding)
    return pa.schema([*fields, *(pa.field(name, pa.binary()) for name in schema.SOURCE_COLUMNS)])


def rejects_schema() -> pa.Schema:
    return pa.schema([("id", pa.string()), ("reason", pa.string())])


class ParquetFile:
    """A Parquet file of row groups of `group_rows` rows, or of fewer where their captions are long; opened when it has
    some.
    """

    def __init__(self, url: str, columns: pa.Schema, group_rows: int):
        self.url, self.schema, self.group_rows = url, columns, group_rows
        self.pending, self.pending_rows, self.writer = [], 0, None
        self.rows, self.groups, self.flat, self.digest = 0, 0, 0, 0
        self.mark, self.seal = uuid.uuid4().hex[:16], ""  # the seal once it is closed

    def add(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        self.pending_rows += table.num_rows
        self.pending.append(table)
        while self.pending_rows >= self.group_rows:
            rows = pa.concat_tables(self.pending)
            self._put(rows.slice(0, self.group_rows))
            self.pending, self.pending_rows = [rows.slice(self.group_rows)], self.pending_rows - self.group_rows
        if sum(rows.nbytes for rows in self.pending) > 2 * ROW_GROUP_BYTES:  # Images are counted, captions are not.
            self.flush()

    def flush(self) -> None:
        self._put(pa.concat_tables(self.pending) if self.pending else self.schema.empty_table())
        self.pending, self.pending_rows = [], 0

    def _put(self, table: pa.Table) -> None:
        with lake.writing(self.url):
            self._write(table)

    def _write(self, table: pa.Table) -> None:
        if self.writer is None:
            fs, path = lake.filesystem(self.url)
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self.stream = fs.open(path, "wb")
            self.writer = pq.ParquetWriter(
                self.stream,
                self.schema.with_metadata({schema.MARK: self.mark}),
                compression="snappy",
                use_dictionary=["label", "reason"],
                write_statistics=["id", "label"],
            )
        self.writer.write_table(table, row_group_size=self.group_rows)
        self.groups += 1

    def __enter__(self) -> "ParquetFile":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None and self.pending_rows:
            self.flush()
        if self.writer is not None:
            with lake.writing(self.url):
                self.writer.close()
                self.seal = f"{self.stream.tell()}:{self.mark}"
                self.stream.close()


def write(work: Work, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Writes a partition's images, a file a split and part, and its rejects; gives one row of REPORT a file."""
    context = TaskContext.get()
    name = f"part-{context.partitionId():05d}-{context.taskAttemptId()}{work.token and '-' + work.token}"
    unchanged = 0
    with contextlib.ExitStack() as stack:
        files = {}

        def file_of(split: str, part: str) -> ParquetFile:
            if (split, part) not in files:
                if split == REJECTED:
                    file = ParquetFile(lake.join(work.rejects, f"{name}.parquet"), rejects_schema(), 10_000)
                else:
                    place = lake.join(
                        splits.folder(work.folder, split, part), f"{name}-{split}{part and '-' + part}.parquet"
                    )
                    file = ParquetFile(place, rows_schema(work.manifest), work.group_rows)
                files[split, part] = stack.enter_context(file)
            return files[split, part]

        previous = None
        # However many rows Spark hands over at once, only so many are held decoded.
        max_rows = max(1, ROW_GROUP_BYTES // math.prod(work.manifest.shape))
        for piece in _pieces(batches, max_rows):
            decoded, previous = _decode(work, piece, previous)
            keys = list(zip(decoded["split"].to_pylist(), decoded["part"].to_pylist(), strict=True))
            for key in sorted(set(keys)):
                of_key = decoded.filter(pa.array([row_key == key for row_key in keys]))
                if key[0] == UNCHANGED:
                    unchanged += of_key.num_rows
                    continue
                file = file_of(*key)
                rows = of_key.select(file.schema.names).cast(file.schema)
                file.add(rows)
                file.flat += pc.sum(of_key["flat"]).as_py() or 0
                if key[0] != REJECTED:
                    file.digest += _digest(rows)
    yield _report(files, unchanged)


def _report(files: dict[tuple[str, str], ParquetFile], unchanged: int) -> pa.RecordBatch:
    rows = [
        (split, part, file.url.rsplit("/", 1)[1], file.rows, file.groups, file.flat, file.digest, file.seal)
        for (split, part), file in files.items()
    ]
    if unchanged:
        rows.append((UNCHANGED, "", "", unchanged, 0, 0, 0, ""))
    columns = list(zip(*rows, strict=True)) or [()] * 8
    digests = [(digest % 2**64).to_bytes(8, "big") for digest in columns[6]]
    kinds = (pa.string(), pa.string(), pa.string(), pa.int64(), pa.int64(), pa.int64(), pa.binary(), pa.string())
    arrays = [pa.array(values, kind) for values, kind in zip((*columns[:6], digests, columns[7]), kinds, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, [column.split()[0] for column in REPORT.split(", ")])


def _pieces(batches: Iterator[pa.RecordBatch], max_rows: int) -> Iterator[pa.RecordBatch]:
    return (batch.slice(start, max_rows) for batch in batches for start in range(0, batch.num_rows, max_rows))


def _digest(table: pa.Table) -> int:
    told = [name for name in table.column_names if name not in ("image", *schema.SOURCE_COLUMNS)]
    rows = zip(*(table[name].to_pylist() for name in told), strict=True)
    total = 0
    for values, image in zip(rows, table["image"].to_pylist(), strict=True):
        digest = hashlib.blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=8)
        digest.update(image)
        total += int.from_bytes(digest.digest(), "big")
    return total


def _decode(work: Work, batch: pa.RecordBatch, previous: str | None) -> tuple[pa.Table, str | None]:
    """(table of _DECODED, the last id that was kept).

    Rows come sorted by a hash of their id, so equal ids are neighbours; `previous` is the id before the batch.
    """
    labels = {name: index for index, name in enumerate(work.manifest.classes)}
    ids = batch.column("id").to_pylist()
    if (
        not work.config.parts
        and previous not in ids
        and len(set(ids)) == len(ids)
        and (table := _whole(batch, work.config, work.manifest, labels)) is not None
    ):
        return table, ids[-1]
    decoded = []
    for row in batch.to_pylist():
        id, reason = row["id"], row["reason"]
        if id == previous:
            reason = "duplicate id; the first row with it was kept"
        elif reason is None:
            try:
                decoded += _decoded_rows(row, work, labels)
                previous = id
            except images.BadImage as error:
                reason = str(error)
        if reason is not None:
            decoded.append(_left_out(row, REJECTED, reason))
    columns = list(zip(*decoded, strict=True)) or [()] * len(_DECODED)
    return pa.table(
        {name: pa.array(values, kind) for (name, kind), values in zip(_DECODED.items(), columns, strict=True)}
    ), previous


def _left_out(row: dict, split: str, reason: str | None) -> tuple:
    """The row of _DECODED of a source row that is not written."""
    return (row["id"], None, -1, None, None, None, None, split, "", reason, False)


def _decoded_rows(row: dict, work: Work, labels: dict[str, int]) -> list[tuple]:
    """Rows of _DECODED that a source row becomes, one a part. Raises `BadImage` where it cannot be used."""
    config, manifest = work.config, work.manifest
    content, content_hash = _content(row, config)
    if row["known_hash"] is not None:
        if content_hash == row["known_hash"]:
            return [_left_out(row, UNCHANGED, None)]
        raise images.BadImage(CHANGED)
    if labels and row["label"] not in labels:
        raise images.BadImage("no label, in a dataset with labels")
    caption = captions.phrasings(row["caption"]) if manifest.captioned else None
    embedding = _embedding(row["embedding"], manifest.embedding) if manifest.embedding else None
    split, label = _split(row["id"], row["split"], config), labels.get(row["label"], -1)
    pixels = _pixels(row, content, config)
    versions = parts.divide(pixels, row["id"], label, row["label"], split, config, work.kept)
    return [
        (
            id,
            _encoded(version, manifest.encoding),
            kept_label,
            caption,
            embedding,
            row["source_version"],
            content_hash,
            split,
            part,
            None,
            _flat(version),
        )
        for id, part, kept_label, version in versions
    ]


def _split(id: str, split: str | None, config: Ingest) -> str:
    """The source's split, less the share of its training images that goes to validation; without one, the id's."""
    if split is None:
        return schema.split_of(id, config.validation, config.test)
    return schema.split_of(id, config.validation, 0) if split == "train" else split


def _embedding(values: list | None, shape: tuple[int, ...]) -> bytes:
    if values is None or len(values) != math.prod(shape):
        raise images.BadImage(
            f"embedding of {len(values or ())} numbers; expected {math.prod(shape)}, as in the first row"
        )
    array = np.array(values, np.float32)
    if not np.isfinite(array).all():
        raise images.BadImage("embedding with a number that is not finite")
    return schema.npy_header(shape, np.float32) + array.tobytes()


def _whole(batch: pa.RecordBatch, config: Ingest, manifest: schema.Manifest, labels: dict[str, int]) -> pa.Table | None:
    """The table that `_decode` gives, without a loop over images; None where there must be one.

    There need be none where every row already has its pixels in the dataset's shape.
    """
    content, size, count = batch.column("content"), math.prod(manifest.shape), batch.num_rows
    names = batch.column("label").to_pylist()
    if manifest.encoding != "raw" or manifest.captioned or manifest.embedding or not count:
        return None
    if content.null_count or batch.column("reason").null_count < count or (labels and not labels.keys() >= set(names)):
        return None
    if any(
        batch.column(name).to_pylist() != [value] * count
        for name, value in zip(("height", "width", "channels"), manifest.shape, strict=True)
    ):
        return None
    offsets = np.frombuffer(content.buffers()[1], np.int32)[content.offset : content.offset + count + 1]
    if (np.diff(offsets) != size).any():
        return None
    header = np.frombuffer(schema.npy_header(manifest.shape), np.uint8)
    stored = np.empty((count, len(header) + size), np.uint8)
    stored[:, : len(header)] = header
    stored[:, len(header) :] = np.frombuffer(content.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(
        count, size
    )
    starts = np.arange(count + 1, dtype=np.int32) * stored.shape[1]
    splits = [
        _split(id, split, config)
        for id, split in zip(batch.column("id").to_pylist(), batch.column("split").to_pylist(), strict=True)
    ]
    return pa.table(
        {
            "id": batch.column("id"),
            "image": pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(starts), pa.py_buffer(stored)]),
            "label": pa.array([labels.get(name, -1) for name in names], pa.int32()),
            "source_version": batch.column("source_version"),
            "source_hash": pa.nulls(count, pa.binary()),
            "split": pa.array(splits, pa.string()),
            "part": pa.array([""] * count, pa.string()),
            "flat": pa.array(np.ptp(stored[:, len(header) :], axis=1) < _FLAT),
        }
    )


def _flat(pixels: np.ndarray) -> bool:
    return int(pixels.max()) - int(pixels.min()) < _FLAT


def _encoded(pixels: np.ndarray, encoding: str) -> bytes:
    return schema.npy_header(pixels.shape) + pixels.tobytes() if encoding == "raw" else images.encode_png(pixels)


def _content(row: dict, config: Ingest) -> tuple[bytes, bytes | None]:
    """(the row's bytes, a hash of those that were read from a file). Raises `BadImage` where that cannot be."""
    if row["content"] is not None:
        return row["content"], None
    content = sources.folder.read(row["url"], config.max_file_mb)
    return content, hashlib.blake2b(content, digest_size=_HASH_BYTES).digest()


def _pixels(row: dict, content: bytes, config: Ingest) -> np.ndarray:
    height, width, channels = config.height, config.width, config.channels
    if row["content"] is None or row["height"] is None:
        return images.decode(content, height, width, channels, config.fit, config.max_megapixels, config.range)
    pixels = np.frombuffer(content, np.uint8).reshape(row["height"], row["width"], row["channels"])
    if pixels.shape[2] != channels:
        pixels = images.convert(pixels, channels)
    return images.resize(pixels, height, width, config.fit)


def decode(row: dict, config: Ingest) -> np.ndarray:
    """The image of a source row at the dataset's size: uint8 [h, w, c]. Raises `BadImage` where it has none."""
    return _pixels(row, _content(row, config)[0], config)
