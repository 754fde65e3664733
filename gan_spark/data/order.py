"""Order of a split's rows in training: which rank reads which rows in which epoch, and in what order.

It is a function of seed, epoch, rank and number of ranks alone, so that a resumed run goes on with the rows that were
next. In each epoch the row groups are put in another order, and the ranks share their rows out in equal parts: over
epochs every rank comes to see every row, and all rows are seen equally often.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """Rows `start` to `stop` of a row group."""

    group: int
    start: int
    stop: int


def quota(rows: int, epochs: int, rank: int, size: int) -> int:
    """How many rows the rank has read after so many epochs of `rows` rows: a `size`th, but for less than one row."""
    return (epochs * rows + rank) // size


def place(rows: int, position: int, rank: int, size: int) -> tuple[int, int]:
    """(epoch, rows of it that the rank has read) once the rank has read `position` rows."""
    epoch = ((position + 1) * size - 1 - rank) // rows
    return epoch, position - quota(rows, epoch, rank, size)


def pieces(counts: Sequence[int], epoch: int, seed: int, rank: int = 0, size: int = 1) -> list[Piece]:
    """What the rank reads in an epoch, of row groups of `counts` rows."""
    rows = sum(counts)
    shares = [quota(rows, epoch + 1, r, size) - quota(rows, epoch, r, size) for r in range(rank + 1)]
    first, last = sum(shares[:-1]), sum(shares)
    return _between(counts, np.random.default_rng([seed, epoch]).permutation(len(counts)).tolist(), first, last)


def share(counts: Sequence[int], rank: int, size: int) -> list[Piece]:
    """What the rank reads where each row is read once, in the order of the files."""
    rows = sum(counts)
    return _between(counts, range(len(counts)), rows * rank // size, rows * (rank + 1) // size)


def _between(counts: Sequence[int], groups: Sequence[int], first: int, last: int) -> list[Piece]:
    """Pieces of rows `first` to `last` of the groups end to end."""
    found, at = [], 0
    for group in groups:
        start, stop = max(first - at, 0), min(last - at, counts[group])
        if start < stop:
            found.append(Piece(group, start, stop))
        at += counts[group]
    return found


def blocks(sizes: Sequence[int], pool_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Positions, from 0 to sum(sizes) - 1, each once and shuffled, as int64 arrays.

    They are drawn at random from a pool that is refilled, `sizes` at a time, when it is half empty.
    """
    pool, start = np.zeros(0, np.int64), 0
    for size in sizes:
        pool = np.concatenate([pool, np.arange(start, start + size)])
        start += size
        if len(pool) > pool_size:
            rng.shuffle(pool)
            yield pool[pool_size // 2 :]
            pool = pool[: pool_size // 2]
    if len(pool):
        rng.shuffle(pool)
        yield pool
