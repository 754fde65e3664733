"""Reader of a Petastorm dataset: tf.data batches for one of many ranks.

Row groups are read as Arrow columns, by the rank's own order of them; Petastorm's readers give row group i to rank
i mod size, whatever the seed, and cannot begin in the middle. Rows are shuffled as rows of NumPy arrays: tf.data's
element-wise `unbatch().shuffle().batch()` costs several microseconds an image, fancy indexing a fraction of one.
"""

import collections
import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from .. import lake
from ..config import UserError
from . import images, order, schema, snapshots
from .splits import columns, files, in_words, unpack

# Bounds of a rank's memory: the rows of the pool are held twice while a block of them is drawn, and ingest keeps row
# groups to 16 MiB.
_POOL_BYTES = 48 * 2**20
_PIECES_AHEAD = 4
_FOOTERS_AT_ONCE = 16
_BLOCK_BYTES = 2**20
_TEXT_BYTES = 64  # of a text in Python beside its characters, each of which takes 1 to 4


def batches(
    url: str,
    split: str,
    batch_size: int,
    rank: int = 0,
    size: int = 1,
    seed: int = 0,
    shuffle_buffer: int = 8192,
    parts: tuple[str, ...] = (),
    start: int = 0,
    since: str = "",
    new: int = 0,
):
    """An endless tf.data.Dataset of batches.

    A batch is {"image": float32 [batch, height, width, channels] in [-1, 1]}, with "label" int32 [batch],
    "caption" string [batch] and "embedding" float32 [batch, k, d] where the dataset has them.
    With `parts`, it is {part: such a batch of that part}, each of `batch_size`.

    Ranks share each epoch's rows out, in an order that is a function of `seed` and epoch (`order`); the first row is
    the one after `start` others of the rank. Raises `UserError` where the split has no images.

    With `since`, the URL of a former snapshot, the first `new` of each batch are images that it has not and the others
    such as it has; of either an epoch is over by itself.
    """
    import tensorflow as tf

    counts = {True: new, False: batch_size - new} if since else {True: batch_size}
    counts = {are_new: count for are_new, count in counts.items() if count}
    # Each has a pool of its own.
    pools = len(counts) * max(1, len(parts))
    buffer = shuffle_buffer // pools + 1 if pools > 1 else shuffle_buffer

    def stream(part: str):
        streams = []
        for are_new, count in counts.items():
            groups = RowGroups(url, split, part, schema.read_manifest(url), since, are_new)
            streams.append(_stream(groups, count, rank, size, seed, buffer, start // batch_size * count))
        if len(streams) == 1:
            return streams[0]
        both = tf.data.Dataset.zip(tuple(streams))
        return both.map(lambda first, second: {name: tf.concat([first[name], second[name]], 0) for name in first})

    return tf.data.Dataset.zip({part: stream(part) for part in parts}) if parts else stream("")


def _stream(groups: "RowGroups", batch_size: int, rank: int, size: int, seed: int, shuffle_buffer: int, start: int):
    import tensorflow as tf

    manifest = groups.manifest
    kinds = {"image": (manifest.shape, tf.uint8)}
    if manifest.classes:
        kinds["label"] = ((), tf.int32)
    if manifest.captioned:
        kinds["caption"] = ((), tf.string)
    if manifest.embedding:
        kinds["embedding"] = (manifest.embedding, tf.float32)
    signature = {name: tf.TensorSpec((None, batch_size, *shape), kind) for name, (shape, kind) in kinds.items()}
    row_bytes = int(np.prod(manifest.shape)) + 4 * int(np.prod(manifest.embedding or (1,))) + groups.caption_bytes()
    pool = max(1, min(shuffle_buffer, _POOL_BYTES // row_bytes))
    # tf.data takes some 0.4 ms for whatever a generator hands it, so it is handed several batches at once.
    block_size = max(1, min(16, _BLOCK_BYTES // (batch_size * row_bytes)))

    def generate():
        yield from _cut(shuffled(groups, pool, rank, size, seed, start), batch_size, block_size)

    stream = tf.data.Dataset.from_generator(generate, output_signature=signature)
    # In a thread of its own, beside the generator.
    stream = stream.map(lambda block: {**block, "image": images.to_unit(block["image"])}, num_parallel_calls=1)
    # There is nothing to tune; and whoever drops the iterator would wait for tf.data's tuner, which sleeps for up to a
    # minute.
    options = tf.data.Options()
    options.autotune.enabled = False
    return stream.unbatch().prefetch(4).with_options(options)


def _cut(rows: Iterator[dict], batch_size: int, block_size: int) -> Iterator[dict]:
    """Blocks of up to `block_size` full batches, [blocks, batch, ...], of rows that come in parts of any size."""
    rest: dict[str, np.ndarray] = {}
    for part in rows:
        if rest:
            part = {name: np.concatenate([rest[name], values]) for name, values in part.items()}
        count = len(part["image"]) // batch_size
        for first in range(0, count, block_size):
            last = min(first + block_size, count)
            yield {
                name: values[first * batch_size : last * batch_size].reshape(-1, batch_size, *values.shape[1:])
                for name, values in part.items()
            }
        rest = {name: values[count * batch_size :] for name, values in part.items()}


def once(url: str, split: str, batch_size: int, rank: int = 0, size: int = 1) -> Iterator[dict]:
    """Batches of at most `batch_size` of rank `rank`'s share of a split, as `batches` gives them but each row once.

    Where there are fewer rows than ranks, every rank is given all of them.
    """
    import tensorflow as tf

    groups = RowGroups(url, split, "", schema.read_manifest(url))
    shard = (rank, size) if sum(groups.counts) >= size else (0, 1)
    for rows in groups.read(order.share(groups.counts, *shard)):
        for start in range(0, len(rows["image"]), batch_size):
            batch = {name: tf.constant(values[start : start + batch_size]) for name, values in rows.items()}
            yield {**batch, "image": images.to_unit(batch["image"])}


def check_split(url: str, split: str, part: str = "", since: str = "", are_new: bool = True) -> list[str]:
    """URLs of the files of a split, or of its part, as `splits.files` gives them; `UserError` where there are none."""
    names = files(url, split, part, since, are_new)
    if not names:
        which = f" {'beyond' if are_new else 'of'} snapshot {lake.split_snapshot(since)[1]}" if since else ""
        raise UserError(f"dataset {url}: its {in_words(split, part)} has no images{which}")
    return names


class _Group(NamedTuple):
    url: str
    index: int  # in its file
    footer: Any  # pyarrow's FileMetaData


class RowGroups:
    """The row groups of a split, or of a part of it, in the order of its files; `UserError` where there are none."""

    def __init__(
        self, url: str, split: str, part: str, manifest: schema.Manifest, since: str = "", are_new: bool = True
    ):
        self.manifest, self.columns = manifest, columns(manifest)
        names = check_split(url, split, part, since, are_new)
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
            footers = list(threads.map(_footer, names))
        for name, footer in zip(names, footers, strict=True):
            schema.check_seal(manifest, name, mark=(footer.metadata or {}).get(schema.MARK, b""))
        self.groups = [
            _Group(name, index, footer)
            for name, footer in zip(names, footers, strict=True)
            for index in range(footer.num_row_groups)
        ]
        self.counts = [group.footer.row_group(group.index).num_rows for group in self.groups]

    def caption_bytes(self) -> int:
        """Bytes of memory that a caption takes, on average over the row group in which they are longest; 0 for none."""
        if not self.manifest.captioned:
            return 0
        stored = [_column_bytes(group.footer.row_group(group.index), "caption") for group in self.groups]
        text = max(size / max(1, count) for size, count in zip(stored, self.counts, strict=True))
        return int(_TEXT_BYTES + 2 * text)

    def load(self, piece: order.Piece) -> dict[str, np.ndarray]:
        """The rows of a piece, as arrays."""
        import pyarrow.parquet as pq

        group = self.groups[piece.group]
        with _opened(group.url) as source:
            # Without the schema that Petastorm stores in the folder's _common_metadata, which is a pickle.
            file = pq.ParquetFile(source, metadata=group.footer)
            table = file.read_row_group(group.index, self.columns, use_threads=False)
        table = table.slice(piece.start, piece.stop - piece.start)
        return unpack({name: table[name].to_pandas().to_numpy() for name in self.columns}, self.manifest)

    def read(self, pieces: Iterator[order.Piece] | list[order.Piece]) -> Iterator[dict[str, np.ndarray]]:
        """The rows of each piece; the next ones are read meanwhile."""
        pieces, ahead = iter(pieces), collections.deque[Future]()
        with ThreadPoolExecutor(1) as thread:
            try:
                while True:
                    for piece in itertools.islice(pieces, _PIECES_AHEAD - len(ahead)):
                        ahead.append(thread.submit(self.load, piece))
                    if not ahead:
                        return
                    yield ahead.popleft().result()
            finally:
                for waiting in ahead:
                    waiting.cancel()


def _column_bytes(group, name: str) -> int:
    """Bytes of a column in a row group, before they were compressed."""
    columns = [group.column(index) for index in range(group.num_columns)]
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == name)


def _opened(url: str):
    fs, path = lake.filesystem(url)
    try:
        return fs.open(path, "rb")
    except FileNotFoundError:  # A snapshot that was just made has moved it.
        fs, path = lake.filesystem(snapshots.other_place(url))
        return fs.open(path, "rb")


def _footer(url: str):
    import pyarrow.parquet as pq

    with _opened(url) as stream:
        return pq.ParquetFile(stream).metadata


def shuffled(
    groups: RowGroups, pool_size: int, rank: int = 0, size: int = 1, seed: int = 0, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """The rank's rows, epoch after epoch without end, in parts of many rows; from the one after `start` others on."""
    rows = sum(groups.counts)
    first, offset = order.place(rows, start, rank, size)
    for epoch in itertools.count(first):
        yield from _epoch(groups, pool_size, rank, size, seed, epoch, offset if epoch == first else 0)


def _epoch(
    groups: RowGroups, pool_size: int, rank: int, size: int, seed: int, epoch: int, offset: int
) -> Iterator[dict[str, np.ndarray]]:
    """The rank's rows of an epoch, but for the first `offset`. What of it is over is not read again."""
    pieces = order.pieces(groups.counts, epoch, seed, rank, size)
    sizes = [piece.stop - piece.start for piece in pieces]
    starts = np.cumsum([0, *sizes])
    left = np.array(sizes)  # rows of each piece that are still to come
    blocks = order.blocks(sizes, pool_size, np.random.default_rng([seed, epoch, rank]))
    blocks = _after(blocks, offset, starts, left)
    loaded: dict[int, dict[str, np.ndarray]] = {}
    needed = [number for number in range(len(pieces)) if left[number]]
    arrivals = zip(needed, groups.read([pieces[number] for number in needed]), strict=True)
    for block in blocks:
        numbers = np.searchsorted(starts, block, "right") - 1
        by_piece = np.argsort(numbers, kind="stable")
        present, firsts = np.unique(numbers[by_piece], return_index=True)
        part: dict[str, np.ndarray] = {}
        for number, places in zip(present.tolist(), np.split(by_piece, firsts[1:]), strict=True):
            while number not in loaded:
                arrived, values = next(arrivals)
                loaded[arrived] = values
            for name, values in loaded[number].items():
                column = part.setdefault(name, np.empty((len(block), *values.shape[1:]), values.dtype))
                column[places] = values[block[places] - starts[number]]
            left[number] -= len(places)
            if not left[number]:
                del loaded[number]
        yield part


def _after(blocks: Iterator[np.ndarray], offset: int, starts: np.ndarray, left: np.ndarray) -> Iterator[np.ndarray]:
    """The blocks without their first `offset` positions, which are counted off from what is `left` of their pieces."""
    while offset:
        block = next(blocks)
        over, rest = block[:offset], block[offset:]
        np.subtract.at(left, np.searchsorted(starts, over, "right") - 1, 1)
        offset -= len(over)
        blocks = itertools.chain([rest], blocks) if len(rest) else blocks
    return blocks
