"""The whole way on an object store, with tables in Delta, through jobs of their own: Spark, Petastorm and the run store
read and write one S3 server on loopback.
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import fsspec
import psutil
import pytest
from conftest import ROOT, make_config, write_config
from processes import ranks_under, wait_for

from gan_spark import lake
from gan_spark.runs.store import Run

pytestmark = pytest.mark.slow

PACKAGES = "org.apache.hadoop:hadoop-aws:3.3.4,io.delta:delta-core_2.12:2.4.0"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """(URL of a lake in a bucket, environment of a job that reaches it), served by moto."""
    folder = tmp_path_factory.mktemp("s3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    (folder / "spark-defaults.conf").write_text(
        (ROOT / "conf" / "spark-defaults.conf").read_text()
        + f"""
        spark.jars.packages {PACKAGES}
        spark.hadoop.fs.s3a.endpoint {endpoint}
        spark.hadoop.fs.s3a.path.style.access true
        spark.sql.extensions io.delta.sql.DeltaSparkSessionExtension
        spark.sql.catalog.spark_catalog org.apache.spark.sql.delta.catalog.DeltaCatalog
        spark.databricks.delta.snapshotPartitions 2
        """.replace("        ", "")
    )
    (folder / "log4j2.properties").write_text((ROOT / "conf" / "log4j2.properties").read_text())
    ours = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
    }
    moto = os.path.join(os.path.dirname(sys.executable), "moto_server")
    with open(folder / "log", "w") as log, pytest.MonkeyPatch.context() as patch:
        for key, value in ours.items():
            patch.setenv(key, value)
        server = subprocess.Popen([moto, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
        try:
            wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "answer from moto", 60)
            fsspec.get_filesystem_class("s3").clear_instance_cache()  # of another file's moto, which has ended
            fs, _ = lake.filesystem("s3a://lake")
            fs.mkdir("lake")
            yield "s3a://lake/of/gan", {**os.environ, "SPARK_CONF_DIR": str(folder)}
        finally:
            server.terminate()
            server.wait(30)


def start(command: list[str], environment: dict, folder) -> subprocess.Popen:
    with open(folder / "errors", "w") as errors:
        return subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )


def answer(job: subprocess.Popen, folder) -> dict:
    output, _ = job.communicate(timeout=900)
    assert job.returncode == 0, (folder / "errors").read_text()[-3000:]
    return json.loads(output.strip().splitlines()[-1])


# Jobs that append and overwrite, in one session.
TABLES = """
import json, sys
from gan_spark import config, job, models
from gan_spark.data import ingest, schema
from gan_spark.lake import tables
from gan_spark.sampling import generate
from gan_spark.training import driver

def change(*overrides, path=sys.argv[1]):
    return config.load(path, overrides, models.config_class)

spark = job.session("tables")
made = []
for more in ("generate.images=60",), ("generate.images=60",), ("generate.images=10", "generate.append=false"):
    result = generate.generate(spark, change("generate.append=true", *more))
    table = tables.read(spark, result["table"])
    made.append([result["images"], table.count(), table.select("seed").distinct().count()])
before = spark.read.format("delta").option("versionAsOf", 0).load(result["table"]).count()
photos = change("dataset=photos", "ingest.source=folder", f"ingest.path={sys.argv[2]}")
rejects = ingest.ingest(spark, photos)["rejects"]
ingest.ingest(spark, photos)
rejected = [row.id for row in tables.read(spark, rejects).collect()]
far = ingest.ingest(spark, change("dataset=far-photos", "ingest.source=folder", "ingest.path=s3a://lake/photos"))
far_rejected = [row.id for row in tables.read(spark, far["rejects"]).collect()]
far = [far["rows"], far_rejected, schema.read_manifest(far["dataset"]).classes]
versions = spark.sql(f"describe history delta.`{rejects}`").count()
refused = []
for overrides in ("tables=parquet",), ("tables=parquet", "generate.append=true"):
    try:
        generate.generate(spark, change(*overrides))
    except config.UserError as error:
        refused.append(str(error))
added = []
by_label, by_seed = (("label=3", "images=5"), ("label=7", "images=5")), (("images=5",), ("images=8",))
for path, calls in (sys.argv[3], by_label), (sys.argv[4], by_seed):
    driver.train(spark, change(path=path))
    for call in calls:
        options = (f"generate.{option}" for option in call)
        result = generate.generate(spark, change("generate.append=true", *options, path=path))
        added.append([result["images"], tables.read(spark, result["table"]).count()])
names = ("made", "far", "added", "before", "rejected", "versions", "refused")
print(json.dumps({name: globals()[name] for name in names}))
"""


# The way from images to images in one session.
WAY = """
import json, sys
from gan_spark import config, job, models
from gan_spark.data import ingest
from gan_spark.sampling import generate
from gan_spark.training import driver

loaded = config.load(sys.argv[1], (), models.config_class)
spark = job.session("way")
answers = [work(spark, loaded) for work in (ingest.ingest, driver.train, generate.generate)]
print(json.dumps({key: value for answer in answers for key, value in answer.items()}))
"""


def pipeline_command(root: str, run: str, steps: int, folder) -> list[str]:
    """jobs/pipeline.py for a training on two ranks; its config is run.toml in `folder`."""
    train = {
        "steps": steps,
        "workers": 2,
        "launcher": "spark",
        "log_every": 50,
        "checkpoint_every": 100,
        "sample_every": 500,
    }
    evaluate = {"classifier_steps": 20}
    config = make_config(root, run=run, train=train, generate={"images": 40}, evaluate=evaluate)
    path = write_config(folder, dataclasses.replace(config, tables="delta"))
    return [str(ROOT / "jobs" / "pipeline.py"), "--config", path]


def skip_without_packages(folder) -> None:
    if "unresolved dependency" in (folder / "errors").read_text():
        pytest.skip(f"Spark cannot fetch {PACKAGES} from here")


def test_of_many_that_create_an_object_one_does(s3):
    """Which is how a snapshot is committed."""
    url = lake.join(s3[0], "datasets", "d", "_snapshots", "00000002.json")
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda number: lake.create(url, b"%d" % number), range(40)))
    assert sum(made) == 1 and lake.read_bytes(url) == b"%d" % made.index(True)


@pytest.mark.timeout(900)
def test_from_images_to_images_on_an_object_store(s3, tmp_path):
    """Ingest, two ranks and generate, with tables in Delta."""
    root, environment = s3
    config = pipeline_command(root, "near", 20, tmp_path)[-1]
    job = start(["-c", WAY, config], environment, tmp_path)
    job.wait(600)
    skip_without_packages(tmp_path)
    result = answer(job, tmp_path)
    assert result["steps"] == 20 and Run(f"{root}/runs/near").checkpoints() == [20]
    assert result["rows"] == 1797 and result["images"] == 40
    assert lake.exists(f"{root}/generated/near/_delta_log")
    assert lake.exists(f"{root}/datasets/digits.rejected/_delta_log")


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.fault(
    "training",
    "the driver is killed (SIGKILL), with the lake on an object store",
    "the same command goes on from the newest checkpoint, and the run ends whole",
)
def test_a_death_on_an_object_store_and_tables_that_are_added_to(s3, digits_folder, tmp_path):
    """Ingest, two ranks, SIGKILL in mid-training, the same command again, generate, evaluate; then the tables are added
    to and replaced.
    """
    root, environment = s3
    command = pipeline_command(root, "far", 500, tmp_path)
    config = command[-1]
    run = Run(f"{root}/runs/far")
    first = start(command, environment, tmp_path)
    wait_for(lambda: run.checkpoints() or first.poll() is not None, "checkpoint", 300)
    skip_without_packages(tmp_path)
    assert first.poll() is None, (tmp_path / "errors").read_text()[-3000:]
    orphans = list(ranks_under(first.pid).values())
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    psutil.wait_procs(orphans, timeout=60)
    reached = run.checkpoints()[-1]

    result = answer(start(command, environment, tmp_path), tmp_path)
    assert result["steps"] == run.checkpoints()[-1] == 500 > reached
    starts = [line["step"] for line in run.metrics() if line.get("event") == "start"]
    assert starts == [0, reached]
    assert result["generated_images"] == 40 and result["fid_self"] == 0 and result["fid"] > result["fid_floor"]
    assert lake.exists(f"{root}/generated/far/_delta_log") and lake.exists(
        f"{root}/datasets/digits.rejected/_delta_log"
    )

    # Class folders in the bucket, one of them with a folder inside, and with the empty object that consoles make for
    # it.
    store, base = lake.filesystem("s3a://lake/photos")
    for index, path in enumerate(sorted(digits_folder.glob("*.png"))):
        store.put_file(str(path), f"{base}/{'odd/deep' if index > 30 else 'odd' if index % 2 else 'even'}/{path.name}")
    store.pipe_file(f"{base}/odd/", b"")
    (digits_folder / "broken.png").write_bytes(b"no picture")
    store.put_file(str(digits_folder / "broken.png"), f"{base}/odd/deep/broken.png")
    others = []
    for name in ("cgan", "srgan"):
        (tmp_path / name).mkdir()
        others.append(
            write_config(
                tmp_path / name,
                dataclasses.replace(make_config(root, name, run=name, train={"steps": 2}), tables="delta"),
            )
        )
    script = start(["-c", TABLES, config, str(digits_folder), *others], environment, tmp_path)
    tables = answer(script, tmp_path)
    # Of 60, 40 are there; then all; then ten take the place of all, and the first version is still to be read.
    assert tables["made"] == [[20, 60, 60], [0, 60, 60], [10, 10, 10]] and tables["before"] == 40
    # The same seeds of another class are other images; of eight images of the dataset, five are there.
    assert tables["added"] == [[5, 5], [5, 10], [5, 5], [3, 8]]
    assert tables["far"] == [40, ["odd/deep/broken.png"], ["even", "odd"]]
    assert tables["rejected"] == ["broken.png"] and tables["versions"] == 2
    assert "is Delta, and the config says tables = 'parquet'" in tables["refused"][0]
    assert "generate.append = true with tables = 'parquet'" in tables["refused"][1]


# Appends, in one session: {id: whether it is an image} of each, and whether it dies as it commits.
APPENDS = """
import json, sys
import numpy as np
from gan_spark import config, job
from gan_spark.data import images, ingest, snapshots, sources
from gan_spark.lake import tables

spark, commit, url = job.session("appends"), snapshots.commit, sys.argv[1]
pixels = lambda id: np.random.default_rng(int(id)).integers(0, 256, (8, 8, 1), np.uint8)
told = []


def fails(*_):
    raise OSError("no commit")


def write(rows, dies=False, format="delta"):
    contents = [(id, bytearray(images.encode_png(pixels(id)) if good else b"no image")) for id, good in rows.items()]
    frame = spark.createDataFrame(contents, "id string, content binary").coalesce(1)
    settings = config.Ingest(source="table", height=8, width=8, planned_workers=1, mode="append")
    snapshots.commit = fails if dies else commit
    try:
        answer = ingest.write(spark, sources.from_frame(frame, "id", "content"), url, settings, format)
        answer = {key: answer.get(key) for key in ("rows", "added", "rejected")}
    except (OSError, config.UserError) as error:
        answer = {"error": str(error)}
    rejects = [row.id for row in tables.read(spark, f"{url}.rejected").collect()]
    versions = spark.sql(f"describe history delta.`{url}.rejected`").count()
    told.append({**answer, "rejects": sorted(rejects), "versions": versions})


for step in json.loads(sys.argv[2]):
    write(*step)
print(json.dumps(told))
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_rejects_of_appends_are_added_to_a_delta_table(s3, tmp_path):
    first = {f"{number:02}": number % 10 != 9 for number in range(30)}
    more = {**first, "40": True, "49": False}
    steps = [[first], [more], [more], [{**more, "50": True, "59": False}, True], [{**more, "50": True, "59": False}]]
    steps.append([{"60": True}, False, "parquet"])
    url = lake.to_url(str(tmp_path / "lake" / "datasets" / "grown"))
    job = start(["-c", APPENDS, url, json.dumps(steps)], s3[1], tmp_path)
    job.wait(600)
    skip_without_packages(tmp_path)
    made, added, nothing, died, again, refused = answer(job, tmp_path)
    bad = ["09", "19", "29"]
    assert made == {"rows": 27, "added": None, "rejected": 3, "rejects": bad, "versions": 1}
    assert added == {"rows": 28, "added": 1, "rejected": 4, "rejects": [*bad, "49"], "versions": 2}
    # What the table says already is not said again, and where it says all of it, there is no other version.
    assert nothing == {"rows": 28, "added": 0, "rejected": 4, "rejects": [*bad, "49"], "versions": 2}
    assert died == {"error": "no commit", "rejects": [*bad, "49", "59"], "versions": 3}
    assert again == {"rows": 29, "added": 1, "rejected": 5, "rejects": [*bad, "49", "59"], "versions": 3}
    assert "is Delta, and the config says tables = 'parquet'" in refused["error"]
    assert refused["rejects"] == again["rejects"]


@pytest.fixture
def digits_folder(tmp_path):
    """A folder of a few digits as PNG."""
    from sklearn.datasets import load_digits

    from gan_spark.data import images

    folder = tmp_path / "photos"
    folder.mkdir()
    for index, image in enumerate(load_digits().images[:40]):
        (folder / f"{index:02}.png").write_bytes(images.encode_png((image * 15).astype("uint8")[..., None]))
    return folder
