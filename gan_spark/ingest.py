"""DataFrame of images -> Petastorm dataset, and a table of what was rejected and why.

Rows in = rows written + rows in `<dataset>.rejected`. Everything is staged first and put in
place by renames, so a job that fails leaves the old dataset as it was.

One pass does it all: a task decodes its rows and writes its own Parquet files, and hands the
driver one line a file. Files of tasks that failed half-way are in no line, and are removed.
"""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import logging
import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import functions as F

from . import images, lake, schema, sources
from .config import Config, Ingest, UserError

log = logging.getLogger(__name__)
_FILE_BYTES = 128 * 2**20
_ROW_GROUP_BYTES = 16 * 2**20
_WRITTEN = "split string, name string, rows long, digest binary"
_REJECTED = ""  # stands for a split in what tasks report


def ingest(spark, config: Config) -> dict:
    """Reads the config's source into `<lake>/datasets/<dataset>`, replacing what was there."""
    return write(spark, sources.open_source(spark, config.ingest), lake.dataset_url(config), config.ingest)


def write(spark, source: sources.Source, url: str, config: Ingest) -> dict:
    """Decodes, splits, shuffles and writes `source`; returns the counts.

    Raises `UserError` where no image at all can be used for training.
    """
    from petastorm.etl.dataset_metadata import materialize_dataset

    shape = (config.height, config.width, config.channels)
    encoding = schema.choose_encoding(config.encoding, shape)
    petastorm_schema = schema.unischema(shape, encoding, bool(source.classes))
    row_bytes = int(np.prod(shape))
    # A task a file: every core decodes. Few files, as Petastorm's metadata takes a task for each.
    files = max(config.planned_workers, spark.sparkContext.defaultParallelism, math.ceil(source.count * row_bytes / _FILE_BYTES))
    group_rows = max(1, min(_ROW_GROUP_BYTES // row_bytes, source.count // (16 * config.planned_workers)))
    log.info("ingest: about %d images to %s in %d files a split", source.count, url, files)

    staged, staged_rejects = lake.staging(url), lake.staging(f"{url}.rejected")
    rows = (
        source.frame.withColumn("order", F.xxhash64("id"))
        .repartition(files, "order")
        .sortWithinPartitions("order", "id", F.xxhash64("content", "url"))
        .drop("order")
    )
    work = functools.partial(_write, config, encoding, source.classes, staged, staged_rejects, group_rows)
    try:
        with materialize_dataset(spark, staged, petastorm_schema):
            written = rows.mapInArrow(work, _WRITTEN).collect()
            counts = {split: sum(file["rows"] for file in written if file["split"] == split) for split in (*schema.SPLITS, _REJECTED)}
            _settle(staged, staged_rejects, written)
            if not counts["train"]:
                raise UserError(f"no image to train on among {sum(counts.values())}: {_reasons(spark, staged_rejects) or 'the splits leave none'}")
        rejected = counts.pop(_REJECTED)
        _check(spark, staged, counts)
        manifest = schema.Manifest(
            *shape, encoding, source.classes, counts, rejected, _fingerprint(written), dataclasses.asdict(config),
            datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )  # fmt: skip
        schema.write_manifest(staged, manifest)
        lake.replace_all({staged_rejects: f"{url}.rejected", staged: url})
    finally:
        lake.remove(staged)
        lake.remove(staged_rejects)
    return {"dataset": url, "rows": sum(counts.values()), "rejected": rejected, "splits": counts, "rejects": f"{url}.rejected", "fingerprint": manifest.fingerprint}


def _settle(staged: str, staged_rejects: str, written: list) -> None:
    """Removes the files of tasks that failed, and sees to it that the table of rejects has a file."""
    names = {file["name"] for file in written}
    for folder in (staged, staged_rejects):
        fs, path = lake.filesystem(folder)
        for name in fs.find(path):
            if name.rsplit("/", 1)[1] not in names:
                fs.rm_file(name)
    if not any(file["split"] == _REJECTED for file in written):
        with _File(lake.join(staged_rejects, "part-00000.parquet"), _rejects_schema(), 1) as file:
            file.flush()


def _check(spark, staged: str, counts: dict[str, int]) -> None:
    """What the tasks say that they wrote is what is there to be read."""
    found = {row["split"]: row["count"] for row in spark.read.parquet(staged).groupBy("split").count().collect()}
    if found != {split: count for split, count in counts.items() if count}:
        raise RuntimeError(f"{counts} rows were written and {found} are to be read: rows were lost, nothing was replaced")


def _reasons(spark, staged_rejects: str) -> str:
    rejects = spark.read.parquet(staged_rejects).groupBy("reason").count().orderBy(F.desc("count"), "reason").limit(3).collect()
    return "; ".join(f"{row['count']} x {row['reason']}" for row in rejects)


def _fingerprint(written: list) -> str:
    """Of every id, image, label and split, in whatever order and files they are: the sum of the rows' digests."""
    totals = {split: [0, 0] for split in schema.SPLITS}
    for file in written:
        if file["split"] != _REJECTED:
            totals[file["split"]][0] += file["rows"]
            totals[file["split"]][1] += int.from_bytes(file["digest"], "big")
    text = ",".join(f"{split}:{rows}:{digest % 2**64}" for split, (rows, digest) in sorted(totals.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- in tasks --------------------------------------------------------------------------


def _rows_schema(labelled: bool) -> pa.Schema:
    fields = [pa.field("id", pa.string(), False), pa.field("image", pa.binary(), False)]
    return pa.schema(fields + [pa.field("label", pa.int32(), False)] * labelled)


def _rejects_schema() -> pa.Schema:
    return pa.schema([("id", pa.string()), ("reason", pa.string())])


class _File:
    """A Parquet file of row groups of `group_rows` rows, opened when it has some."""

    def __init__(self, url: str, schema: pa.Schema, group_rows: int):
        self.url, self.schema, self.group_rows = url, schema, group_rows
        self.parts, self.held, self.rows, self.digest, self.writer = [], 0, 0, 0, None

    def add(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        self.held += table.num_rows
        self.parts.append(table)
        while self.held >= self.group_rows:
            held = pa.concat_tables(self.parts)
            self._put(held.slice(0, self.group_rows))
            self.parts, self.held = [held.slice(self.group_rows)], self.held - self.group_rows

    def flush(self) -> None:
        self._put(pa.concat_tables(self.parts) if self.parts else self.schema.empty_table())
        self.parts, self.held = [], 0

    def _put(self, table: pa.Table) -> None:
        if self.writer is None:
            fs, path = lake.filesystem(self.url)
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self.stream = fs.open(path, "wb")
            self.writer = pq.ParquetWriter(self.stream, self.schema, compression="snappy", use_dictionary=["label", "reason"], write_statistics=["id", "label"])
        self.writer.write_table(table, row_group_size=self.group_rows)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None and self.held:
            self.flush()
        if self.writer is not None:
            self.writer.close()
            self.stream.close()


def _write(config: Ingest, encoding: str, classes: tuple[str, ...], staged: str, staged_rejects: str, group_rows: int, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Writes a partition's images, a file a split, and its rejects; gives one row of _WRITTEN for each file."""
    context = TaskContext.get()
    # Another attempt at the same partition writes other files.
    name = f"part-{context.partitionId():05d}-{context.taskAttemptId()}"
    rows_schema = _rows_schema(bool(classes))
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(_File(lake.join(staged, f"split={split}", f"{name}-{split}.parquet"), rows_schema, group_rows)) for split in schema.SPLITS}
        files[_REJECTED] = stack.enter_context(_File(lake.join(staged_rejects, f"{name}.parquet"), _rejects_schema(), 10_000))
        previous = None
        for batch in batches:
            decoded, splits, previous = _decode(config, encoding, classes, batch, previous)
            for split, file in files.items():
                mask = splits == split
                if mask.any():
                    part = decoded.filter(pa.array(mask)).select(file.schema.names).cast(file.schema)
                    file.add(part)
                    if split != _REJECTED:
                        file.digest += _digest(part)
    done = [(split, file) for split, file in files.items() if file.rows]
    yield pa.RecordBatch.from_pydict({
        "split": pa.array([split for split, _ in done], pa.string()),
        "name": pa.array([file.url.rsplit("/", 1)[1] for _, file in done], pa.string()),
        "rows": pa.array([file.rows for _, file in done], pa.int64()),
        "digest": pa.array([(file.digest % 2**64).to_bytes(8, "big") for _, file in done], pa.binary()),
    })  # fmt: skip


def _digest(table: pa.Table) -> int:
    labels = table["label"].to_pylist() if "label" in table.column_names else [""] * table.num_rows
    total = 0
    for id, image, label in zip(table["id"].to_pylist(), table["image"].to_pylist(), labels):
        row = hashlib.blake2b(f"{len(id)}:{id}{label}:".encode("utf-8", "surrogatepass"), digest_size=8)
        row.update(image)
        total += int.from_bytes(row.digest(), "big")
    return total


def _decode(config: Ingest, encoding: str, classes: tuple[str, ...], batch: pa.RecordBatch, previous: str | None) -> tuple[pa.Table, np.ndarray, str | None]:
    """(table of id, image, label, reason; the split of each row or _REJECTED; the last id that was kept).

    Rows come sorted by a hash of their id, so equal ids are neighbours; `previous` is the id before the batch.
    """
    labels = {name: index for index, name in enumerate(classes)}
    ids, names, splits = (batch.column(column).to_pylist() for column in ("id", "label", "split"))
    whole = _whole(batch, config, encoding) if not labels or all(name in labels for name in names) else None
    if whole is not None and previous not in ids and len(set(ids)) == len(ids):
        images_, reasons, previous = whole, [None] * len(ids), ids[-1]
    else:
        images_, reasons = [], []
        for row in batch.to_pylist():
            image, reason = None, row["reason"]
            if row["id"] == previous:
                reason = "duplicate id; the first row with it was kept"
            elif reason is None:
                try:
                    image = _encoded(_pixels(row, config), encoding)
                    if labels and row["label"] not in labels:
                        raise images.BadImage("no label, in a dataset with labels")
                except images.BadImage as error:
                    image, reason = None, str(error)
            if reason is None:
                previous = row["id"]
            images_.append(image)
            reasons.append(reason)
    for i, (id, split, reason) in enumerate(zip(ids, splits, reasons)):
        if reason is not None:
            splits[i] = _REJECTED
        elif split is None:
            splits[i] = schema.split_of(id, config.validation, config.test)
        elif split == "train":
            splits[i] = schema.split_of(id, config.validation, 0)
    columns = {
        "id": batch.column("id"),
        "image": images_ if isinstance(images_, pa.Array) else pa.array(images_, pa.binary()),
        "label": pa.array([labels.get(name, -1) for name in names], pa.int32()),
        "reason": pa.array(reasons, pa.string()),
    }
    return pa.table(columns), np.array(splits), previous


def _whole(batch: pa.RecordBatch, config: Ingest, encoding: str) -> pa.Array | None:
    """The `image` column in one go, where every row already has its pixels in the dataset's shape; else None."""
    shape = (config.height, config.width, config.channels)
    content, size, count = batch.column("content"), int(np.prod(shape)), batch.num_rows
    wanted = dict(zip(("height", "width", "channels"), shape))
    if encoding != "raw" or not count or content.null_count or batch.column("reason").null_count < count:
        return None
    if any(batch.column(name).to_pylist() != [value] * count for name, value in wanted.items()):
        return None
    offsets = np.frombuffer(content.buffers()[1], np.int32)[content.offset : content.offset + count + 1]
    if (np.diff(offsets) != size).any():
        return None
    header = np.frombuffer(schema.npy_header(shape), np.uint8)
    stored = np.empty((count, len(header) + size), np.uint8)
    stored[:, : len(header)] = header
    stored[:, len(header) :] = np.frombuffer(content.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(count, size)
    starts = np.arange(count + 1, dtype=np.int32) * stored.shape[1]
    return pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(starts), pa.py_buffer(stored)])


def _encoded(pixels: np.ndarray, encoding: str) -> bytes:
    return schema.npy_header(pixels.shape) + pixels.tobytes() if encoding == "raw" else images.encode_png(pixels)


def _pixels(row: dict, config: Ingest) -> np.ndarray:
    height, width, channels = config.height, config.width, config.channels
    if row["content"] is not None and row["height"] is not None:
        pixels = np.frombuffer(row["content"], np.uint8).reshape(row["height"], row["width"], row["channels"])
        if pixels.shape[2] != channels:
            pixels = images.convert(pixels, channels)
        return images.resize(pixels, height, width, config.fit)
    content = row["content"] if row["content"] is not None else _read(row["url"], config.max_file_mb)
    return images.decode(content, height, width, channels, config.fit, config.max_megapixels)


def _read(url: str, max_file_mb: int) -> bytes:
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
