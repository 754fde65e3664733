"""SIGKILL of the driver and of a task at every stage of an append, on a disk, on an object store and on HDFS: the
snapshot before is what every reader sees, the next append ends whole, and no id is there twice.
"""

import json
import os
import signal
import subprocess
import sys

import petastorm
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from test_hdfs import hdfs  # noqa: F401 (a fixture)
from test_lakes import PACKAGES, s3  # noqa: F401 (a fixture)

from gan_spark import lake
from gan_spark.data import petastorm_view, reader, schema, snapshots

pytestmark = pytest.mark.slow

# One process each, of Spark and all: one that does what it is told, line by line, and says what Spark sees then; and
# others that die in an append, at `point`.
JOB = """
import json, os, pathlib, signal, sys, threading, time
import numpy as np
from gan_spark import job, lake
from gan_spark.config import Ingest
from gan_spark.data import append, images, ingest, passes, schema, snapshots, sources, tasks

url, point, flag = sys.argv[1:]
config = Ingest(source="table", height=8, width=8, validation=0.2, test=0.2, planned_workers=2, mode="append")
spark = job.session("kills")
plain = passes.run


def write(count):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (8, 8, 1), np.uint8) for i in range(count)]
    rows = [(f"image {i:04d}", bytearray(images.encode_png(image))) for i, image in enumerate(pixels)]
    rows += [(f"bad {i:04d}", bytearray(b"no image")) for i in range(0, count, 40)]
    frame = spark.createDataFrame(rows, "id string, content binary").coalesce(1)
    return ingest.write(spark, sources.from_frame(frame, "id", "content"), url, config)


def ids(*places):
    return [row.id for row in spark.read.parquet(*places).select("id").collect()]


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def slow_run(rows, work, rows_before_death=None):
    # In the tasks: rows come slowly, and the first attempt may die of them.
    def slowly(batches):
        count = 0
        for batch in batches:
            for start in range(0, batch.num_rows, 4):
                pathlib.Path(flag).touch()
                if count == rows_before_death:
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.1)
                yield batch.slice(start, 4)
                count += 4
        if rows_before_death == -1:
            os.kill(os.getpid(), signal.SIGKILL)

    def slow_write(batches):
        yield from tasks.write(work, slowly(batches))

    return passes.Written(rows.mapInArrow(slow_write, tasks.REPORT).collect())


def state(count, rows_before_death=None):
    error = None
    if rows_before_death is not None:
        passes.run = lambda rows, work: slow_run(rows, work, rows_before_death)
    try:
        write(count)
    except Exception as raised:
        error = type(raised).__name__
    passes.run = plain
    seen, folder = ids(*snapshots.files(url).values()), ids(url)
    return {"error": error, "snapshot": schema.read_manifest(url).number, "seen": len(seen), "distinct": len(set(seen)),
            "folder": len(folder), "in_folder": len(set(folder)),
            "rejects": spark.read.parquet(f"{url}.rejected").count()}


if point == "obeying":
    for line in sys.stdin:
        print(json.dumps(state(*json.loads(line))), flush=True)
    sys.exit()
if point == "comparing":
    append._left_to_do = die
if point == "writing":
    def watch():
        while not os.path.exists(flag):
            time.sleep(0.02)
        time.sleep(0.5)
        die()

    passes.run = slow_run
    threading.Thread(target=watch, daemon=True).start()
if point == "written":
    append._counts_by_class = die
if point == "rejecting":
    append.add_rejects = die
if point == "committing":
    lake.create = die
if point in ("committed", "publishing"):  # Once the snapshot is there, of what comes into sight nothing, or one file.
    committed, move = lake.create, snapshots._move
    left = [0 if point == "committed" else 1]

    def move_or_die(*arguments, **options):
        left[0] -= 1
        return move(*arguments, **options) if left[0] >= 0 else die()

    def create(*arguments):
        snapshots._move = move_or_die
        return committed(*arguments)

    lake.create = create
write(int(sys.stdin.readline()))
"""
BEFORE = ("comparing", "writing", "written", "rejecting", "committing")  # the one object that makes the snapshot
AFTER = ("committed", "publishing")


class Process:
    """A process of JOB, which is told a line at a time."""

    def __init__(self, place: tuple[str, dict], folder, point: str):
        url, environment = place
        # Spark's small jobs end before Java's second compiler has paid.
        environment = {**environment, "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
        self.folder, self.errors = folder, folder / f"errors-{point}"
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", JOB, url, point, str(folder / f"flag-{point}")],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def tell(self, *values) -> dict:
        self.process.stdin.write(json.dumps(values) + "\n")
        self.process.stdin.flush()
        # Spark says there, too, what packages it fetches.
        line = next((line for line in self.process.stdout if line.startswith("{")), "")
        if not line and "unresolved dependency" in self.errors.read_text():
            pytest.skip(f"Spark cannot fetch {PACKAGES} from here")
        assert line, self.errors.read_text()[-3000:]
        return json.loads(line)

    def dies(self, count: int) -> None:
        """It is told to hold `count` images, and is killed over it."""
        self.process.communicate(f"{count}\n", timeout=1500)
        assert self.process.returncode == -signal.SIGKILL, self.errors.read_text()[-3000:]


@pytest.fixture(params=["disk", "s3", "hdfs"])
def place(request, tmp_path) -> tuple[str, dict]:
    """(URL of a dataset to be, environment of a job that reaches it)."""
    if request.param == "disk":
        return lake.to_url(str(tmp_path / "datasets" / "killed")), {**os.environ, "SPARK_CONF_DIR": str(ROOT / "conf")}
    if request.param == "hdfs":
        url = f"{request.getfixturevalue('hdfs')}/datasets/killed-{tmp_path.name}"
        return url, {**os.environ, "SPARK_CONF_DIR": str(ROOT / "conf")}
    root, environment = request.getfixturevalue("s3")
    return f"{root}/datasets/killed-{tmp_path.name}", environment


@pytest.fixture
def obedient(place, tmp_path):
    """The process that lives on."""
    process = Process(place, tmp_path, "obeying")
    yield process
    process.process.stdin.close()
    try:
        process.process.wait(60)
    finally:
        process.process.kill()


def check_readers(url: str, count: int) -> None:
    """Ours, and Petastorm's two, see `count` images, each once."""
    held = sorted(f"image {i:04d}" for i in range(count))
    assert sum(schema.read_manifest(url).rows.values()) == count
    ids = []
    for place in snapshots.files(url).values():
        fs, path = lake.filesystem(place)
        with fs.open(path, "rb") as stream:
            ids += pq.read_table(stream, columns=["id"])["id"].to_pylist()
    assert sorted(ids) == held
    assert sum(len(batch["image"]) for split in schema.SPLITS for batch in reader.once(url, split, 64)) == count
    options = {"workers_count": 1, "num_epochs": 1, "filesystem": snapshots.petastorm_filesystem(url)}
    with petastorm.make_reader(url, reader_pool_type="thread", **options) as rows:
        assert sorted(row.id for row in rows) == held
    with petastorm.make_batch_reader(url, **options) as groups:
        assert sorted(id for group in groups for id in group.id) == held


def folder_ids(url: str) -> list[str]:
    """The ids that Petastorm reads of the folder itself."""
    filesystem = petastorm_view.filesystem(url)
    with petastorm.make_reader(url, reader_pool_type="thread", workers_count=1, filesystem=filesystem) as rows:
        return [row.id for row in rows]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_driver_that_is_killed_leaves_a_whole_snapshot(place, obedient, tmp_path):
    url, count = place[0], 40
    obedient.tell(count)
    for number, point in enumerate((*BEFORE, *AFTER), 2):
        Process(place, tmp_path, point).dies(count + 40)
        check_readers(url, count if point in BEFORE else count + 40)
        in_folder = folder_ids(url)
        assert len(in_folder) == len(set(in_folder)), point
        assert len(in_folder) == count if point in (*BEFORE, "committed") else count < len(in_folder) < count + 40, (
            point
        )
        count += 40
        told = obedient.tell(count)  # the next append
        assert told["seen"] == told["distinct"] == told["folder"] == told["in_folder"] == count, point
        assert (told["error"], told["snapshot"], told["rejects"]) == (None, number, len(range(0, count, 40))), point
        check_readers(url, count)
        assert len(folder_ids(url)) == count


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_task_that_is_killed_leaves_a_whole_snapshot(place, obedient):
    count = 40
    obedient.tell(count)
    for number, rows_before_death in enumerate((0, 8, 16, 24, -1), 1):
        told = obedient.tell(count + 40, rows_before_death)
        assert told["error"] and told["snapshot"] == number
        assert told["seen"] == told["distinct"] == told["folder"] == told["in_folder"] == count
        check_readers(place[0], count)
        count += 40
        told = obedient.tell(count)
        assert told["error"] is None and told["seen"] == told["distinct"] == told["folder"] == count
        check_readers(place[0], count)
