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
from typing import ClassVar

from .. import lake, process
from ..config import TaskFailure, Train, UserError
from ..process import Team

log = logging.getLogger(__name__)

GRACE = 20  # seconds in which ranks that are asked to end save a checkpoint; Kubernetes gives a pod 30 in all
_OTHERS = 10  # seconds in which ranks end by themselves, and say why, after another has failed
_BEFORE_SPARK = 100  # priority of a hook of Hadoop's; that of Spark's is 40
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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


def run(spark, function: Callable, argument, config: Train, ask_to_end: Callable[[], bool] = lambda: False) -> list:
    """`function(team, argument)` on every rank; results in rank order.

    A signal that ends the job calls `ask_to_end`, in a thread of its own: where it gives True the ranks are left
    `GRACE` seconds to end by themselves. Then they are ended, and `KeyboardInterrupt` or `SystemExit` is raised.

    Raises `RankFailure` where a rank fails, `NoSlots` where too few slots came free in time, `NoNetwork`, and
    `UserError` where a rank cannot import what it runs.
    """
    stopping = _Stopping(ask_to_end)
    if config.launcher == "local":
        with stopping, _java_asks(spark, stopping):
            stopping.take(in_process=True)
            return [function(Team(), argument)]
    import cloudpickle
    import horovod.spark
    from horovod.runner.common.util.timeout import TimeoutException

    local = spark.sparkContext.master.startswith("local")
    try:
        with stopping, _horovod_asks(stopping), _java_asks(spark, stopping), _quiet_thread():
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


class _Stopping:
    """How a signal ends ranks: they are asked first, and ended where that takes too long.

    Without it Horovod would kill them at once, and make a failed rank of the signal, which would be restarted.
    """

    def __init__(self, ask: Callable[[], bool]):
        self.ask, self.former, self.received, self.in_process = ask, {}, None, False
        self.is_over = threading.Event()  # The ranks are to be killed.
        self._have_ended = threading.Event()

    def take(self, in_process: bool = False) -> threading.Event:
        """Signals end the ranks from now on: what is `in_process` by an exception, others by whoever gets `is_over`."""
        self.in_process = in_process
        if threading.current_thread() is threading.main_thread():
            former = {number: signal.getsignal(number) for number in _SIGNALS}
            self.former = {
                number: handler for number, handler in former.items() if handler not in (signal.SIG_IGN, None)
            }
            for number in self.former:
                signal.signal(number, self._take_one)
        return self.is_over

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._have_ended.set()
        for number, handler in self.former.items():
            signal.signal(number, handler)
        if self.received is not None:
            self._raise()

    def _take_one(self, number: int, _) -> None:
        if self.received is None:
            self.received = number
            threading.Thread(target=self._end, daemon=True).start()
        elif self.in_process and self.is_over.is_set():
            self._raise()

    def run(self) -> None:
        """Java's, when a signal reaches it: under spark-submit alone, else as well. Spark stops when this returns."""
        if not self._have_ended.is_set():
            if self.received is None:
                self.received = signal.SIGTERM
                self._end()
            self._have_ended.wait(GRACE)

    class Java:
        implements: ClassVar = ["java.lang.Runnable"]

    def _end(self) -> None:
        try:
            if self.ask():
                log.info("train: told to end; the ranks have %d s to save a checkpoint", GRACE)
                self._have_ended.wait(GRACE)
        finally:
            self.is_over.set()
            if self.in_process and not self._have_ended.is_set():  # Only the main thread can raise there.
                signal.pthread_kill(threading.main_thread().ident, self.received)

    def _raise(self) -> None:
        raise KeyboardInterrupt if self.received == signal.SIGINT else SystemExit(128 + self.received)


@contextlib.contextmanager
def _horovod_asks(stopping: _Stopping):
    """Horovod, where it would take signals over for good, is handed the event of `stopping` in place of its own. Once a
    rank has failed, the others are ended too: it would wait for one that stands still for ever.
    """
    import horovod.spark.gloo_run
    from horovod.runner import gloo_run

    def make_exec_command(*arguments):
        execute = former_make(*arguments)

        def exec_command(*arguments):
            code, when = execute(*arguments)
            if code:
                after = threading.Timer(_OTHERS, stopping.is_over.set)
                after.daemon = True
                after.start()
            return code, when

        return exec_command

    former, gloo_run.register_shutdown_event = gloo_run.register_shutdown_event, stopping.take
    former_make, horovod.spark.gloo_run._exec_command_fn = horovod.spark.gloo_run._exec_command_fn, make_exec_command
    try:
        yield
    finally:
        gloo_run.register_shutdown_event, horovod.spark.gloo_run._exec_command_fn = former, former_make


@contextlib.contextmanager
def _java_asks(spark, stopping: _Stopping):
    """Java, when a signal ends it, runs `stopping` before Spark's own hook, which kills the ranks' tasks."""
    from pyspark.java_gateway import ensure_callback_server_started

    try:
        ensure_callback_server_started(spark.sparkContext._gateway)
        jvm = spark.sparkContext._jvm
        hooks = jvm.org.apache.hadoop.util.ShutdownHookManager.get()
        hook = jvm.java.util.concurrent.FutureTask(stopping, None)  # The same object to Java when it is removed.
        hooks.addShutdownHook(hook, _BEFORE_SPARK)
    except Exception as error:  # Training goes on without.
        log.debug("Java takes no hook", exc_info=error)
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # Java refuses where it is ending.
            hooks.removeShutdownHook(hook)


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
