"""Statistics over a batch: of a rank's own share of it, or of the whole batch that the ranks share.

Which of the two it is, the scope says in which a model is built, as Keras's mixed precision policy does: within
`of_whole_batch` layers and models take their statistics over the images of all ranks, in the gradient too, so that
ranks of B/2 images step as one process of B does.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Statistics:
    """How a model sees beyond its rank's share of a batch; by default it does not."""

    rank: int = 0
    size: int = 1
    mean: Callable[[list], list] = list  # of each tensor over all ranks
    gather: Callable[[tf.Tensor], tf.Tensor] = tf.convert_to_tensor  # the rows of all ranks, in their order

    def own(self, rows: tf.Tensor) -> tf.Tensor:
        """This rank's of the rows that `gather` gave."""
        return rows if self.size == 1 else tf.split(rows, self.size)[self.rank]

    def before(self, rows: tf.Tensor) -> tf.Tensor:
        """For each row of the rank's share the one before it in the batch; for the first, the last."""
        return self.own(tf.roll(self.gather(rows), 1, 0))


_OWN_SHARE = Statistics()
_scope = [_OWN_SHARE]


def current() -> Statistics:
    """The statistics of the scope that this is called in."""
    return _scope[-1]


@contextlib.contextmanager
def of_whole_batch(rank: int, size: int, mean: Callable, gather: Callable) -> Iterator[None]:
    """A scope in which what is built takes its statistics over the images of all `size` ranks."""
    _scope.append(Statistics(rank, size, mean, gather) if size > 1 else _OWN_SHARE)
    try:
        yield
    finally:
        _scope.pop()
