"""Images that arrive become more of a dataset, each once, whatever happens to the job."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sklearn.datasets
from conftest import ROOT, make_config, write_config
from test_lakes import s3  # noqa: F401 (a fixture)

from gan_spark.config import UserError
from gan_spark.data import images, ingest, schema, snapshots, stream
from gan_spark.lake import tables

pytestmark = pytest.mark.slow


def arrive(folder, first: int, last: int) -> None:
    """Digits `first` to `last`, each into the folder of its class; whole, as Spark wants files to appear."""
    digits = sklearn.datasets.load_digits()
    for index in range(first, last):
        pixels = (digits.images[index] * 15.9375).astype(np.uint8)[:, :, None]
        place = folder / str(digits.target[index])
        place.mkdir(parents=True, exist_ok=True)
        part = folder.parent / f"{index}.part"
        part.write_bytes(images.encode_png(pixels))
        part.rename(place / f"{index}.png")


def bad(folder, name: str, data: bytes = b"no image") -> None:
    (folder / "0").mkdir(parents=True, exist_ok=True)
    (folder / "0" / name).write_bytes(data)


def streaming(lake, folder, **sections):
    source = {"source": "folder", "path": str(folder), "height": 8, "width": 8}
    return make_config(
        lake, **{"ingest": {**source, **sections.pop("ingest", {})}, "stream": {"files_a_batch": 40}, **sections}
    )


def ids(spark, url) -> list[str]:
    return [row["id"] for row in snapshots.known(spark, url).select("id").collect()]


def test_what_is_there_is_added_batch_by_batch_and_once(spark, tmp_path):
    lake, folder = str(tmp_path / "lake"), tmp_path / "in"
    arrive(folder, 0, 100)
    bad(folder, "bad.png")
    config = streaming(lake, folder)
    first = stream.stream(spark, config)
    url = first["dataset"]
    assert first["batches"] == 3 and first["added"] == 100 and first["rejected"] == 1 and first["rows"] == 100
    assert schema.read_manifest(url).number == first["snapshot"] == 3
    assert schema.read_manifest(url).classes == tuple("0123456789")
    again = stream.stream(spark, config)
    assert again["batches"] == again["added"] == 0 and again["rows"] == 100
    arrive(folder, 100, 130)
    bad(folder, "worse.png")
    more = stream.stream(spark, config)
    assert (more["added"], more["rejected"], more["rows"]) == (30, 1, 130)
    assert len(set(ids(spark, url))) == len(ids(spark, url)) == 130
    rejects = tables.load(spark, f"{url}.rejected").collect()
    assert sorted(row["id"] for row in rejects) == ["0/bad.png", "0/worse.png"]
    # The ids are those of an ingest of the folder.
    whole = ingest.ingest(spark, dataclasses.replace(streaming(lake, folder), dataset="whole"))
    assert set(ids(spark, whole["dataset"])) == set(ids(spark, url))


def test_a_batch_that_was_added_before_its_checkpoint_is_not_added_twice(spark, tmp_path):
    folder = tmp_path / "in"
    arrive(folder, 0, 60)
    config = streaming(str(tmp_path / "lake"), folder)
    first = stream.stream(spark, config)
    commits = sorted(os.listdir(stream.checkpoint(config).removeprefix("file://") + "/commits"))
    newest = [name for name in commits if name.isdigit()][-1]
    for name in (newest, f".{newest}.crc"):
        os.remove(stream.checkpoint(config).removeprefix("file://") + f"/commits/{name}")
    again = stream.stream(spark, config)
    assert again["batches"] == 1 and again["added"] == 0 and again["known"] == 20
    assert again["rows"] == first["rows"] == 60 and again["snapshot"] == first["snapshot"]


@pytest.mark.long
def test_what_comes_first_may_be_bad_or_no_image_to_train_on(spark, tmp_path):
    lake, folder = str(tmp_path / "lake"), tmp_path / "in"
    bad(folder, "bad.png")
    config = streaming(lake, folder)
    first = stream.stream(spark, config)
    assert (first["batches"], first["rejected"], first["rows"], first["snapshot"]) == (1, 1, 0, 0)
    (tmp_path / "all").mkdir()
    arrive(tmp_path / "all" / "in", 0, 60)
    files = sorted((tmp_path / "all" / "in").glob("*/*.png"))
    options = config.ingest
    held_out = [
        file
        for file in files
        if schema.split_of(f"{file.parent.name}/{file.name}", options.validation, options.test) != "train"
    ]
    for some in (held_out[:1], files):
        for file in some:
            (folder / file.parent.name).mkdir(exist_ok=True)
            file.exists() and file.rename(folder / file.parent.name / file.name)
        answer = stream.stream(spark, streaming(lake, folder, ingest={"new_classes": "add"}))
        assert answer["added"] == len(some) - (some is files) and answer["rejected"] == 0
    assert answer["rows"] == 60 and schema.read_manifest(answer["dataset"]).rows["train"] == 60 - len(held_out)
    assert [row["id"] for row in tables.load(spark, f"{answer['dataset']}.rejected").collect()] == ["0/bad.png"]


@pytest.mark.long
def test_a_label_that_the_dataset_has_not_is_rejected_or_added(spark, tmp_path):
    folder = tmp_path / "in"
    arrive(folder, 0, 60)
    config = streaming(str(tmp_path / "lake"), folder)
    url = stream.stream(spark, config)["dataset"]
    arrive(tmp_path / "more", 60, 64)
    (folder / "new").mkdir()
    for index, path in enumerate(sorted((tmp_path / "more").glob("*/*.png"))):
        path.rename(folder / "new" / f"{index}.png")
    assert stream.stream(spark, config)["rejected"] == 4
    assert {row["reason"] for row in tables.load(spark, f"{url}.rejected").collect()} == {
        "label new has no name in ingest.classes"
    }
    arrive(tmp_path / "yet", 64, 66)
    (folder / "newest").mkdir()
    for index, path in enumerate(sorted((tmp_path / "yet").glob("*/*.png"))):
        path.rename(folder / "newest" / f"{index}.png")
    added = stream.stream(spark, streaming(str(tmp_path / "lake"), folder, ingest={"new_classes": "add"}))
    assert added["added"] == 2 and schema.read_manifest(url).classes == (*"0123456789", "newest")


DELTA = """
import json, sys
import numpy as np
from gan_spark import job, models
from gan_spark.config import load
from gan_spark.data import images, stream

spark = job.session("stream of a table")
config = load(sys.argv[1], (), models.config_class)
for first, last in ((0, 40), (30, 50)):
    rows = [(str(i), bytearray(images.encode_png(np.full([8, 8, 1], i, np.uint8)))) for i in range(first, last)]
    frame = spark.createDataFrame(rows, "id string, content binary")
    frame.write.format("delta").mode("append").save(config.ingest.path)
    print(json.dumps(stream.stream(spark, config)), flush=True)
"""


@pytest.mark.long
def test_rows_of_a_delta_table_arrive(s3, tmp_path):  # noqa: F811
    """With Delta's packages, which a session of the tests has not: those of the lake on an object store."""
    config = streaming(str(tmp_path / "lake"), tmp_path / "arriving", ingest={"source": "table"})
    command = [sys.executable, "-c", DELTA, write_config(tmp_path, config)]
    environment = {**s3[1], "PYTHONPATH": str(ROOT)}
    job = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert job.returncode == 0, job.stderr[-3000:]
    first, more = (json.loads(line) for line in job.stdout.splitlines() if line.startswith("{"))
    assert first["added"] == 40
    assert (more["added"], more["known"], more["rows"]) == (10, 10, 50)


@pytest.mark.parametrize("source", ["digits", "idx", "cifar10"])
def test_a_source_at_which_nothing_arrives_is_refused(spark, tmp_path, source):
    with pytest.raises(
        UserError, match=f"ingest.source = '{source}': expected 'folder', 'kafka', or 'table' with the folder"
    ):
        stream.stream(spark, streaming(str(tmp_path / "lake"), tmp_path, ingest={"source": source}))


@pytest.mark.parametrize(
    "sections, message",
    [
        (
            {"stream": {"trigger": "now and then"}},
            "stream.trigger = 'now and then': expected 'availableNow', or an int",
        ),
        ({"stream": {"trigger": ""}}, "stream.trigger = '': expected 'availableNow', or an interval"),
        ({"ingest": {"path": "/nowhere"}}, "ingest.path = '/nowhere': expected a folder at which images arrive"),
    ],
)
def test_a_stream_that_cannot_begin_says_why(spark, tmp_path, sections, message):
    with pytest.raises(UserError, match=message):
        stream.stream(spark, streaming(str(tmp_path / "lake"), tmp_path, **sections))


@pytest.mark.long
@pytest.mark.fault(
    "orchestration",
    "a streaming ingest is killed (SIGKILL) and started again",
    "every image that arrived is in the dataset once",
)
def test_two_thousand_images_arrive_while_the_job_runs_and_is_killed(spark, tmp_path):
    """Rows and rejects are the files, through one SIGKILL, with a trigger that looks every second."""
    lake, folder = str(tmp_path / "lake"), tmp_path / "in"
    arrive(folder, 0, 200)
    changes = {"stream": {"files_a_batch": 200, "trigger": "1 seconds"}}
    path = write_config(tmp_path, streaming(lake, folder, **changes))
    command = [sys.executable, str(ROOT / "jobs" / "stream.py"), "--config", path]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for number in range(20):
        bad(folder, f"bad-{number}.png", b"\x89PNG\r\n\x1a\n" + bytes(number))
    arrive(folder, 200, 900)
    manifest = tmp_path / "lake" / "datasets" / "digits" / "_gan_spark.json"
    deadline = time.time() + 300
    while not manifest.exists() and time.time() < deadline:
        time.sleep(0.5)
    time.sleep(3)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    arrive(folder, 900, 1797)
    for number in range(203):  # Two thousand with those, each another image.
        part = tmp_path / "part"
        part.write_bytes(images.encode_png(np.full([8, 8, 1], number, np.uint8)))
        part.rename(folder / "0" / f"grey-{number}.png")
    end = subprocess.run(
        [*command, "--set", "stream.trigger=availableNow"], capture_output=True, text=True, timeout=600
    )
    assert end.returncode == 0, end.stderr
    answer = json.loads(end.stdout.splitlines()[-1])
    rejects = tables.load(spark, f"{answer['dataset']}.rejected").count()
    found = ids(spark, answer["dataset"])
    assert len(found) == len(set(found)) == answer["rows"] == 2000 and rejects == 20
