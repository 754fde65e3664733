"""Many images: what grows with the rows of a dataset, from 10^5 to 10^7 of them.

Images of 28x28, made of their numbers (Fashion-MNIST's 60,000, each shifted by another pixel as often as it takes), are
added to a dataset in appends of --piece images each, until it has 10^5, 10^6 and 10^7 rows, or as many as --rows says.
At each size, every step in a process of its own, as the driver of a standalone cluster on loopback or as a rank:

- `append`: the appends up to this size, in one session, each of --piece images. Seconds an image are the median of the
  last three up to the size. Before them the session makes four appends to another dataset, which are not counted: by
  the first ones of a session a JVM and Python's workers become warm, and they take up to three times as long.
- `read`: two processes read the training images as two ranks do, in batches of 64, an epoch, or as many as it takes
  for 200,000 images each; seconds an image of both together, without what comes before the first batch.
- `sample`: the 1,000 rows whose ids hash lowest, as an evaluation takes them: seconds for each row that is there.
- `train`: two Horovod ranks make 10 steps of a small DCGAN; what the driver and the ranks take before the first one.
- `generate`: 10,000 images of that run.
- `list`: `gan-spark datasets` and `show`.

`ratio` is the largest, over append and read, of seconds an image at one size over those at another; `ratio_memory`
that of the drivers' memory. Seconds of the processors are beside those of the clock: other work on the machine does
not lengthen them as much. The dataset takes 0.6 GB for 10^6 rows.

    python benchmarks/scale.py --rows 1000000
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import common
import memory
import psutil

BOUND, BOUND_MEMORY = 1.2, 1.25
SIZES = (100_000, 1_000_000, 10_000_000)
BATCH, LEAST = 64, 200_000
WARM_APPENDS = 4  # The first one makes the dataset.
FIRST = 1000  # rows that make the dataset, before its first append
NAME = "many"


# --- the images ------------------------------------------------------------------------

_images = {}  # of a process, by folder


def pixels(data: str, batches):
    """In a task: rows of a source for numbers of images."""
    import numpy as np

    from gan_spark.data.sources.rows import chunk

    if data not in _images:
        _images[data] = common.read_idx(data, "train")
    images, labels = _images[data]
    for batch in batches:
        numbers = batch.column("id").to_numpy()
        turns = numbers // len(images)
        content = [
            np.roll(images[n % len(images), :, :, 0], (turn // 28, turn % 28), (0, 1)).tobytes()
            for n, turn in zip(numbers, turns, strict=True)
        ]
        count = len(numbers)
        yield chunk(
            id=[f"image {n:010d}" for n in numbers],
            content=content,
            height=[28] * count,
            width=[28] * count,
            channels=[1] * count,
            label=[str(labels[n % len(images)]) for n in numbers],
        )


def source(spark, data: str, first: int, last: int):
    import functools

    from gan_spark.data.sources.rows import ROW, Source

    frame = spark.range(first, last).mapInArrow(functools.partial(pixels, data), ROW)
    return Source(frame, tuple("0123456789"), last - first)


# --- one step as a driver --------------------------------------------------------------


def config(lake: str, rows: int):
    return common.config(
        lake,
        "made-here",
        run=f"run-{rows}",
        dataset=NAME,
        ingest={"mode": "append", "validation": 0.01, "test": 0.01, "planned_workers": 2},
        model={"name": "dcgan", "width": 8, "latent": 16},
        train={"steps": 10, "log_every": 5, "threads": 1, "workers": 2},
        generate={"images": 10_000, "partitions": 8},
    )


def append(spark, job: dict) -> dict:
    """Adds images from `job["before"]` to `job["rows"]`; seconds of each append."""
    from gan_spark import lake
    from gan_spark.data import ingest

    run_config = config(job["lake"], job["rows"])
    url = lake.dataset_url(run_config)

    def add(to: str, first: int, last: int) -> dict:
        start = time.perf_counter()
        answer = ingest.write(spark, source(spark, job["data"], first, last), to, run_config.ingest)
        assert answer.get("added", answer["rows"]) == last - first and answer["rows"] == last, answer
        piece = {"rows": last, "added": last - first, "seconds": round(time.perf_counter() - start, 2)}
        common.say(f"append to {to.rpartition('/')[2]}: {piece}")
        return piece

    other = lake.dataset_place(job["lake"], f"warm-{job['rows']}")
    for start in range(0, WARM_APPENDS * job["piece"], job["piece"]):
        add(other, start, start + job["piece"])
    lake.remove(other)
    add(url, job["before"], first := job["before"] + FIRST)
    starts = range(first, job["rows"], job["piece"])
    return {"pieces": [add(url, start, min(start + job["piece"], job["rows"])) for start in starts]}


def sample(spark, job: dict) -> dict:
    from gan_spark import lake
    from gan_spark.data import splits

    url = lake.dataset_url(config(job["lake"], job["rows"]))
    start = time.perf_counter()
    rows = splits.lowest_hashes(splits.frame(spark, url, "train"), 1000).collect()
    assert len(rows) == 1000
    return {"step_seconds": round(time.perf_counter() - start, 2)}


def train(spark, job: dict) -> dict:
    from gan_spark.training import driver

    answer = driver.train(spark, config(job["lake"], job["rows"]))
    return {key: answer[key] for key in ("start_seconds", "steps", "workers")}


def generate(spark, job: dict) -> dict:
    from gan_spark.sampling import generate

    start = time.perf_counter()
    answer = generate.generate(spark, config(job["lake"], job["rows"]))
    return {"step_seconds": round(time.perf_counter() - start, 2), "images": answer["images"]}


STEPS = {"append": append, "sample": sample, "train": train, "generate": generate}


def drive(job: dict) -> dict:
    """Runs `job["step"]` as the driver of an application of its own."""
    from pyspark.sql import SparkSession

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
    answer = STEPS[job["step"]](spark, job)
    machine = spark.sparkContext._jvm.java.lang
    machine.System.gc()
    runtime = machine.Runtime.getRuntime()
    heap = runtime.totalMemory() - runtime.freeMemory()
    spark.stop()
    return {**answer, "heap_after_gc": heap}


class Processors(threading.Thread):
    """Processor seconds of everything that a process started, polled until `stop`."""

    def __init__(self, root: psutil.Process):
        super().__init__(daemon=True)
        self.root, self.stopped, self.seconds = root, threading.Event(), {}
        self.poll()
        self.before = sum(self.seconds.values())

    def poll(self) -> None:
        for process in self.root.children(recursive=True):
            try:
                times = process.cpu_times()
                self.seconds[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue

    def run(self) -> None:
        while not self.stopped.wait(0.5):
            self.poll()

    def stop(self) -> float:
        self.stopped.set()
        self.join()
        return round(sum(self.seconds.values()) - self.before, 1)


def driver(step: str, job: dict) -> dict:
    """What a step answers, with the peak memory in MB of its driver, and the seconds it took."""
    processors = Processors(psutil.Process())
    processors.start()
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, __file__, "drive", json.dumps({**job, "step": step})], stdout=subprocess.PIPE, text=True
    )
    peak = memory.Peak(process.pid, tree=True)
    peak.start()
    out, _ = process.communicate()
    peak.stop()
    if process.returncode:
        raise RuntimeError(f"{step} at {job['rows']} rows ended with code {process.returncode}")
    answer = json.loads(out.splitlines()[-1])
    sizes = {"peak_mb": peak.total, "python_mb": peak.python, "jvm_mb": peak.jvm}
    sizes["heap_after_gc_mb"] = answer.pop("heap_after_gc")
    figures = {key: round(value / 2**20, 1) for key, value in sizes.items()}
    figures |= {"seconds": round(time.perf_counter() - start, 1), "processor_seconds": processors.stop(), **answer}
    common.say(f"{step}, {job['rows']:,} rows: { ({k: v for k, v in figures.items() if k != 'pieces'}) }")
    return figures


# --- ranks and lists -------------------------------------------------------------------


def rank(job: dict) -> dict:
    """A rank's share of an epoch, or of as many as have LEAST images."""
    import tensorflow as tf

    from gan_spark import lake, process
    from gan_spark.data import reader, schema

    process.set_threads(1)
    for _ in tf.data.Dataset.range(10).map(lambda number: number + 1).prefetch(1):  # The runtime is up.
        pass
    url = lake.dataset_url(config(job["lake"], job["rows"]))
    share = schema.read_manifest(url).rows["train"] // 2
    steps = max(share, LEAST) // BATCH
    peak = memory.Peak(os.getpid(), tree=False)
    before = psutil.Process().memory_info().rss
    peak.start()
    began = time.perf_counter()
    stream = iter(reader.batches(url, "train", BATCH, job["rank"], 2))
    next(stream)
    start, processor = time.perf_counter(), time.process_time()
    for _ in range(steps - 1):
        next(stream)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    peak.poll()
    peak.stop()
    return {
        "images": (steps - 1) * BATCH,
        "seconds": round(seconds, 2),
        "processor_seconds": round(processor, 2),
        "start_seconds": round(start - began, 2),
        "growth_mb": round((peak.total - before) / 2**20, 1),
    }


def read(job: dict) -> dict:
    """Both ranks' figures at once."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        ranks = list(pool.map(lambda number: common.child(__file__, "rank", {**job, "rank": number}), (0, 1)))
    images = sum(each["images"] for each in ranks)
    figures = {
        "images": images,
        "seconds_an_image": max(each["seconds"] for each in ranks) / images,
        "processor_seconds_an_image": sum(each["processor_seconds"] for each in ranks) / images,
        "start_seconds": max(each["start_seconds"] for each in ranks),
        "growth_mb": max(each["growth_mb"] for each in ranks),
    }
    common.say(f"read, {job['rows']:,} rows: {figures}")
    return figures


def listing(lake: str) -> dict:
    """Seconds of the two commands, and what a journal holds."""
    from gan_spark.data import snapshots
    from gan_spark.lake import at_snapshot, dataset_place, filesystem, join

    url, seconds = dataset_place(lake, NAME), {}
    for name, words in {"datasets": ["datasets"], "show": ["show", NAME]}.items():
        start = time.perf_counter()
        command = [sys.executable, "-m", "gan_spark", *words, "--lake", lake, "--json"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds[name] = round(time.perf_counter() - start, 2)
        rows = json.loads(out)
    fs, path = filesystem(join(url, "_snapshots"))
    sizes = [fs.size(name) for name in fs.find(path)]
    files = snapshots.files(at_snapshot(url, rows[-1]["snapshot"]))
    data = sum(filesystem(place)[0].size(filesystem(place)[1]) for place in files.values())
    figures = {
        "seconds": seconds,
        "snapshots": len(rows),
        "files": len(files),
        "gb": round(data / 1e9, 3),
        "journal_mb": round(sum(sizes) / 2**20, 2),
        "newest_manifest_kb": round(max(sizes) / 1024, 1),
    }
    common.say(f"list: {figures}")
    return figures


# --- all of it -------------------------------------------------------------------------


def spread(values: list[float]) -> float:
    return round(max(values) / min(values), 3)


def result(sizes: list[int], figures: dict, piece: int) -> dict:
    each = {
        rows: statistics.median(one["seconds"] / one["added"] for one in figures["append"][rows]["pieces"][-3:])
        for rows in sizes
    }
    processor, before = {}, 0
    for rows in sizes:
        processor[rows] = figures["append"][rows]["processor_seconds"] / (rows - before + WARM_APPENDS * piece)
        before = rows
    ratios = {
        "append": spread(list(each.values())),
        "read": spread([figures["read"][rows]["seconds_an_image"] for rows in sizes]),
    }
    steps = {step: {rows: figures[step][rows]["peak_mb"] for rows in sizes} for step in STEPS}
    growth = {step: round(peaks[sizes[-1]] / peaks[sizes[0]], 3) for step, peaks in steps.items()}
    return {
        "benchmark": "scale",
        "ratio": max(ratios.values()),
        "bound": BOUND,
        "ratios": ratios,
        "ratio_memory": max(growth.values()),
        "bound_memory": BOUND_MEMORY,
        "ratios_memory": growth,
        "rows": sizes,
        "piece": piece,
        "append_seconds_an_image": {rows: round(value, 8) for rows, value in each.items()},
        "append_processor_seconds_an_image": {rows: round(value, 8) for rows, value in processor.items()},
        "figures": figures,
    }


def main() -> None:
    parser = common.parser(__doc__, repeats=0)
    parser.add_argument("--rows", type=int, default=SIZES[-1], help="at most (default: %(default)s)")
    parser.add_argument("--piece", type=int, default=100_000, help="images of an append (default: %(default)s)")
    arguments = common.arguments(parser)
    sizes = [size for size in SIZES if size <= arguments.rows] or [arguments.rows]
    figures = {step: {} for step in (*STEPS, "read", "list")}
    here = os.path.dirname(os.path.abspath(__file__))
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    with (
        common.lake(arguments) as lake,
        tempfile.TemporaryDirectory(prefix="gan-spark-cluster-") as folder,
        memory.cluster(folder) as master,
    ):
        before = 0
        for rows in sizes:
            job = {"lake": lake, "master": master, "data": arguments.data, "piece": arguments.piece}
            job |= {"rows": rows, "before": before}
            figures["append"][rows] = driver("append", job)
            figures["read"][rows] = read(job)
            for step in ("sample", "train", "generate"):
                figures[step][rows] = driver(step, job)
            figures["list"][rows] = listing(lake)
            before = rows
    common.finish(result(sizes, figures, arguments.piece))


if __name__ == "__main__":
    if sys.argv[1:2] == ["drive"]:
        common.finish(drive(json.loads(sys.argv[2])))
    elif sys.argv[1:2] == ["rank"]:
        common.finish(rank(json.loads(sys.argv[2])))
    else:
        main()
