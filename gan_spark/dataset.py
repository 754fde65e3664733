"""Petastorm dataset -> tf.data batches for one of many ranks.

Petastorm's batch reader hands out whole row groups as Arrow columns. Rows are shuffled here
as rows of one NumPy array: tf.data's element-wise `unbatch().shuffle().batch()` costs several
microseconds an image, fancy indexing a fraction of one.
"""

import logging
import posixpath
from collections.abc import Iterator

import numpy as np

from . import images, lake, schema
from .config import UserError

# Bounds of a rank's memory: the pool is copied up to three times while it is refilled, and
# ingest keeps row groups to 16 MiB.
_POOL_BYTES = 64 * 2**20
_QUEUED_ROW_GROUPS = 4


def files(url: str, split: str) -> list[str]:
    """URLs of the split's Parquet files, sorted, so that every rank sees the same order."""
    folder = lake.join(url, f"split={split}")
    fs, path = lake.filesystem(folder)
    names = sorted(name for name in fs.glob(f"{path}/*.parquet"))
    return [lake.join(folder, posixpath.basename(name)) for name in names]


def batches(url: str, split: str, batch_size: int, rank: int = 0, size: int = 1, seed: int = 0, shuffle_buffer: int = 8192):
    """An endless tf.data.Dataset of {"image": float32 [batch, height, width, channels] in [-1, 1], "label": int32 [batch]}.

    Rank `rank` of `size` reads its own row groups, in an order that `seed` determines up to the
    reader's threads. `label` is there where the dataset has classes. Raises `UserError` where
    the split has no images, or fewer row groups than there are ranks.
    """
    import tensorflow as tf

    manifest = schema.read_manifest(url)
    check_shards(url, split, size)
    signature = {"image": tf.TensorSpec((batch_size, *manifest.shape), tf.uint8)}
    if manifest.classes:
        signature["label"] = tf.TensorSpec((batch_size,), tf.int32)

    def generate():
        rng = np.random.default_rng([seed, rank])
        row_bytes = int(np.prod(manifest.shape)) + 4
        pool = max(batch_size, min(shuffle_buffer, _POOL_BYTES // row_bytes))
        return shuffled(_row_groups(url, split, manifest, rank, size, seed), batch_size, pool, rng)

    stream = tf.data.Dataset.from_generator(generate, output_signature=signature)
    stream = stream.map(lambda batch: {**batch, "image": images.to_unit(batch["image"])})
    return stream.prefetch(4)


def check_shards(url: str, split: str, size: int) -> None:
    """Petastorm gives each rank whole row groups, so there must be one for each."""
    import pyarrow.parquet as pq

    groups = 0
    for name in files(url, split):
        fs, path = lake.filesystem(name)
        with fs.open(path, "rb") as stream:
            groups += pq.ParquetFile(stream).num_row_groups
        if groups >= size:
            return
    if not groups:
        raise UserError(f"dataset {url}: its split {split!r} has no images")
    raise UserError(f"dataset {url}: {groups} row groups in split {split!r} for {size} workers; ingest it again with ingest.planned_workers = {size}")


def _row_groups(url: str, split: str, manifest: schema.Manifest, rank: int, size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    from petastorm import make_batch_reader

    logging.getLogger("petastorm").setLevel(logging.ERROR)
    # A list of files, not the folder: so Petastorm takes the schema from Parquet, and
    # never unpickles the one that is stored in the folder's _common_metadata.
    reader = make_batch_reader(
        files(url, split),
        schema_fields=["^image$", "^label$"] if manifest.classes else ["^image$"],
        workers_count=1,
        results_queue_size=_QUEUED_ROW_GROUPS,
        num_epochs=None,
        shuffle_row_groups=True,
        cur_shard=rank,
        shard_count=size,
        seed=seed,
    )
    with reader:
        for group in reader:
            rows = {"image": schema.unpack(group.image, manifest.shape, manifest.encoding)}
            if manifest.classes:
                rows["label"] = np.asarray(group.label, np.int32)
            yield rows


def shuffled(groups: Iterator[dict[str, np.ndarray]], batch_size: int, pool_size: int, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """Full batches drawn at random from a pool that is refilled when it is half empty.

    Rows pass through exactly once; what is left when `groups` ends is given out too,
    but for a last part of a batch.
    """
    pool: list[dict[str, np.ndarray]] = []
    ended = False
    while not ended:
        held = sum(len(part["image"]) for part in pool)
        while held < pool_size + batch_size and not ended:
            group = next(groups, None)
            ended = group is None
            if not ended:
                pool.append(group)
                held += len(group["image"])
        if not pool:
            return
        rows = {key: np.concatenate([part[key] for part in pool]) for key in pool[0]}
        pool.clear()
        order, used = rng.permutation(held), 0
        left = 0 if ended else pool_size // 2
        while held - used >= left + batch_size:
            chosen = order[used : used + batch_size]
            yield {key: values[chosen] for key, values in rows.items()}
            used += batch_size
        pool.append({key: values[order[used:]] for key, values in rows.items()})
