"""Ranks of a training: a function run in this process, or as `horovod.spark.run` tasks."""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable

from .. import lake, process
from ..config import TaskFailure, Train, UserError
from ..process import Team

log = logging.getLogger(__name__)


class RankFailure(TaskFailure):
    """A rank died or raised; the job can start again from its last checkpoint."""


class NoSlots(UserError):
    """Too few task slots came free for the ranks; none of them has begun."""


class NoNetwork(TaskFailure):
    """The ranks have their slots and cannot reach each other."""


# How Horovod is built with what ranks need of it; pip alone builds whatever it finds.
BUILD = (
    "HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1"
    " HOROVOD_WITHOUT_MPI=1 pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps horovod==0.28.1"
)


def check(spark, config: Train) -> None:
    """`UserError` where the session cannot hold the ranks at once, or Horovod is not built for them."""
    if config.launcher == "local":
        return
    context = spark.sparkContext
    if context.getConf().get("spark.dynamicAllocation.enabled", "false").lower() == "true":
        raise UserError("spark.dynamicAllocation.enabled = true: all ranks must run at once; set it to false")
    cpus = int(context.getConf().get("spark.task.cpus", "1"))
    slots = context.defaultParallelism // cpus
    if context.master.startswith("local") and config.workers > slots:
        master = f"local[{config.workers * cpus}]"
        raise UserError(
            f"train.workers = {config.workers}, but {context.master} has {slots} task slots: every rank needs one; use"
            f" fewer workers, or ask for more slots than cores: MASTER={master} in the environment, or spark-submit"
            f" --master {master}"
        )
    if problem := horovod_problem():
        raise UserError(f'train.launcher = "{config.launcher}": {problem}; build it anew: {BUILD}')


def horovod_problem() -> str | None:
    """What Horovod lacks for ranks of TensorFlow that meet by Gloo: a look into its library, of which nothing runs."""
    try:
        from horovod.common.util import get_extension_full_path

        package = _horovod()
    except ImportError as error:
        return f"Horovod cannot be imported ({error})"
    if not os.path.exists(get_extension_full_path(package, "mpi_lib")):
        return f"the Horovod in {os.path.dirname(os.path.dirname(package))} was built without TensorFlow"
    try:
        library = _library()
    except OSError as error:
        return f"Horovod's library for TensorFlow cannot be loaded ({error}): it was built for another TensorFlow"
    return None if library.gloo_built() else "Horovod was built without Gloo"


def has_nccl() -> bool:
    """Whether Horovod, with which nothing is wrong, exchanges between GPUs by NCCL."""
    return bool(_library().nccl_built())


def _horovod() -> str:
    """Where Horovod for TensorFlow is; `ImportError` where it, or a part of it that ranks need, is not there."""
    import horovod.common.basics  # noqa: F401

    return importlib.util.find_spec("horovod.tensorflow").origin


def _library():
    import tensorflow  # noqa: F401 (the library of Horovod links against those that this loads)
    from horovod.common.basics import HorovodBasics

    return HorovodBasics(_horovod(), "mpi_lib")


def check_reach(spark, config: Train, folder: str, files: list[str]) -> None:
    """`UserError` where an executor cannot read one of `files`, or where what it writes in `folder` is not seen from
    here: URLs of the lake.
    """
    if config.launcher == "local":
        return
    probe = lake.join(folder, f".probe-{uuid.uuid4().hex[:8]}")
    try:
        answers = (
            spark.sparkContext.parallelize(range(config.workers), config.workers)
            .map(functools.partial(_reach, probe, files))
            .collect()
        )
        for index, (host, problem) in enumerate(answers):
            if problem is None and not lake.exists(lake.join(probe, str(index))):
                problem = f"what it writes to {folder} is not seen from the driver"
            if problem is not None:
                raise UserError(
                    f"worker {host}: {problem}. Every worker must reach the lake: on a cluster, a URL such as s3a: or"
                    " hdfs:, or a path that all machines mount, with the worker's own credentials"
                )
    finally:
        lake.remove(probe)


def _reach(probe: str, files: list[str], index: int) -> tuple[str, str | None]:
    host = socket.gethostname()
    for url in files:
        try:
            lake.read_bytes(url)
        except Exception as error:
            return host, f"{url} cannot be read ({type(error).__name__}: {error})"
    try:
        lake.write_bytes(lake.join(probe, str(index)), b"")
    except Exception as error:
        return host, f"{probe} cannot be written ({type(error).__name__}: {error})"
    return host, None


def run(spark, function: Callable, argument, config: Train) -> list:
    """`function(team, argument)` on every rank; results in rank order.

    Raises `RankFailure` where a rank fails, `NoSlots` where too few slots came free in time, `NoNetwork`, and
    `UserError` where a rank cannot import what it runs.
    """
    if config.launcher == "local":
        return [function(Team(), argument)]
    import cloudpickle
    import horovod.spark
    from horovod.runner.common.util.timeout import TimeoutException

    local = spark.sparkContext.master.startswith("local")
    try:
        with _signals_end_the_job(), _quiet_thread():
            results = horovod.spark.run(
                _on_rank,
                args=(cloudpickle.dumps((function, argument)),),
                num_proc=config.workers,
                use_gloo=True,
                start_timeout=config.start_timeout,
                nics={"lo"} if local else None,
                verbose=0,
            )
    except TimeoutException as error:
        if "Timed out waiting for Spark tasks to start" in str(error):
            raise NoSlots(
                f"train.workers = {config.workers}: not that many free task slots in train.start_timeout ="
                f" {config.start_timeout} s; use fewer workers, give the application more cores (spark.cores.max, or"
                " spark.executor.instances and spark.executor.cores), or wait for the cluster to be free"
            ) from error
        raise NoNetwork(
            f"train.workers = {config.workers}: all ranks have a task slot, but did not reach each other in"
            f" train.start_timeout = {config.start_timeout} s ({str(error).partition('.')[0]}): a network problem"
            " between executors, or from the driver to them; open the TCP ports between these machines, or raise"
            " train.start_timeout if the slots came late"
        ) from error
    except Exception as error:
        raise RankFailure(" ".join(str(error).split())) from error
    for rank, result in enumerate(results):
        if isinstance(result, _NotImported):
            raise UserError(
                f"rank {rank} cannot import what it runs ({result.error}, in {result.python}): install it for the"
                " Python of every executor"
            )
    return results


@dataclasses.dataclass(frozen=True)
class _NotImported:
    """What a rank returns in place of a result where an import fails, as it does on all of them."""

    error: str
    python: str


@contextlib.contextmanager
def _signals_end_the_job():
    """Horovod takes SIGINT and SIGTERM over, for good, and makes a failed rank of them; that would be restarted."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    # Told of every signal, whoever handles it.
    previous = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in kept.items():
            signal.signal(number, handler)
        with ours, theirs, contextlib.suppress(BlockingIOError):
            received = set(ours.recv(64))
            if signal.SIGTERM in received:
                raise SystemExit(128 + signal.SIGTERM)
            if signal.SIGINT in received:
                raise KeyboardInterrupt


@contextlib.contextmanager
def _quiet_thread():
    """Horovod's thread that waits for its Spark job raises beside the main one, whose error it is: at level debug."""
    former = threading.excepthook

    def hook(failure):
        if "run_spark" in failure.thread.name:
            log.debug("where the Spark job of the ranks failed:", exc_info=failure[:3])
        else:
            former(failure)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = former


def _on_rank(job: bytes):
    """`job` is a function of (team, argument) and its argument, pickled: to unpickle them imports TensorFlow, which
    reads what `prepare` sets.
    """
    process.prepare()
    # Milliseconds between Horovod's looks for work. At its own 1 a rank of one thread lost a quarter of its
    # time to them (1 ms: 531 images/s; 2: 713; 5: 740; two ranks of DCGAN on two cores).
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "2")
    try:
        import horovod.tensorflow as hvd
        import tensorflow as tf

        function, argument = pickle.loads(job)
    except ImportError as error:
        return _NotImported(f"{type(error).__name__}: {error}", sys.executable)
    hvd.init()

    def broadcast(variables):
        hvd.broadcast_variables(variables, root_rank=0)

    def gather(rows):
        # Horovod's gradient is the ranks' mean; what all of them compute of all rows has their sum.
        joined = hvd.allgather(rows)
        constant = tf.stop_gradient(joined)
        return constant + hvd.size() * (joined - constant) if rows.dtype.is_floating else joined

    team = Team(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.grouped_allreduce, gather, broadcast)
    try:
        return function(team, argument)
    except UserError as error:
        raise SystemExit(f"rank {team.rank}: {error}") from None  # Its traceback would stand above the job's one line.
