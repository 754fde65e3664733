"""Memory: the driver's while rows grow thirtyfold, and that of a rank's input buffers.

Driver: ingest, train, generate and evaluate each run in a process of their own as the driver of a standalone cluster on
loopback, so that executors are other processes. The driver's memory is the peak resident size (RSS), polled ten times a
second, of that process and everything it started, which is its JVM (heap at most 1 GiB). `ratio` is the largest, over
the four steps, of that peak at 300,000 rows over that at 10,000. The heap still in use after a full collection at the
end is given beside it. Rows are Fashion-MNIST's images, drawn at random with ids of their own; half of them are the
test split; as many images are generated and evaluated. Training is cut to a few steps of a small DCGAN, since its
length is no matter here.

Input buffers: growth of a process's RSS while it reads `gan_spark.data.reader.batches`, over what it is with TensorFlow
and Petastorm loaded: once through the 300,000 images, and twice through 6,000 random RGB images of 128x128 in the
largest row groups that ingest makes.

    python benchmarks/memory.py
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import common
import psutil

STEPS = ("ingest", "train", "generate", "evaluate")
BOUND, BOUND_INPUT_MB = 1.25, 512
BATCH = 64


class Peak(threading.Thread):
    """Peak RSS of a process, and of all that it started where `tree`, polled until `stop`."""

    def __init__(self, pid: int, tree: bool):
        super().__init__(daemon=True)
        self.root, self.tree, self.stopped = psutil.Process(pid), tree, threading.Event()
        self.total = self.python = self.jvm = 0

    def run(self) -> None:
        while not self.stopped.wait(0.1):
            self.poll()

    def poll(self) -> None:
        python = jvm = 0
        with contextlib.suppress(psutil.Error):
            for process in [self.root] + (self.root.children(recursive=True) if self.tree else []):
                with contextlib.suppress(psutil.Error):
                    if process.name() == "java":
                        jvm += process.memory_info().rss
                    else:
                        python += process.memory_info().rss
        self.total, self.python, self.jvm = max(self.total, python + jvm), max(self.python, python), max(self.jvm, jvm)

    def stop(self) -> None:
        self.stopped.set()
        self.join()


# --- the cluster -----------------------------------------------------------------------


@contextlib.contextmanager
def cluster(folder: str):
    """URL of a standalone master on loopback with one worker of two cores; both end with the block."""
    import pyspark

    from gan_spark.job import java_home

    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"  # The web pages too.
    if home := java_home():
        os.environ["JAVA_HOME"] = home
    launcher = os.path.join(os.path.dirname(pyspark.__file__), "bin", "spark-class")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"spark://127.0.0.1:{port}"
    deploy, started = "org.apache.spark.deploy", []

    def start(name: str, *options: str) -> None:
        with open(os.path.join(folder, f"{name}.log"), "wb") as log:
            started.append(subprocess.Popen([launcher, *options], stdout=log, stderr=log))

    try:
        start("master", f"{deploy}.master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0")
        _wait(port)
        work = os.path.join(folder, "work")
        start(
            "worker",
            f"{deploy}.worker.Worker",
            "--host",
            "127.0.0.1",
            "--webui-port",
            "0",
            "--cores",
            "2",
            "--memory",
            "2g",
            "--work-dir",
            work,
            url,
        )
        yield url
    finally:
        # The worker first: it ends its executors.
        for process in reversed(started):
            below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            process.wait(30)
            for left in psutil.wait_procs(below, 10)[1]:
                left.terminate()


def _wait(port: int) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.1)
    raise RuntimeError("the Spark master did not start")


# --- one step as a driver --------------------------------------------------------------


def config(lake: str, rows: int):
    return common.config(
        lake,
        os.path.join(lake, f"idx-{rows}"),
        run=f"run-{rows}",
        dataset=f"fashion-{rows}",
        ingest={"test": 0.5},
        model={"name": "dcgan", "width": 8, "latent": 16},
        train={"steps": 10, "log_every": 5, "threads": 1},
        generate={"images": rows, "partitions": 8},
        evaluate={"classifier_steps": 10, "sample": 1000},
    )


def drive(job: dict) -> dict:
    """Runs `job["step"]` as the driver of an application of its own."""
    from pyspark.sql import SparkSession

    from gan_spark.data import ingest
    from gan_spark.quality import evaluate
    from gan_spark.sampling import generate
    from gan_spark.training import driver

    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = (
        SparkSession.builder.master(job["master"])
        .appName(job["step"])
        .config("spark.driver.memory", "1g")
        .config("spark.executor.memory", "1g")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "256")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    steps = {
        "ingest": ingest.ingest,
        "train": driver.train,
        "generate": generate.generate,
        "evaluate": evaluate.evaluate,
    }
    steps[job["step"]](spark, config(job["lake"], job["rows"]))
    machine = spark.sparkContext._jvm.java.lang
    machine.System.gc()
    runtime = machine.Runtime.getRuntime()
    heap = runtime.totalMemory() - runtime.freeMemory()
    spark.stop()
    return {"heap_after_gc": heap}


def driver(step: str, rows: int, lake: str, master: str) -> dict:
    """Peak memory in MB of a step's driver."""
    start = time.perf_counter()
    job = json.dumps({"step": step, "rows": rows, "lake": lake, "master": master})
    process = subprocess.Popen([sys.executable, __file__, "drive", job], stdout=subprocess.PIPE, text=True)
    peak = Peak(process.pid, tree=True)
    peak.start()
    out, _ = process.communicate()
    peak.stop()
    if process.returncode:
        raise RuntimeError(f"{step} of {rows} rows ended with code {process.returncode}")
    heap = json.loads(out.splitlines()[-1])["heap_after_gc"]
    peaks = {"peak_mb": peak.total, "python_mb": peak.python, "jvm_mb": peak.jvm, "heap_after_gc_mb": heap}
    figures = {key: round(value / 2**20, 1) for key, value in peaks.items()} | {
        "seconds": round(time.perf_counter() - start, 1)
    }
    common.say(f"{step}, {rows:,} rows: {figures}")
    return figures


# --- data ------------------------------------------------------------------------------


def repeat(data: str, folder: str, rows: int) -> None:
    """IDX files of `rows` of Fashion-MNIST's training images, drawn at random."""
    import numpy as np

    os.makedirs(folder, exist_ok=True)
    images, labels = common.read_idx(data, "train")
    chosen = np.random.default_rng(rows).integers(len(images), size=rows)
    with open(os.path.join(folder, "train-images-idx3-ubyte"), "wb") as stream:
        stream.write(struct.pack(">4I", 0x803, rows, 28, 28))
        for start in range(0, rows, 10_000):
            stream.write(images[chosen[start : start + 10_000]].tobytes())
    with open(os.path.join(folder, "train-labels-idx1-ubyte"), "wb") as stream:
        stream.write(struct.pack(">2I", 0x801, rows) + labels[chosen].tobytes())


def noise(lake: str, rows: int) -> str:
    """A dataset of random RGB images of 128x128, stored raw."""
    import numpy as np
    import pandas as pd

    from gan_spark import job
    from gan_spark import lake as paths
    from gan_spark.config import parse
    from gan_spark.data import images, ingest

    def draw(frames):
        for frame in frames:
            pixels = (np.random.default_rng(id).integers(0, 256, (128, 128, 3), np.uint8) for id in frame["id"])
            yield pd.DataFrame(
                {"id": [f"noise/{id}" for id in frame["id"]], "content": [images.encode_png(image) for image in pixels]}
            )

    spark = job.session("benchmark: memory")
    table = os.path.join(lake, "noise")
    spark.range(rows).mapInPandas(draw, "id string, content binary").write.mode("overwrite").parquet(table)
    # With one planned worker, row groups are as large as ingest makes them.
    options = {
        "source": "table",
        "path": table,
        "height": 128,
        "width": 128,
        "channels": 3,
        "validation": 0.0,
        "test": 0.0,
        "planned_workers": 1,
    }
    noise_config = parse({"run": "noise", "dataset": "noise", "lake": lake, "ingest": options})
    ingest.ingest(spark, noise_config)
    spark.stop()
    return paths.dataset_url(noise_config)


# --- input buffers ---------------------------------------------------------------------


def consume(job: dict) -> dict:
    """Growth of this process's RSS, in MB, while it reads `job["images"]` images."""
    import petastorm  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import tensorflow as tf

    from gan_spark import process
    from gan_spark.data import reader

    process.set_threads(1)
    for _ in tf.data.Dataset.range(10).map(lambda number: number + 1).prefetch(1):  # The runtime is up.
        pass
    before = psutil.Process().memory_info().rss
    peak = Peak(os.getpid(), tree=False)
    peak.start()
    read = 0
    for batch in reader.batches(job["url"], "train", BATCH):
        read += len(batch["image"])
        if read >= job["images"]:
            break
    peak.poll()
    peak.stop()
    return {"growth_mb": round((peak.total - before) / 2**20, 1), "before_mb": round(before / 2**20, 1), "images": read}


def row_group_mb(url: str) -> float:
    """Size in MB of the largest row group, uncompressed."""
    import pyarrow.parquet as pq

    from gan_spark.data import splits

    files = [pq.ParquetFile(name.removeprefix("file://")).metadata for name in splits.files(url, "train")]
    return round(
        max(file.row_group(group).total_byte_size for file in files for group in range(file.num_row_groups)) / 2**20, 1
    )


def main() -> None:
    parser = common.parser(__doc__, repeats=0)
    parser.add_argument("--small", type=int, default=10_000, help="rows (default: %(default)s)")
    parser.add_argument("--large", type=int, default=300_000, help="rows (default: %(default)s)")
    parser.add_argument("--noise", type=int, default=6000, help="images of 128x128 (default: %(default)s)")
    arguments = common.arguments(parser)
    from gan_spark import lake as paths
    from gan_spark.runs.store import Run

    peaks = {step: {} for step in STEPS}
    with common.lake(arguments) as lake, tempfile.TemporaryDirectory(prefix="gan-spark-cluster-") as folder:
        with cluster(folder) as master:
            for rows in (arguments.small, arguments.large):
                run_config = config(lake, rows)
                repeat(arguments.data, os.path.join(lake, f"idx-{rows}"), rows)
                paths.remove(Run.of(run_config).url)  # Or the trainer would go on from its checkpoint.
                for step in STEPS:
                    peaks[step][rows] = driver(step, rows, lake, master)
        common.say("input buffers")
        url, noise_url = paths.dataset_url(config(lake, arguments.large)), noise(lake, arguments.noise)
        inputs = {
            "28x28x1": (
                common.child(__file__, "consume", {"url": url, "images": arguments.large})
                | {"row_group_mb": row_group_mb(url)}
            ),
            "128x128x3": (
                common.child(__file__, "consume", {"url": noise_url, "images": 2 * arguments.noise})
                | {"row_group_mb": row_group_mb(noise_url)}
            ),
        }
    small, large = arguments.small, arguments.large
    growth = {step: round(peaks[step][large]["peak_mb"] / peaks[step][small]["peak_mb"], 3) for step in STEPS}
    common.finish(
        {
            "benchmark": "memory",
            "ratio": max(growth.values()),
            "bound": BOUND,
            "ratios": growth,
            "ratio_heap_after_gc": max(
                round(peaks[step][large]["heap_after_gc_mb"] / peaks[step][small]["heap_after_gc_mb"], 3)
                for step in STEPS
            ),
            "driver": peaks,
            "input_buffer_mb": max(value["growth_mb"] for value in inputs.values()),
            "bound_input_buffer_mb": BOUND_INPUT_MB,
            "inputs": inputs,
            "repeats": 1,
        }
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["drive"]:
        common.finish(drive(json.loads(sys.argv[2])))
    elif sys.argv[1:2] == ["consume"]:
        common.finish(consume(json.loads(sys.argv[2])))
    else:
        main()
