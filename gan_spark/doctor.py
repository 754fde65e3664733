"""A look at a cluster before it is paid for: `gan-spark doctor`, or jobs/doctor.py under spark-submit.

As many tasks at once as a training has ranks, or as there are slots where those are more, see what ranks will see:
every executor's Python, libraries, devices and memory, the lake from there, the way to the driver and to every other
executor. They meet at the driver. (Spark's barrier stages have such a meeting too; in 3.4 a thread that is left of it
keeps spark-submit from ending.)
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import os
import socket
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from . import __version__, lake, process
from .config import Config, UserError
from .data import schema
from .training import ranks

_PACKAGES = ("pyspark", "tensorflow", "horovod", "petastorm", "pyarrow", "numpy")
_MOST_TASKS = 256
_CONNECTING = 10  # seconds to wait for another executor's port
_TEXT = "é 字"  # what a locale without UTF-8 loses
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Finding:
    """A row of the table: what was looked at, what was found, and what to mend where that is needed."""

    what: str
    found: str
    mend: str = ""


def doctor(spark, config: Config) -> dict:
    """Prints a table of what the session, its executors and the lake are; `UserError` that says what to mend."""
    findings = [*_driver(spark), *_slots(spark, config)]
    if not any(finding.mend for finding in findings):
        findings += _lake(spark, config)
    if not any(finding.mend for finding in findings):
        findings += _executors(spark, config)
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        print(f"{'MEND' if finding.mend else 'ok  '}  {finding.what:<{width}}  {finding.found}", flush=True)
    if mend := [finding for finding in findings if finding.mend]:
        raise UserError("; ".join(f"{finding.what}: {finding.mend}" for finding in mend))
    return {"looked_at": len(findings), "tasks": _tasks(spark, config), "master": spark.sparkContext.master}


# --- the driver ------------------------------------------------------------------------


def _driver(spark) -> Iterator[Finding]:
    properties = spark.sparkContext._jvm.java.lang.System.getProperty
    java, encoding = properties("java.version"), properties("sun.jnu.encoding")
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    yield Finding("driver", f"Python {_python()}, Java {java}, gan_spark {__version__}, {versions}")
    yield Finding("master", f"{spark.sparkContext.master}, Spark {spark.version}")
    lost = _TEXT.encode(sys.getfilesystemencoding(), "replace") != _TEXT.encode() or "ASCII" in encoding.upper()
    mend = "set LC_ALL=C.UTF-8 where the job is started, or arguments lose their letters" if lost else ""
    yield Finding("text", f"Python {sys.getfilesystemencoding()}, Java {encoding}", mend)


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def _cpus(spark) -> int:
    return int(spark.sparkContext.getConf().get("spark.task.cpus", "1"))


def _slots(spark, config: Config) -> Iterator[Finding]:
    """Whether the ranks of the config's training can all run at once."""
    wanted, slots = config.train.workers, spark.sparkContext.defaultParallelism // _cpus(spark)
    found = f"{slots} task slots of {_cpus(spark)} CPUs, train.workers = {wanted}"
    mend = ""
    if slots < wanted:
        mend = f"{wanted} ranks need {wanted} slots at once; ask for more cores or executors, or use fewer workers"
    yield Finding("slots", found, mend)
    dynamic = spark.sparkContext.getConf().get("spark.dynamicAllocation.enabled", "false").lower()
    yield Finding("dynamic allocation", dynamic, "set spark.dynamicAllocation.enabled = false" * (dynamic == "true"))


def _tasks(spark, config: Config) -> int:
    return max(config.train.workers, min(spark.sparkContext.defaultParallelism // _cpus(spark), _MOST_TASKS))


# --- the lake --------------------------------------------------------------------------


def _lake(spark, config: Config) -> Iterator[Finding]:
    """Whether the driver, Spark and every task read and write the lake."""
    root = lake.to_url(config.lake)
    probe = lake.join(root, f"probe-{uuid.uuid4().hex[:8]}.txt")  # Spark passes over names that begin with a dot.
    try:
        lake.write_bytes(probe, _TEXT.encode())
        text = "".join(row[0] for row in spark.read.text(probe).collect())
        mend = "" if text == _TEXT else f"Spark reads {text!r} where {_TEXT!r} was written"
        everywhere = dataclasses.replace(config.train, launcher="spark", workers=_tasks(spark, config))
        if not mend:
            ranks.check_reach(spark, everywhere, root, [probe])
    except Exception as error:
        mend = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        mend = " ".join(mend.split())[:500]
    finally:
        lake.remove(probe)
    yield Finding("lake", f"{root}, by the driver, Spark and {_tasks(spark, config)} tasks", mend)
    manifest = lake.join(lake.dataset_url(config), schema.MANIFEST)
    yield Finding("dataset", config.dataset if lake.exists(manifest) else f"{config.dataset}, not ingested yet")


# --- the executors ---------------------------------------------------------------------


def _executors(spark, config: Config) -> Iterator[Finding]:
    count = _tasks(spark, config)
    rows = spark.range(count).repartition(count)
    java = "java_method('java.lang.System', 'getProperty', 'java.version')"
    of_executors = {row[0] for row in rows.selectExpr(java).distinct().collect()}
    of_driver = spark.sparkContext._jvm.java.lang.System.getProperty("java.version")
    mend = "" if of_executors == {of_driver} else f"the driver has Java {of_driver}; use one version everywhere"
    yield Finding("executors' Java", ", ".join(sorted(of_executors)), mend)
    with Meeting(count, config.train.start_timeout) as meeting:
        host = spark.sparkContext.getConf().get("spark.driver.host")
        look = functools.partial(_look, (host, meeting.port), meeting.token, config.train.start_timeout)
        seen = spark.sparkContext.parallelize(range(count), count).map(look).collect()
    yield from _agreement(seen)
    yield from _devices(seen)
    unreached = sorted({f"{one['host']} does not reach {place}" for one in seen for place in one["unreached"]})
    mend = f"open the TCP ports between these machines: {'; '.join(unreached)}" if unreached else ""
    yield Finding("ports", f"{count} tasks, each to the driver and to every other on ports of their own", mend)
    yield from _memory(seen)


class Meeting:
    """A port of the driver at which `count` tasks learn of one another's, and that all have tried them."""

    def __init__(self, count: int, timeout: float):
        self.count, self.timeout, self.token = count, timeout, uuid.uuid4().hex
        self.server = socket.create_server(("", 0))
        self.port = self.server.getsockname()[1]

    def __enter__(self):
        threading.Thread(target=self._host, daemon=True).start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)  # Closing alone would not wake up who waits for a connection.
        self.server.close()

    def _host(self) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:  # Tasks say what they wait for in vain.
            lines = []
            while len(lines) < self.count:
                connection, _ = self.server.accept()
                connection.settimeout(self.timeout)
                line = stack.enter_context(connection.makefile("rw", errors="replace"))
                stack.enter_context(connection)
                if line.readline().strip() == self.token:
                    lines.append(line)
            places = [json.loads(line.readline()) for line in lines]
            _tell(lines, json.dumps(places))
            for line in lines:
                line.readline()
            _tell(lines, "all have tried")


def _tell(lines: list, text: str) -> None:
    for line in lines:
        line.write(text + "\n")
        line.flush()


def _unreached(meeting: tuple[str, int], token: str, timeout: float) -> list[str]:
    """What this task does not reach of the driver, at `meeting`, and of the other tasks."""
    try:
        with socket.create_connection(meeting, _CONNECTING) as connection, socket.create_server(("", 0)) as server:
            connection.settimeout(timeout)
            line = connection.makefile("rw")
            _tell([line], token)
            _tell([line], json.dumps([connection.getsockname()[0], server.getsockname()[1]]))
            answer = line.readline()
            if not answer:
                return ["the other tasks in time"]
            silent = _silent(json.loads(answer))
            _tell([line], "tried")
            line.readline()  # Nobody's port closes before all have tried it.
            return silent
    except TimeoutError:
        return [f"the driver at {meeting[0]}:{meeting[1]}, or the other tasks there in {timeout:g} s"]
    except OSError as error:
        return [f"the driver at {meeting[0]}:{meeting[1]} ({error})"]


def _look(meeting: tuple[str, int], token: str, timeout: float, _: int) -> dict:
    """What one task sees."""
    from pyspark import TaskContext

    process.prepare()
    unreached = _unreached(meeting, token, timeout)
    problem = ranks.horovod_problem()
    import tensorflow as tf

    return {
        "host": socket.gethostname(),
        "python": _python(),
        "versions": {**_versions(), "gan_spark": __version__},
        "encoding": sys.getfilesystemencoding(),
        "unreached": unreached,
        "horovod": problem,
        "nccl": problem is None and ranks.has_nccl(),
        "offered": [address for resource in TaskContext.get().resources().values() for address in resource.addresses],
        "devices": len(tf.config.list_physical_devices("GPU")),
        "resident": _resident(),
        "available": _available(),
    }


def _silent(places: list[list]) -> list[str]:
    """Those of the `places` ([address, port] of each task) that nothing answers at."""

    def answers(place: list) -> bool:
        try:
            with socket.create_connection(tuple(place), _CONNECTING):
                return True
        except OSError:
            return False

    with ThreadPoolExecutor(16) as pool:
        reached = list(pool.map(answers, places))
    return [f"{address}:{port}" for (address, port), is_there in zip(places, reached, strict=True) if not is_there]


def _agreement(seen: list[dict]) -> Iterator[Finding]:
    """Whether every executor has the driver's Python, packages and encoding, and a Horovod that ranks can use."""
    hosts = Counter(one["host"] for one in seen)
    yield Finding("executors", ", ".join(f"{host} ({count} tasks)" for host, count in sorted(hosts.items())))
    expected = {"python": _python(), "versions": {**_versions(), "gan_spark": __version__}}
    differences = sorted(
        {
            f"{one['host']} has {name} {value}, the driver {expected['versions'][name]}"
            for one in seen
            for name, value in one["versions"].items()
            if value != expected["versions"][name]
        }
        | {f"{one['host']} has Python {one['python']}" for one in seen if one["python"] != expected["python"]}
    )
    found = f"Python {expected['python']} and {len(expected['versions'])} packages, as the driver's"
    yield Finding("executors' Python", "; ".join(differences) or found, "use one environment" * bool(differences))
    encodings = {one["encoding"].lower() for one in seen}
    lost = encodings != {"utf-8"}
    yield Finding("executors' text", ", ".join(encodings), "set spark.executorEnv.LC_ALL = C.UTF-8" if lost else "")
    problems = {f"{one['host']}: {one['horovod']}" for one in seen if one["horovod"]}
    built = "Gloo and NCCL" if all(one["nccl"] for one in seen) else "Gloo, no NCCL: for CPUs"
    mend = f"build it anew: {ranks.BUILD}" if problems else ""
    yield Finding("Horovod", "; ".join(sorted(problems)) or f"built with {built}", mend)


def _devices(seen: list[dict]) -> Iterator[Finding]:
    """Whether TensorFlow sees the GPUs that Spark offers, and Horovod can exchange between them."""
    offered = sum(len(one["offered"]) for one in seen)
    blind = [one["host"] for one in seen if one["offered"] and not one["devices"]]
    mend = ""
    if blind:
        mend = f"TensorFlow sees none on {', '.join(sorted(set(blind)))}: install its CUDA libraries there"
    elif any(one["devices"] and not one["nccl"] for one in seen):
        mend = f"Horovod has no NCCL; build it with HOROVOD_GPU_OPERATIONS=NCCL and {ranks.BUILD}"
    elif any(one["devices"] for one in seen) and not offered:
        mend = "Spark offers none, so that ranks of one machine cannot tell theirs apart: see docs/gpus.md"
    most = max(one["devices"] for one in seen)
    yield Finding("GPUs", f"Spark offers {offered}, TensorFlow sees {most} a task", mend)


def _memory(seen: list[dict]) -> Iterator[Finding]:
    """Whether a machine's memory holds its tasks with TensorFlow loaded."""
    for host, tasks in sorted(Counter(one["host"] for one in seen).items()):
        ours = [one for one in seen if one["host"] == host]
        resident, available = max(one["resident"] for one in ours), min(one["available"] for one in ours)
        needed = resident + _BUFFERS
        mend = ""
        if available < tasks * _BUFFERS:
            mend = f"{tasks} tasks need {tasks * needed / _GIB:.1f} GiB and more for the model: fewer tasks a machine"
        found = f"{resident / _GIB:.1f} GiB a task with TensorFlow, {available / _GIB:.1f} GiB are free beside {tasks}"
        yield Finding(f"memory of {host}", found, mend)


_BUFFERS = 2**28  # of rows that a rank reads ahead and shuffles among


def _resident() -> int:
    """Bytes of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _available() -> int:
    """Bytes of memory that the machine, or the container, still has."""
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            return min(free, int(limit.read()) - int(used.read()))
    except (OSError, ValueError):  # No container, or one without a limit.
        return free
