"""Reader of a Petastorm dataset: tf.data batches for one of many ranks.

Petastorm's batch reader hands out whole row groups as Arrow columns. Rows are shuffled here
as rows of one NumPy array: tf.data's element-wise `unbatch().shuffle().batch()` costs several
microseconds an image, fancy indexing a fraction of one.
"""

import logging
import warnings
from collections.abc import Iterator

import numpy as np

from .. import lake
from ..config import UserError
from . import images, schema
from .splits import chunks, columns, files, in_words, unpack

# Bounds of a rank's memory: the pool is copied up to three times while it is refilled, and
# ingest keeps row groups to 16 MiB.
_POOL_BYTES = 48 * 2**20
_QUEUED_ROW_GROUPS = 4
_BLOCK_BYTES = 2**20


def petastorm_filesystem(url: str):
    """The filesystem that Petastorm needs to open `url`; None for local paths, which it knows.

    It is fsspec's, in the legacy interface of pyarrow that Petastorm reads through.
    """
    if lake.mounted(url).startswith("file:"):
        return None
    fs, _ = lake.filesystem(url)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from pyarrow.filesystem import DaskFileSystem

        class Wrapped(DaskFileSystem):
            def isdir(self, path):
                return self.fs.isdir(path)

            def isfile(self, path):
                return self.fs.isfile(path)

        return Wrapped(fs)


def batches(
    url: str,
    split: str,
    batch_size: int,
    rank: int = 0,
    size: int = 1,
    seed: int = 0,
    shuffle_buffer: int = 8192,
    parts: tuple[str, ...] = (),
):
    """An endless tf.data.Dataset of batches.

    A batch is {"image": float32 [batch, height, width, channels] in [-1, 1]}, with "label" int32 [batch],
    "caption" string [batch] and "embedding" float32 [batch, k, d] where the dataset has them.
    With `parts`, it is {part: such a batch of that part}, each of `batch_size`.

    Rank `rank` of `size` reads its own row groups, in an order that `seed` determines up to the
    reader's threads. Raises `UserError` where the split has no images, or fewer row groups than there are ranks.
    """
    import tensorflow as tf

    if parts:
        streams = {
            part: _stream(url, split, part, batch_size, rank, size, seed, shuffle_buffer // len(parts) + 1)
            for part in parts
        }
        return tf.data.Dataset.zip(streams)
    return _stream(url, split, "", batch_size, rank, size, seed, shuffle_buffer)


def _stream(url: str, split: str, part: str, batch_size: int, rank: int, size: int, seed: int, shuffle_buffer: int):
    import tensorflow as tf

    manifest = schema.read_manifest(url)
    check_shards(url, split, size, part)
    kinds = {"image": (manifest.shape, tf.uint8)}
    if manifest.classes:
        kinds["label"] = ((), tf.int32)
    if manifest.captioned:
        kinds["caption"] = ((), tf.string)
    if manifest.embedding:
        kinds["embedding"] = (manifest.embedding, tf.float32)
    signature = {name: tf.TensorSpec((None, batch_size, *shape), kind) for name, (shape, kind) in kinds.items()}

    def generate():
        rng = np.random.default_rng([seed, rank])
        pool = max(batch_size, min(shuffle_buffer, _POOL_BYTES // row_bytes))
        rank_batches = shuffled(_row_groups(url, split, part, manifest, rank, size, seed), batch_size, pool, rng)
        for block in chunks(rank_batches, block_size):
            yield {name: np.stack([batch[name] for batch in block]) for name in kinds}

    row_bytes = int(np.prod(manifest.shape)) + 4 * int(np.prod(manifest.embedding or (1,)))
    # tf.data takes some 0.4 ms for whatever a generator hands it, so it is handed several batches at once.
    block_size = max(1, min(16, _BLOCK_BYTES // (batch_size * row_bytes)))
    stream = tf.data.Dataset.from_generator(generate, output_signature=signature)
    # In a thread of its own, beside the generator.
    stream = stream.map(lambda block: {**block, "image": images.to_unit(block["image"])}, num_parallel_calls=1)
    # There is nothing to tune; and whoever drops the iterator would wait for tf.data's tuner, which sleeps for up to a
    # minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    return stream.unbatch().prefetch(4).with_options(options)


def once(url: str, split: str, batch_size: int, rank: int = 0, size: int = 1) -> Iterator[dict]:
    """Batches of at most `batch_size` of rank `rank`'s row groups of a split, as `batches` gives them but each row
    once.

    Where there are fewer row groups than ranks, every rank is given all of them.
    """
    import tensorflow as tf

    manifest = schema.read_manifest(url)
    shard = (rank, size) if _row_group_count(url, split, "", size) >= size else (0, 1)
    for group in _row_groups(url, split, "", manifest, *shard, seed=0, epochs=1):
        for start in range(0, len(group["image"]), batch_size):
            batch = {name: tf.constant(values[start : start + batch_size]) for name, values in group.items()}
            yield {**batch, "image": images.to_unit(batch["image"])}


def check_shards(url: str, split: str, size: int, part: str = "") -> None:
    """`UserError` where there are fewer row groups than ranks, as Petastorm gives each rank whole ones."""
    groups = _row_group_count(url, split, part, size)
    if groups >= size:
        return
    if not groups:
        raise UserError(f"dataset {url}: its {in_words(split, part)} has no images")
    raise UserError(
        f"dataset {url}: {groups} row groups in {in_words(split, part)} for {size} workers; ingest it again with"
        f" ingest.planned_workers = {size}"
    )


def _row_group_count(url: str, split: str, part: str, enough: int) -> int:
    """The number of row groups; no more files are looked at once there are `enough`."""
    import pyarrow.parquet as pq

    groups = 0
    for name in files(url, split, part):
        fs, path = lake.filesystem(name)
        with fs.open(path, "rb") as stream:
            groups += pq.ParquetFile(stream).num_row_groups
        if groups >= enough:
            break
    return groups


def _row_groups(
    url: str,
    split: str,
    part: str,
    manifest: schema.Manifest,
    rank: int,
    size: int,
    seed: int,
    epochs: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    from petastorm import make_batch_reader

    logging.getLogger("petastorm").setLevel(logging.ERROR)
    # A list of files, not the folder: so Petastorm takes the schema from Parquet, and
    # never unpickles the one that is stored in the folder's _common_metadata.
    reader = make_batch_reader(
        [lake.mounted(name) for name in files(url, split, part)],
        schema_fields=[f"^{name}$" for name in columns(manifest)],
        workers_count=1,
        results_queue_size=_QUEUED_ROW_GROUPS,
        num_epochs=epochs,
        shuffle_row_groups=True,
        cur_shard=rank,
        shard_count=size,
        seed=seed,
        filesystem=petastorm_filesystem(url),
    )
    with reader:
        for group in reader:
            yield unpack(group._asdict(), manifest)


def shuffled(
    groups: Iterator[dict[str, np.ndarray]], batch_size: int, pool_size: int, rng: np.random.Generator
) -> Iterator[dict[str, np.ndarray]]:
    """Full batches drawn at random from a pool that is refilled when it is half empty.

    Rows pass through exactly once; what is left when `groups` ends is given out too,
    but for a last part of a batch.
    """
    pool: list[dict[str, np.ndarray]] = []
    ended = False
    while not ended:
        row_count = sum(len(group["image"]) for group in pool)
        while row_count < pool_size + batch_size and not ended:
            group = next(groups, None)
            ended = group is None
            if not ended:
                pool.append(group)
                row_count += len(group["image"])
        if not pool:
            return
        rows = {key: np.concatenate([group[key] for group in pool]) for key in pool[0]}
        pool.clear()
        order, used = rng.permutation(row_count), 0
        left = 0 if ended else pool_size // 2
        while row_count - used >= left + batch_size:
            chosen = order[used : used + batch_size]
            yield {key: values[chosen] for key, values in rows.items()}
            used += batch_size
        pool.append({key: values[order[used:]] for key, values in rows.items()})
