"""One process of many: its rank, its device, its threads, its settings, and what it keeps loaded.

Nothing of this happens when a module is imported: jobs, ranks and tasks call it.
"""

import collections
import dataclasses
import logging
import os
import re
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from . import __version__, failures
from .config import UserError

log = logging.getLogger(__name__)

# TensorFlow reads both when it is imported. Its log is otherwise full of the absence of CUDA; errors of operations are
# Python exceptions all the same. It turns oneDNN on by itself only where the processor has AVX512-VNNI or the like;
# with AVX2 alone DCGAN's step is half as fast again with it.
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"}
KEPT = 4  # objects that `cached` keeps


@dataclasses.dataclass(frozen=True)
class Team:
    """What a rank knows of the others."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    reduce: Callable[[list], list] = list  # averages a list of tensors over all ranks
    gather: Callable[[Any], Any] = lambda rows: rows  # joins the rows of all ranks' tensors, in the ranks' order
    broadcast: Callable[[list], None] = lambda variables: None  # variables become rank 0's


def prepare(spark=None) -> None:
    """Settings of a process of gan_spark's own, to be made before TensorFlow is imported; what the environment holds
    already stays as it is. With a Spark session they hold for the Python workers that it starts from now on, too.
    `UserError` where these are not what this process is (`check_workers`).
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
        if spark is not None:
            spark.sparkContext.environment.setdefault(name, os.environ[name])
    # Petastorm 0.12 is tied to pyarrow's legacy ParquetDataset, which warns of itself at every use.
    warnings.filterwarnings("ignore", category=FutureWarning, module="petastorm")
    if spark is not None:
        check_workers(spark)


_checked = weakref.WeakSet()  # contexts of Spark whose workers are known to be what this process is


def check_workers(spark) -> None:
    """`UserError` where Spark's Python workers run another Python than this process, or have no gan_spark or another
    version of it. A few tiny tasks tell, once a session.
    """
    context = spark.sparkContext
    if context in _checked:
        return
    slots = min(16, context.defaultParallelism)
    try:
        workers = context.parallelize(range(slots), slots).map(_identity()).collect()
    except Exception as error:
        version = re.search(r"Python in worker has different version (\S+)", str(error))
        # One that cannot import PySpark ends before it has said its version.
        reasons = re.findall(r"^\s*(\w+Error: .+)", str(error), re.MULTILINE) or [failures.summary(error)]
        found = f"Python {version[1]}" if version else f"no Python that can run a task ({reasons[-1]})"
        raise UserError(_difference(f"Spark's Python workers ({context.pythonExec})", found)) from error
    for host, package in workers:
        if package != __version__:
            raise UserError(_difference(f"Spark's Python worker on {host} ({context.pythonExec})", package))
    _checked.add(context)


def _identity() -> Callable[[int], tuple[str, str]]:
    """A task that gives (its host, the version of its gan_spark or why there is none). A function within a function
    travels whole, so that a worker without gan_spark runs it.
    """

    def identity(_: int) -> tuple[str, str]:
        import socket

        try:
            from gan_spark import __version__ as version
        except ImportError as error:
            version = f"no gan_spark ({error})"
        return socket.gethostname(), version

    return identity


def _difference(worker: str, found: str) -> str:
    found = f"gan_spark {found}" if found[:1].isdigit() else found
    return (
        f"{worker}: expected Python {sys.version_info[0]}.{sys.version_info[1]} with gan_spark {__version__} as in this"
        f" process, found {found}; point PYSPARK_PYTHON (or spark.pyspark.python) at this environment's Python on every"
        " worker, or hand the package over with --py-files"
    )


def in_task() -> bool:
    """Whether this is a Python worker of Spark that runs a task, and not a driver or a rank."""
    pyspark = sys.modules.get("pyspark")  # A process that has not imported it runs no task.
    return pyspark is not None and pyspark.TaskContext.get() is not None


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


def limit_task_threads() -> None:
    """One TensorFlow thread in a task of Spark, which runs as many of them as there are cores. Elsewhere nothing
    changes: a driver that loads a model to look through it keeps all of its threads.
    """
    if in_task():
        set_threads(1)


_cache: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()
_cache_lock = threading.RLock()  # Making an object may ask for others.


def cached(key: Hashable, make: Callable[[], Any]) -> Any:
    """What `make` returned for `key` in this process, made once while it is kept: loaded models and networks, and
    functions compiled of them. The `KEPT` objects that were asked for last are kept; the others are let go of.

    `key` starts with what kind of object it is, and says whatever may change about it, such as when a run was created.
    """
    with _cache_lock:
        if key not in _cache:
            _cache[key] = make()
        _cache.move_to_end(key)
        value = _cache[key]
        while len(_cache) > KEPT:
            _cache.popitem(last=False)
        return value
