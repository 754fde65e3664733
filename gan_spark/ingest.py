"""DataFrame of images -> Petastorm dataset, and a table of what was rejected and why.

Rows in = rows written + rows in `<dataset>.rejected`. Everything is staged first and put in
place by renames, so a job that fails leaves the old dataset as it was.
"""

import dataclasses
import datetime
import functools
import hashlib
import logging
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from pyspark import StorageLevel
from pyspark.sql import functions as F

from . import images, lake, schema, sources
from .config import Config, Ingest, UserError

log = logging.getLogger(__name__)
_FILE_BYTES = 128 * 2**20
_DECODED = "id string, image binary, split string, label int, reason string"


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
    size = max(1, source.count) * int(np.prod(shape))
    files = max(4 * config.planned_workers, math.ceil(size / _FILE_BYTES))
    row_group_mb = min(16, max(1, size // 2**20 // (16 * config.planned_workers)))
    log.info("ingest: about %d images to %s in %d files a split", source.count, url, files)

    # Rows travel as references and are decoded after the shuffle, where the write happens.
    decode = functools.partial(_decode, config, encoding, source.classes)
    decoded = (
        source.frame.withColumn("order", F.xxhash64("id"))
        .repartition(files, "order")
        .sortWithinPartitions("order", "id", F.xxhash64("content", "url"))
        .drop("order")
        .mapInPandas(decode, _DECODED)
        .persist(StorageLevel.DISK_ONLY)
    )
    hadoop = spark.sparkContext._jsc.hadoopConfiguration()
    block_size = hadoop.get("parquet.block.size")
    staged, staged_rejects = lake.staging(url), lake.staging(f"{url}.rejected")
    columns = ["id", "image", "split"] + (["label"] if source.classes else [])
    good = decoded.where("reason is null").select(columns)
    petastorm_schema = schema.unischema(shape, encoding, bool(source.classes))
    try:
        rows_in = decoded.count()
        if decoded.where("reason is null and split = 'train'").isEmpty():
            reasons = decoded.where("reason is not null").groupBy("reason").count().orderBy(F.desc("count")).limit(3).collect()
            raise UserError(f"no image to train on among {rows_in}: " + ("; ".join(f"{row['count']} x {row['reason']}" for row in reasons) or "the splits leave none"))
        with materialize_dataset(spark, staged, petastorm_schema, row_group_size_mb=row_group_mb):
            good.write.partitionBy("split").parquet(staged)
        decoded.where("reason is not null").select("id", "reason").coalesce(1).write.parquet(staged_rejects)
    except BaseException:
        lake.remove(staged)
        lake.remove(staged_rejects)
        raise
    finally:
        decoded.unpersist()
        # Petastorm restores what it set only where nothing failed.
        hadoop.set("parquet.block.size", block_size) if block_size else hadoop.unset("parquet.block.size")
    try:
        rows, fingerprint = summarize(spark, staged, columns)
        rejected = spark.read.parquet(staged_rejects).count()
        if sum(rows.values()) + rejected != rows_in:
            raise RuntimeError(f"{sum(rows.values())} rows written and {rejected} rejected of {rows_in} read: rows were lost, nothing was replaced")
        manifest = schema.Manifest(
            *shape, encoding, source.classes, rows, rejected, fingerprint, dataclasses.asdict(config),
            datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )  # fmt: skip
        schema.write_manifest(staged, manifest)
        lake.replace_all({staged_rejects: f"{url}.rejected", staged: url})
    finally:
        lake.remove(staged)
        lake.remove(staged_rejects)
    return {"dataset": url, "rows": sum(rows.values()), "rejected": rejected, "splits": rows, "rejects": f"{url}.rejected", "fingerprint": fingerprint}


def summarize(spark, url: str, columns: list[str]) -> tuple[dict[str, int], str]:
    """Rows by split, and a fingerprint that does not depend on their order."""
    frame = spark.read.parquet(url).withColumn("hash", F.xxhash64(*sorted(columns)))
    parts = {row["split"]: row for row in frame.groupBy("split").agg(F.count("*").alias("rows"), F.expr("bit_xor(hash)").alias("hash")).collect()}
    text = ",".join(f"{split}:{parts[split]['rows']}:{parts[split]['hash']}" for split in sorted(parts))
    return {split: parts[split]["rows"] if split in parts else 0 for split in schema.SPLITS}, hashlib.sha256(text.encode()).hexdigest()[:16]


def _decode(config: Ingest, encoding: str, classes: tuple[str, ...], batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    shape = (config.height, config.width, config.channels)
    header = schema.npy_header(shape)
    labels = {name: index for index, name in enumerate(classes)}
    previous = None  # Rows come sorted by a hash of their id, so equal ids are neighbours.
    for batch in batches:
        out = {"id": [], "image": [], "split": [], "label": [], "reason": []}
        for row in batch.itertuples(index=False):
            image, reason = None, row.reason
            if row.id == previous:
                reason = "duplicate id; the first row with it was kept"
            elif reason is None:
                try:
                    image = _pixels(row, config)
                    if labels and row.label not in labels:
                        raise images.BadImage("no label, in a dataset with labels")
                    image = header + image.tobytes() if encoding == "raw" else images.encode_png(image)
                except images.BadImage as error:
                    image, reason = None, str(error)
            if reason is None:
                previous = row.id
            if row.split is None:
                split = schema.split_of(row.id, config.validation, config.test)
            else:
                split = row.split if row.split != "train" else schema.split_of(row.id, config.validation, 0)
            out["id"].append(row.id)
            out["image"].append(image)
            out["split"].append(split)
            out["label"].append(labels.get(row.label, -1))
            out["reason"].append(reason)
        yield pd.DataFrame(out)


def _pixels(row, config: Ingest) -> np.ndarray:
    height, width, channels = config.height, config.width, config.channels
    if row.content is not None and row.height == row.height and row.height is not None:
        pixels = np.frombuffer(row.content, np.uint8).reshape(int(row.height), int(row.width), int(row.channels))
        if pixels.shape[2] != channels:
            pixels = images.convert(pixels, channels)
        return images.resize(pixels, height, width, config.fit)
    content = row.content if row.content is not None else _read(row.url, config.max_file_mb)
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
