"""One process of many: its rank, its device, its threads."""

import dataclasses
import logging
import os
from collections.abc import Callable

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Team:
    """What a rank knows of the others."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    reduce: Callable[[list], list] = list  # averages a list of tensors over all ranks
    broadcast: Callable[[list], None] = lambda variables: None  # variables become rank 0's


def pin_device(team: Team) -> None:
    """On GPUs, this rank sees one: Spark's resource where it assigned one, else the one of its local rank."""
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return
    from horovod.spark.task import get_available_devices

    assigned = get_available_devices()  # Empty where Spark assigned none, or did not start this rank.
    index = int(assigned[0]) if assigned else team.local_rank
    tf.config.set_visible_devices(devices[index % len(devices)], "GPU")
    tf.config.experimental.set_memory_growth(devices[index % len(devices)], True)


def set_threads(threads: int) -> None:
    """TensorFlow's threads; only a process that has not yet run an operation can still set them."""
    import tensorflow as tf

    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError:
        log.debug("TensorFlow is running already; its threads stay as they are")
