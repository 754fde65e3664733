"""Ingest: a Petastorm dataset of a source's images, and a table of what was rejected and why.

Rows in = rows written + rows in `<dataset>.rejected`. Everything is staged first and put in
place by renames, so a job that fails leaves the old dataset as it was.

One pass does it all: a task decodes its rows and writes its own Parquet files, and hands the
driver one line a file. Files of tasks that failed half-way are in no line, and are removed.
"""

import collections
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
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark import TaskContext
from pyspark.sql import functions as F

from .. import lake
from ..config import Config, Ingest, UserError, check_sections
from ..lake import tables
from . import batches, images, parts, reader, schema, sources, splits

log = logging.getLogger(__name__)
_FILE_BYTES = 128 * 2**20
_ROW_GROUP_BYTES = 16 * 2**20
_ARROW_BYTES = 2**30
_WRITTEN = "split string, part string, name string, rows long, flat long, digest binary"
_REJECTED = ""  # stands for a split in what tasks report
_FLAT = 16  # levels of 256: pixels that span fewer use under 1/16 of their range
_DECODED = {  # `split` may be _REJECTED; `reason` is None for what is not
    "id": pa.string(),
    "image": pa.binary(),
    "label": pa.int32(),
    "caption": pa.string(),
    "embedding": pa.binary(),
    "split": pa.string(),
    "part": pa.string(),
    "reason": pa.string(),
    "flat": pa.bool_(),
}


def ingest(spark, config: Config) -> dict:
    """Reads the config's source into `<lake>/datasets/<dataset>`, replacing what was there."""
    check_sections(config, "ingest")
    url = lake.dataset_url(config)
    _check_replaceable(spark, url, config.tables)
    lake.tidy(f"{url}.rejected", url)  # Before the source, which may not open.
    return write(spark, sources.open_source(spark, config.ingest), url, config.ingest, config.tables)


def write(spark, source: sources.Source, url: str, config: Ingest, format: str = "parquet") -> dict:
    """Decodes, splits, shuffles and writes `source`; returns the counts.

    Raises `UserError` where no image at all can be used for training.
    """
    from petastorm.etl.dataset_metadata import materialize_dataset

    rejects = f"{url}.rejected"
    _check_replaceable(spark, url, format)
    lake.tidy(rejects, url)
    manifest = _manifest_to_fill(source, config)
    if source.splits:  # Nothing is taken from the training images for a split that the source has itself.
        config = dataclasses.replace(config, **{name: 0.0 for name in source.splits & {"validation", "test"}})
        log.info("ingest: the source states split %s of its images", ", ".join(sorted(source.splits)))
    files, group_rows = _layout(spark, source, config, manifest)
    log.info("ingest: about %d images to %s in %d files a split", source.count, url, files)

    staged, staged_rejects = lake.staging(url), lake.staging(rejects)
    rows = _shuffled(source.frame, files)
    with _batches_that_fit(spark, source, config):
        kept = parts.chosen(source.frame, config, _pixels) if config.parts == "labels" else frozenset()
    work = functools.partial(_write, config, manifest, kept, staged, staged_rejects, group_rows)
    factory = (
        None if reader.petastorm_filesystem(staged) is None else functools.partial(reader.petastorm_filesystem, staged)
    )
    try:
        lake.claim(staged, "dataset")
        lake.claim(staged_rejects, "rejects", _rejects_schema().names)
        with (
            _batches_that_fit(spark, source, config),
            materialize_dataset(spark, lake.mounted(staged), schema.unischema(manifest), filesystem_factory=factory),
        ):
            written = rows.mapInArrow(work, _WRITTEN).collect()
            counts = _counts(written)
            _settle(staged, staged_rejects, written)
            if not counts["train"]:
                raise UserError(
                    f"no image to train on among {sum(counts.values())}:"
                    f" {_reasons(spark, staged_rejects) or 'the splits leave none: ' + _in_words(counts)}"
                )
        rejected = counts.pop(_REJECTED)
        by_class = _counts_by_class(spark, staged, counts, manifest.classes)
        manifest = dataclasses.replace(manifest, rows=counts, rejected=rejected, fingerprint=_fingerprint(written))
        schema.write_manifest(staged, manifest)
        lake.write_bytes(lake.join(staged_rejects, lake.SUCCESS), b"")
        _check_replaceable(spark, url, format)  # Writing took a while.
        _put_in_place(spark, staged, url, staged_rejects, rejects, format)
    finally:
        lake.remove(staged)
        lake.remove(staged_rejects)
    _tell(counts, by_class, sum(file["flat"] for file in written))
    return {
        "dataset": url,
        "rows": sum(counts.values()),
        "rejected": rejected,
        "splits": counts,
        "classes": by_class,
        "rejects": rejects,
        "fingerprint": manifest.fingerprint,
    }


def _check_replaceable(spark, url: str, format: str) -> None:
    """`UserError` where somebody else's folder is where the dataset or its rejects go."""
    lake.check_replaceable(url, "dataset")
    tables.check(spark, f"{url}.rejected", format, "rejects", _rejects_schema().names)


def _manifest_to_fill(source: sources.Source, config: Ingest) -> schema.Manifest:
    """The manifest without what is known once the rows are written: counts and fingerprint."""
    shape = (config.height, config.width, config.channels)
    return schema.Manifest(
        *shape,
        encoding=schema.choose_encoding(config.encoding, shape),
        classes=source.classes,
        rows={},
        rejected=0,
        fingerprint="",
        ingest=dataclasses.asdict(config),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        parts=parts.names(config),
        captioned=source.captioned,
        embedding=source.embedding,
    )


def _layout(spark, source: sources.Source, config: Ingest, manifest: schema.Manifest) -> tuple[int, int]:
    """(number of files a split, rows of a row group)."""
    row_bytes = math.prod(manifest.shape) + 4 * math.prod(source.embedding or (0,))
    # A task a file: every core decodes. Few files, as Petastorm's metadata takes a task for each.
    files = max(
        config.planned_workers, spark.sparkContext.defaultParallelism, math.ceil(source.count * row_bytes / _FILE_BYTES)
    )
    # Training images of one part, where a source has no split of its own.
    smallest = source.count * (1.0 - config.validation - config.test) / max(1, len(manifest.parts))
    return files, max(1, min(_ROW_GROUP_BYTES // row_bytes, int(smallest) // (8 * config.planned_workers)))


def _shuffled(frame, files: int):
    """The source's rows in `files` partitions, in the order of their ids' hashes; equal ids are neighbours."""
    return (
        frame.withColumn("order", F.xxhash64("id"))
        .repartition(files, "order")
        .sortWithinPartitions("order", "id", F.xxhash64("content", "url"))
        .drop("order")
    )


def _put_in_place(spark, staged: str, url: str, staged_rejects: str, rejects: str, format: str) -> None:
    if format == "delta":
        tables.write_delta(spark.read.parquet(staged_rejects), rejects, "overwrite")
        lake.replace(staged, url)
    else:
        lake.replace_all({staged_rejects: rejects, staged: url})


def _batches_that_fit(spark, source: sources.Source, config: Ingest) -> contextlib.AbstractContextManager[None]:
    """Of sources of whole files, tasks are handed no more rows at once than fit into an Arrow column, which ends at
    2 GiB.
    """
    if not source.holds_files:
        return contextlib.nullcontext()
    return batches.at_most(spark, max(1, _ARROW_BYTES // (config.max_file_mb * 2**20)))


def _counts(written: list) -> dict[str, int]:
    """Rows by split, and of the rejects, of the files that tasks wrote."""
    return {
        split: sum(file["rows"] for file in written if file["split"] == split) for split in (*schema.SPLITS, _REJECTED)
    }


def _settle(staged: str, staged_rejects: str, written: list) -> None:
    """Removes the files of tasks that failed, and sees to it that the table of rejects has a file."""
    names = {file["name"] for file in written}
    for folder in (staged, staged_rejects):
        fs, path = lake.filesystem(folder)
        for name in fs.find(path):
            if name.rsplit("/", 1)[1] not in {*names, lake.OWNER}:
                fs.rm_file(name)
    if not any(file["split"] == _REJECTED for file in written):
        with _File(lake.join(staged_rejects, "part-00000.parquet"), _rejects_schema(), 1) as file:
            file.flush()


def _counts_by_class(spark, staged: str, counts: dict[str, int], classes: tuple[str, ...]) -> dict[str, int]:
    """Images by class; `RuntimeError` where what the tasks say that they wrote is not what is there to be read."""
    keys = ["split", "label"] if classes else ["split"]
    rows = spark.read.parquet(staged).groupBy(*keys).count().collect()
    readable, by_class = collections.Counter(), dict.fromkeys(classes, 0)
    for row in rows:
        readable[row["split"]] += row["count"]
        if classes and row["label"] >= 0:
            by_class[classes[row["label"]]] += row["count"]
    if readable != {split: count for split, count in counts.items() if count}:
        raise RuntimeError(
            f"{counts} rows were written and {readable} are to be read: rows were lost, nothing was replaced"
        )
    return by_class


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def _tell(counts: dict[str, int], by_class: dict[str, int], flat: int) -> None:
    """Logs what was written, and what of it a user may not have meant."""
    log.info("ingest: images by split: %s", _in_words(counts))
    if by_class:
        log.info("ingest: images by class: %s", _in_words(dict(list(by_class.items())[:30])))
    if empty := [name for name, count in by_class.items() if not count]:
        log.warning("ingest: %d classes have no image: %s", len(empty), ", ".join(empty[:10]))
    names = list(by_class)
    if names[:1] == ["1"] and sources.are_numbers(names):
        log.warning("ingest: labels begin at 1: class '1' is label 0 of the dataset")
    elif empty[:1] == names[:1] != []:
        log.warning("ingest: no image has label 0, %r: do the source's labels begin at 1?", names[0])
    if flat:
        log.warning(
            "ingest: %d images use under 1/16 of their range, which makes them almost of one colour; for grey files of"
            " 16 bits that use fewer, ingest.range says which values are black and white",
            flat,
        )


def _reasons(spark, staged_rejects: str) -> str:
    """The three most frequent reasons, with their counts."""
    rejects = (
        spark.read.parquet(staged_rejects)
        .groupBy("reason")
        .count()
        .orderBy(F.desc("count"), "reason")
        .limit(3)
        .collect()
    )
    return "; ".join(f"{row['count']} x {row['reason']}" for row in rejects)


def _fingerprint(written: list) -> str:
    """Fingerprint of every id, image, label and split, in whatever order and files: the sum of the rows' digests."""
    totals = {}
    for file in written:
        if file["split"] != _REJECTED:
            rows, digest = totals.get((file["split"], file["part"]), (0, 0))
            totals[file["split"], file["part"]] = rows + file["rows"], digest + int.from_bytes(file["digest"], "big")
    text = ",".join(
        f"{split}/{part}:{rows}:{digest % 2**64}" for (split, part), (rows, digest) in sorted(totals.items())
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- in tasks --------------------------------------------------------------------------


def _rows_schema(manifest: schema.Manifest) -> pa.Schema:
    fields = [pa.field("id", pa.string(), False), pa.field("image", pa.binary(), False)]
    fields += [pa.field("label", pa.int32(), False)] * bool(manifest.classes)
    fields += [pa.field("caption", pa.string(), False)] * manifest.captioned
    fields += [pa.field("embedding", pa.binary(), False)] * bool(manifest.embedding)
    return pa.schema(fields)


def _rejects_schema() -> pa.Schema:
    return pa.schema([("id", pa.string()), ("reason", pa.string())])


class _File:
    """A Parquet file of row groups of `group_rows` rows, opened when it has some."""

    def __init__(self, url: str, schema: pa.Schema, group_rows: int):
        self.url, self.schema, self.group_rows = url, schema, group_rows
        self.pending, self.pending_rows, self.rows, self.flat, self.digest, self.writer = [], 0, 0, 0, 0, None

    def add(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        self.pending_rows += table.num_rows
        self.pending.append(table)
        while self.pending_rows >= self.group_rows:
            rows = pa.concat_tables(self.pending)
            self._put(rows.slice(0, self.group_rows))
            self.pending, self.pending_rows = [rows.slice(self.group_rows)], self.pending_rows - self.group_rows

    def flush(self) -> None:
        self._put(pa.concat_tables(self.pending) if self.pending else self.schema.empty_table())
        self.pending, self.pending_rows = [], 0

    def _put(self, table: pa.Table) -> None:
        if self.writer is None:
            fs, path = lake.filesystem(self.url)
            fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self.stream = fs.open(path, "wb")
            self.writer = pq.ParquetWriter(
                self.stream,
                self.schema,
                compression="snappy",
                use_dictionary=["label", "reason"],
                write_statistics=["id", "label"],
            )
        self.writer.write_table(table, row_group_size=self.group_rows)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is None and self.pending_rows:
            self.flush()
        if self.writer is not None:
            self.writer.close()
            self.stream.close()


def _write(
    config: Ingest,
    manifest: schema.Manifest,
    kept: frozenset[str],
    staged: str,
    staged_rejects: str,
    group_rows: int,
    batches: Iterator[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    """Writes a partition's images, a file a split and part, and its rejects; gives one row of _WRITTEN a file."""
    context = TaskContext.get()
    # Another attempt at the same partition writes other files.
    name = f"part-{context.partitionId():05d}-{context.taskAttemptId()}"
    with contextlib.ExitStack() as stack:
        files = {}

        def file_of(split: str, part: str) -> _File:
            if (split, part) not in files:
                if split == _REJECTED:
                    file = _File(lake.join(staged_rejects, f"{name}.parquet"), _rejects_schema(), 10_000)
                else:
                    folder = splits.folder(staged, split, part)
                    file = _File(
                        lake.join(folder, f"{name}-{split}{part and '-' + part}.parquet"),
                        _rows_schema(manifest),
                        group_rows,
                    )
                files[split, part] = stack.enter_context(file)
            return files[split, part]

        previous = None
        # However many rows Spark hands over at once, only so many are held decoded.
        max_rows = max(1, _ROW_GROUP_BYTES // math.prod(manifest.shape))
        for piece in _pieces(batches, max_rows):
            decoded, previous = _decode(config, manifest, kept, piece, previous)
            keys = list(zip(decoded["split"].to_pylist(), decoded["part"].to_pylist(), strict=True))
            for key in sorted(set(keys)):
                file = file_of(*key)
                of_key = decoded.filter(pa.array([row_key == key for row_key in keys]))
                rows = of_key.select(file.schema.names).cast(file.schema)
                file.add(rows)
                file.flat += pc.sum(of_key["flat"]).as_py() or 0
                if key[0] != _REJECTED:
                    file.digest += _digest(rows)
    yield pa.RecordBatch.from_pydict(
        {
            "split": pa.array([split for split, _ in files], pa.string()),
            "part": pa.array([part for _, part in files], pa.string()),
            "name": pa.array([file.url.rsplit("/", 1)[1] for file in files.values()], pa.string()),
            "rows": pa.array([file.rows for file in files.values()], pa.int64()),
            "flat": pa.array([file.flat for file in files.values()], pa.int64()),
            "digest": pa.array([(file.digest % 2**64).to_bytes(8, "big") for file in files.values()], pa.binary()),
        }
    )


def _pieces(batches: Iterator[pa.RecordBatch], max_rows: int) -> Iterator[pa.RecordBatch]:
    return (batch.slice(start, max_rows) for batch in batches for start in range(0, batch.num_rows, max_rows))


def _digest(table: pa.Table) -> int:
    rows = zip(*(table[name].to_pylist() for name in table.column_names if name != "image"), strict=True)
    total = 0
    for values, image in zip(rows, table["image"].to_pylist(), strict=True):
        digest = hashlib.blake2b(repr(values).encode("utf-8", "surrogatepass"), digest_size=8)
        digest.update(image)
        total += int.from_bytes(digest.digest(), "big")
    return total


def _decode(
    config: Ingest, manifest: schema.Manifest, kept: frozenset[str], batch: pa.RecordBatch, previous: str | None
) -> tuple[pa.Table, str | None]:
    """(table of _DECODED, the last id that was kept).

    Rows come sorted by a hash of their id, so equal ids are neighbours; `previous` is the id before the batch.
    """
    labels = {name: index for index, name in enumerate(manifest.classes)}
    ids = batch.column("id").to_pylist()
    if (
        not config.parts
        and previous not in ids
        and len(set(ids)) == len(ids)
        and (table := _whole(batch, config, manifest, labels)) is not None
    ):
        return table, ids[-1]
    decoded = []
    for row in batch.to_pylist():
        id, reason = row["id"], row["reason"]
        if id == previous:
            reason = "duplicate id; the first row with it was kept"
        elif reason is None:
            try:
                decoded += _decoded_rows(row, config, manifest, kept, labels)
                previous = id
            except images.BadImage as error:
                reason = str(error)
        if reason is not None:
            decoded.append((id, None, labels.get(row["label"], -1), row["caption"], None, _REJECTED, "", reason, False))
    columns = list(zip(*decoded, strict=True)) or [()] * len(_DECODED)
    return pa.table(
        {name: pa.array(values, kind) for (name, kind), values in zip(_DECODED.items(), columns, strict=True)}
    ), previous


def _decoded_rows(
    row: dict, config: Ingest, manifest: schema.Manifest, kept: frozenset[str], labels: dict[str, int]
) -> list[tuple]:
    """Rows of _DECODED that a source row becomes, one a part. Raises `BadImage` where it cannot be used."""
    if labels and row["label"] not in labels:
        raise images.BadImage("no label, in a dataset with labels")
    if manifest.captioned and not (row["caption"] or "").strip():
        raise images.BadImage("no caption, in a dataset with captions")
    embedding = _embedding(row["embedding"], manifest.embedding) if manifest.embedding else None
    split, label = _split(row["id"], row["split"], config), labels.get(row["label"], -1)
    versions = parts.divide(_pixels(row, config), row["id"], label, row["label"], split, config, kept)
    return [
        (
            id,
            _encoded(pixels, manifest.encoding),
            kept_label,
            row["caption"],
            embedding,
            split,
            part,
            None,
            _flat(pixels),
        )
        for id, part, kept_label, pixels in versions
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
            "split": pa.array(splits, pa.string()),
            "part": pa.array([""] * count, pa.string()),
            "flat": pa.array(np.ptp(stored[:, len(header) :], axis=1) < _FLAT),
        }
    )


def _flat(pixels: np.ndarray) -> bool:
    return int(pixels.max()) - int(pixels.min()) < _FLAT


def _encoded(pixels: np.ndarray, encoding: str) -> bytes:
    return schema.npy_header(pixels.shape) + pixels.tobytes() if encoding == "raw" else images.encode_png(pixels)


def _pixels(row: dict, config: Ingest) -> np.ndarray:
    height, width, channels = config.height, config.width, config.channels
    if row["content"] is not None and row["height"] is not None:
        pixels = np.frombuffer(row["content"], np.uint8).reshape(row["height"], row["width"], row["channels"])
        if pixels.shape[2] != channels:
            pixels = images.convert(pixels, channels)
        return images.resize(pixels, height, width, config.fit)
    content = row["content"] if row["content"] is not None else sources.folder.read(row["url"], config.max_file_mb)
    return images.decode(content, height, width, channels, config.fit, config.max_megapixels, config.range)
