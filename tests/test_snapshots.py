"""A dataset that grows: what is new is added, what is there stays, and every reader sees one whole snapshot."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import petastorm
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_config
from PIL import Image
from pyspark.sql import functions as F
from test_ingest import CONFIG, PIXELS, everything, folder_config, make_frame, shaded, write, write_images

from gan_spark import __main__ as command_line
from gan_spark import lake
from gan_spark.config import UserError
from gan_spark.data import append, compact, ingest, reader, schema, snapshots, splits, tasks
from gan_spark.lake import tables
from gan_spark.runs import loading
from gan_spark.runs.store import Run
from gan_spark.training import driver, loop

pytestmark = pytest.mark.slow

APPEND = dataclasses.replace(CONFIG, mode="append")
IDS = list(PIXELS)
STEPS = (slice(0, 150), slice(0, 220), slice(200, 300))  # sources of three ingests, which overlap
HELD = (IDS[:150], IDS[:220], IDS[:300])  # what the dataset holds after each


def some(ids) -> dict:
    return {id: PIXELS[id] for id in ids}


def read_ids(url: str, manifest: schema.Manifest) -> dict[str, list[str]]:
    """The ids of a snapshot by our own reader: those of its row groups."""
    places = [place for split in schema.SPLITS for place in splits.files(url, split)]
    return sorted(
        id for place in places for id in pq.read_table(lake.filesystem(place)[1], columns=["id"])["id"].to_pylist()
    )


@pytest.fixture(scope="module")
def grown(spark, tmp_path_factory) -> tuple[str, list[dict]]:
    """URL of a dataset of three snapshots, and the answers of the ingests that made them."""
    url = lake.to_url(str(tmp_path_factory.mktemp("lake") / "datasets" / "grown"))
    answers = [write(spark, make_frame(spark, some(IDS[step])), url, APPEND) for step in STEPS]
    return url, answers


# --- what is added ---------------------------------------------------------------------


def test_what_is_not_there_yet_is_added(grown):
    url, answers = grown
    assert [answer["snapshot"] for answer in answers] == [1, 2, 3]
    assert [answer["rows"] for answer in answers] == [150, 220, 300]
    assert [(answer["added"], answer["known"], answer["rejected"]) for answer in answers[1:]] == [
        (70, 150, 0),
        (80, 20, 0),
    ]
    assert [row["rows"] for row in snapshots.listing(url)] == [150, 220, 300]
    assert sum(schema.read_manifest(url).rows.values()) == 300


def test_the_fingerprint_is_that_of_all_ingested_at_once(spark, grown, tmp_path):
    at_once = write(spark, make_frame(spark, PIXELS), lake.to_url(str(tmp_path / "whole")))
    assert at_once["fingerprint"] == grown[1][2]["fingerprint"] != grown[1][1]["fingerprint"]
    assert at_once["splits"] == grown[1][2]["splits"]


def test_the_same_ingest_again_adds_nothing(spark, grown):
    url, answers = grown
    before = everything(url)
    persisted = spark.sparkContext._jsc.getPersistentRDDs
    held = len(persisted())
    answer = write(spark, make_frame(spark, PIXELS), url, APPEND)
    assert (answer["added"], answer["known"], answer["rows"], answer["snapshot"]) == (0, 300, 300, 3)
    assert len(persisted()) == held  # A stream appends for ever.
    assert answer["fingerprint"] == answers[2]["fingerprint"]
    assert everything(url) == before


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_reader_gives_the_ids_of_a_snapshot(spark, grown, number):
    """Ours, Spark, and Petastorm's two."""
    url, held = grown[0], sorted(HELD[number - 1])
    snapshot = lake.at_snapshot(url, number)
    manifest = schema.read_manifest(snapshot)
    assert read_ids(snapshot, manifest) == held
    assert sum(len(batch["image"]) for split in schema.SPLITS for batch in reader.once(snapshot, split, 64)) == len(
        held
    )
    files = list(snapshots.files(snapshot).values())
    assert sorted(row.id for row in spark.read.parquet(*files).select("id").collect()) == held
    filesystem = snapshots.petastorm_filesystem(snapshot)
    options = {"workers_count": 1, "num_epochs": 1, "filesystem": filesystem}
    with petastorm.make_reader(url, reader_pool_type="thread", **options) as rows:
        images = {row.id: (row.image, row.split) for row in rows}
    assert sorted(images) == held
    for id, (image, split) in images.items():
        np.testing.assert_array_equal(image[:, :, 0], PIXELS[id])
        assert split == schema.split_of(id, 0.2, 0.2)
    with petastorm.make_batch_reader(url, **options) as groups:
        assert sorted(id for group in groups for id in group.id) == held
    with petastorm.make_batch_reader(files, workers_count=1, num_epochs=1) as groups:
        assert sorted(id for group in groups for id in group.id) == held


def test_whoever_opens_the_folder_reads_the_newest(spark, grown):
    url = grown[0]
    assert sorted(row.id for row in spark.read.parquet(url).select("id").collect()) == IDS
    with petastorm.make_reader(url, reader_pool_type="thread", workers_count=1, num_epochs=1) as rows:
        assert sorted(row.id for row in rows) == IDS


def test_many_files_are_looked_at_in_few_tasks(spark, tmp_path):
    """By itself Spark begins a task for each of more than 32 files."""
    for number in range(40):
        pq.write_table(pa.table({"id": [str(number)]}), tmp_path / f"part-{number:02}.parquet")
    places = [lake.to_url(str(path)) for path in sorted(tmp_path.iterdir())]
    context, key = spark.sparkContext, "spark.sql.sources.parallelPartitionDiscovery.parallelism"
    before, tracker = spark.conf.get(key), spark.sparkContext.statusTracker()

    def count_tasks(group: str, read) -> int:
        context.setJobGroup(group, group)
        try:
            frame = read()
        finally:
            context._jsc.clearJobGroup()
        stages = [stage for job in tracker.getJobIdsForGroup(group) for stage in tracker.getJobInfo(job).stageIds]
        assert frame.count() == 40
        return sum(tracker.getStageInfo(stage).numTasks for stage in stages)

    ours = count_tasks("ours", lambda: tables.read_files(spark, *places, schema="id string"))
    assert ours <= context.defaultParallelism < 40 <= count_tasks("plain", lambda: spark.read.parquet(*places))
    assert spark.conf.get(key) == before


def test_a_snapshot_that_is_not_there_is_refused(grown):
    with pytest.raises(UserError, match=r"has no snapshot 7 \(there are: 1, 2, 3\)"):
        schema.read_manifest(lake.at_snapshot(grown[0], 7))


# --- what is not -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def forty(spark, tmp_path_factory) -> Path:
    """A folder of datasets with one of 40 images."""
    folder = tmp_path_factory.mktemp("forty")
    write(spark, make_frame(spark, some(IDS[:40])), lake.to_url(str(folder / "small")), APPEND)
    return folder


@pytest.fixture
def small(forty, tmp_path) -> str:
    """URL of a dataset of 40 images, a copy of its own."""
    shutil.copytree(forty, tmp_path / "datasets")
    return lake.to_url(str(tmp_path / "datasets" / "small"))


@pytest.mark.fault(
    "data",
    "images change under their ids between two ingests",
    "the changed ones are rejected, and what is stored stays",
)
def test_a_changed_image_under_a_known_id_is_rejected(spark, small):
    pixels = some(IDS[:50])
    pixels[IDS[7]] = 255 - pixels[IDS[7]]
    answer = write(spark, make_frame(spark, pixels), small, APPEND)
    assert (answer["added"], answer["known"], answer["rejected"]) == (10, 39, 1)
    (reject,) = spark.read.parquet(answer["rejects"]).collect()
    assert reject.id == IDS[7] and reject.reason == tasks.CHANGED
    again = write(spark, make_frame(spark, pixels), small, APPEND)
    assert (again["added"], again["known"], again["rejected"]) == (0, 49, 1)
    assert spark.read.parquet(answer["rejects"]).count() == 1
    rows = {row.id: bytes(row.image) for row in spark.read.parquet(small).collect()}
    assert len(rows) == 50
    np.testing.assert_array_equal(schema.unpack([rows[IDS[7]]], (8, 8, 1), "raw")[0, :, :, 0], PIXELS[IDS[7]])


@pytest.mark.fault(
    "data",
    "labels change between two ingests of the same images",
    "the changed images are rejected, and what is stored stays",
)
def test_a_changed_label_is_a_change(spark, small):
    frame = make_frame(spark, some(IDS[:40]))
    frame = frame.withColumn("label", F.when(F.col("id") == IDS[3], "even").otherwise(F.col("label")))
    answer = write(spark, frame, small, APPEND)
    assert (answer["added"], answer["known"], answer["rejected"]) == (0, 39, 1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"height": 16}, "ingest.height: was 8, is 16"),
        ({"fit": "pad"}, "ingest.fit: was 'crop', is 'pad'"),
        ({"validation": 0.3}, r"ingest.validation: was 0.2, is 0.3"),
        ({"parts": "edges"}, "ingest.parts: was '', is 'edges'"),
        ({"label_column": ""}, r"labels: the dataset has True, the source none"),
    ],
)
def test_images_that_would_become_others_are_refused(spark, small, changes, message):
    before = everything(small)
    with pytest.raises(UserError, match=message):
        write(spark, make_frame(spark, some(IDS[:50])), small, dataclasses.replace(APPEND, **changes))
    assert everything(small) == before


def test_new_labels_are_refused_or_added(spark, small):
    frame = make_frame(spark, some(IDS[40:50])).withColumn("label", F.lit("another"))
    with pytest.raises(UserError, match=r"1 classes that the dataset has not: 'another'\. ingest.new_classes = 'add'"):
        write(spark, frame, small, APPEND)
    answer = write(spark, frame, small, dataclasses.replace(APPEND, new_classes="add"))
    assert (answer["added"], answer["classes"]) == (10, {"another": 10})
    assert schema.read_manifest(small).classes == ("even", "odd", "another")
    assert schema.read_manifest(lake.at_snapshot(small, 1)).classes == ("even", "odd")
    labels = {row.id: row.label for row in spark.read.parquet(small).collect()}
    assert all(labels[id] == (2 if place >= 40 else int(id[-1]) % 2) for place, id in enumerate(IDS[:50]))


def test_duplicates_of_a_source_are_added_once(spark, small):
    frame = make_frame(spark, some(IDS[30:60]))
    answer = write(spark, frame.union(frame).repartition(5), small, APPEND)
    assert answer["added"] == 20 and answer["rejected"] == 20
    assert read_ids(small, schema.read_manifest(small)) == IDS[:60]


@pytest.mark.parametrize("kind", ["edges", pytest.param("labels", marks=pytest.mark.long)])
def test_parts_grow(spark, tmp_path, kind):
    url = lake.to_url(str(tmp_path / kind))
    config = dataclasses.replace(APPEND, parts=kind, labels=10 if kind == "labels" else 0)
    write(spark, make_frame(spark, some(IDS[:60])), url, config)
    answer = write(spark, make_frame(spark, some(IDS[:90])), url, config)
    assert answer["known"] == 60 and answer["rejected"] == 0
    rows = spark.read.parquet(url).collect()
    ids = {row.id[2:] if kind == "edges" else row.id for row in rows}
    assert ids == set(IDS[:90]) and len({row.id for row in rows}) == len(rows)
    assert len(splits.files(url, "train", "a" if kind == "edges" else "unlabelled")) >= 2
    if kind == "labels":
        assert sum(row.split == "train" and row.part == "labelled" for row in rows) == 10


# --- a folder of files -----------------------------------------------------------------


def test_a_folder_that_grows(spark, tmp_path, monkeypatch):
    """Files that are there are not read again; one that was touched is, and stays; one that changed is rejected."""
    config = folder_config(tmp_path, mode="append")
    images = tmp_path / "images"
    write_images(images, a=shaded(12), b=shaded(8))
    (images / "a" / "broken.png").write_bytes(b"no image")
    first = ingest.ingest(spark, config)
    assert (first["rows"], first["rejected"], first["snapshot"]) == (20, 1, 1)
    for index in (12, 13):
        Image.fromarray(np.full((8, 8), 9 * index, np.uint8)).save(images / "a" / f"{index}.png")
    os.utime(images / "a" / "3.png")
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(images / "b" / "1.png")
    second = ingest.ingest(spark, config)
    assert (second["added"], second["known"], second["rejected"], second["rows"]) == (2, 19, 2, 22)
    rejects = {row.id: row.reason for row in tables.read(spark, second["rejects"]).collect()}
    assert rejects.keys() == {"a/broken.png", "b/1.png"} and rejects["b/1.png"] == tasks.CHANGED
    for path in images.rglob("*.png"):
        if path.name not in ("broken.png", "1.png", "3.png"):
            times = path.stat()
            path.write_bytes(b"not read again" if path.stat().st_size < 14 else b"x" * times.st_size)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    third = ingest.ingest(spark, config)
    assert (third["added"], third["known"], third["rejected"]) == (0, 21, 2)
    assert tables.read(spark, second["rejects"]).count() == 2


# --- datasets of before ----------------------------------------------------------------


def test_a_dataset_of_before_is_snapshot_one_and_grows(spark, tmp_path):
    import shutil

    from test_former import FORMER

    shutil.copytree(FORMER / "lake" / "datasets", tmp_path / "lake" / "datasets")
    url = lake.to_url(str(tmp_path / "lake" / "datasets" / "digits"))
    former = schema.read_manifest(url)
    held = read_ids(url, former)
    assert former.number == 1 and not former.files and len(held) == sum(former.rows.values())
    settings = {name: former.ingest[name] for name in append._COMMON if name in former.ingest}
    config = dataclasses.replace(APPEND, **{**settings, "domains": tuple(settings["domains"])})
    known = [(id, bytearray(b"whatever it was"), "zero") for id in held[:5]]
    new = [
        (f"new {id}", row.content, ("one", "two", "zero")[place % 3])
        for place, (id, row) in enumerate((row.id, row) for row in make_frame(spark, some(IDS[:20])).collect())
    ]
    frame = spark.createDataFrame(known + new, "id string, content binary, label string")
    answer = write(spark, frame, url, config)
    assert (answer["added"], answer["known"], answer["snapshot"]) == (20, 5, 2)
    assert answer["fingerprint"] != former.fingerprint
    assert read_ids(lake.at_snapshot(url, 1), former) == held
    assert schema.read_manifest(lake.at_snapshot(url, 1)).fingerprint == former.fingerprint
    assert len(read_ids(url, schema.read_manifest(url))) == len(held) + 20
    assert spark.read.parquet(url).count() == len(held) + 20
    assert write(spark, frame, url, config)["added"] == 0


def test_replacing_goes_on_counting_and_former_snapshots_go(spark, small):
    write(spark, make_frame(spark, some(IDS[:50])), small, APPEND)
    answer = write(spark, make_frame(spark, some(IDS[:30])), small, CONFIG)
    assert (answer["snapshot"], answer["rows"]) == (3, 30)
    with pytest.raises(UserError, match=r"has no snapshot 2 \(there are: 3\)"):
        schema.read_manifest(lake.at_snapshot(small, 2))
    assert write(spark, make_frame(spark, some(IDS[:40])), small, APPEND)["snapshot"] == 4
    assert spark.read.parquet(small).count() == 40


# --- several jobs, and jobs that died --------------------------------------------------


@pytest.mark.fault(
    "lake",
    "two ingests add to a dataset at once",
    "one is added whole, the other refused by name with nothing left of it; run again, it adds what is missing",
)
def test_of_two_that_add_at_the_same_moment_one_is_refused_by_name(spark, small, monkeypatch):
    """Both have compared ids and written their files when the first one commits."""
    commit, both = snapshots.commit, threading.Barrier(2, timeout=300)

    def waits(folder, manifest):
        both.wait()
        commit(folder, manifest)

    monkeypatch.setattr(snapshots, "commit", waits)
    answers, errors = {}, {}

    def job(name: str, ids):
        try:
            answers[name] = write(spark, make_frame(spark, some(ids)), small, APPEND)
        except UserError as error:
            errors[name] = str(error)

    jobs = [threading.Thread(target=job, args=each) for each in (("one", IDS[:60]), ("two", IDS[:70]))]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join()
    assert len(answers) == len(errors) == 1
    (refusal,), (winner,) = errors.values(), answers
    assert "snapshot 2 was made meanwhile" in refusal and spark.sparkContext.applicationId in refusal
    held = IDS[:60] if winner == "one" else IDS[:70]
    assert read_ids(small, schema.read_manifest(small)) == held
    assert not [name for name in snapshots._present(small) if name.startswith("_aside/")]
    monkeypatch.setattr(snapshots, "commit", commit)
    assert write(spark, make_frame(spark, some(IDS[:70])), small, APPEND)["rows"] == 70
    assert read_ids(small, schema.read_manifest(small)) == IDS[:70]


@pytest.mark.fault(
    "lake",
    "a dataset is replaced while an ingest adds to it",
    "the new dataset is whole, and what was to be added is refused",
)
def test_what_is_added_to_a_dataset_that_is_replaced_meanwhile_is_refused(spark, small, monkeypatch):
    commit = snapshots.commit

    def late(folder, manifest):
        monkeypatch.setattr(snapshots, "commit", commit)
        write(spark, make_frame(spark, some(IDS[:30])), small, CONFIG)
        commit(folder, manifest)

    monkeypatch.setattr(snapshots, "commit", late)
    with pytest.raises(UserError, match="was replaced meanwhile"):
        write(spark, make_frame(spark, some(IDS[:60])), small, APPEND)
    assert read_ids(small, schema.read_manifest(small)) == IDS[:30]


@pytest.mark.long
def test_a_commit_of_what_was_replaced_is_no_snapshot(spark, small):
    """One that came in the very moment of the replacement."""
    write(spark, make_frame(spark, some(IDS[:50])), small, APPEND)
    late = schema.to_json(dataclasses.replace(schema.read_manifest(small), number=3))
    write(spark, make_frame(spark, some(IDS[:30])), small, CONFIG)
    lake.write_bytes(schema.snapshot_url(small, 3), late)
    assert schema.read_manifest(small).number == 3 and read_ids(small, schema.read_manifest(small)) == IDS[:30]
    assert write(spark, make_frame(spark, some(IDS[:40])), small, APPEND)["snapshot"] == 4
    assert read_ids(small, schema.read_manifest(small)) == IDS[:40]


def test_files_that_are_not_in_sight_yet_are_read(spark, small, monkeypatch):
    """A job died between the commit and the moves."""
    monkeypatch.setattr(snapshots, "publish", lambda folder: None)
    write(spark, make_frame(spark, some(IDS[:60])), small, APPEND)
    assert read_ids(small, schema.read_manifest(small)) == IDS[:60]
    assert any("/_aside/" in place for place in snapshots.files(small).values())
    assert spark.read.parquet(small).count() == 40  # the snapshot before, whole
    groups = reader.RowGroups(small, "train", "", schema.read_manifest(small))
    monkeypatch.undo()
    snapshots.tidy(small)  # as the next job does
    assert not any("/_aside/" in place for place in snapshots.files(small).values())
    assert spark.read.parquet(small).count() == 60
    rows = sum(groups.counts)
    assert sum(len(part["image"]) for part in groups.read(reader.order.share(groups.counts, 0, 1))) == rows


def test_what_dead_jobs_left_goes_after_a_day(small):
    fs, path = lake.filesystem(snapshots.aside(small))
    for name, time in (("part-00000-1-abcd0123-train.parquet", 0), ("part-00000-1-abcd0124-train.parquet", None)):
        fs.makedirs(f"{path}/split=train", exist_ok=True)
        fs.pipe_file(f"{path}/split=train/{name}", b"half")
        if time is not None:
            os.utime(f"{path}/split=train/{name}", (time, time))
    snapshots.tidy(small)
    assert os.listdir(f"{path}/split=train") == ["part-00000-1-abcd0124-train.parquet"]


@pytest.mark.fault(
    "lake",
    "a file of a dataset is removed",
    "whatever reads the dataset is refused, by an error that names the file",
)
def test_a_file_that_is_gone_is_told(small):
    place = splits.files(small, "train")[0]
    lake.remove(place)
    with pytest.raises(UserError, match=r"split=train/part-.* of snapshot 1 is gone"):
        splits.files(small, "train")


@pytest.mark.parametrize("name", ["../../thesis.txt", "split=train/../../x.parquet", "/etc/passwd", "split=train/x"])
def test_a_manifest_names_files_of_its_dataset_alone(small, name):
    manifest = schema.read_manifest(small)
    lake.write_bytes(
        schema.snapshot_url(small, 2),
        schema.to_json(dataclasses.replace(manifest, number=2, base=manifest.identity, files={name: 1})),
    )
    with pytest.raises(UserError, match="00000002.json cannot be understood .* is no file of a dataset"):
        schema.read_manifest(small)


# --- compaction and expiry -------------------------------------------------------------


def test_compaction_makes_few_files_of_many_and_expiry_removes_what_is_superseded(spark, grown, tmp_path):
    url = lake.to_url(str(tmp_path / "datasets" / "compacted"))
    lake.remove(url)
    fs, path = lake.filesystem(grown[0])
    fs.copy(path, lake.filesystem(url)[1], recursive=True)
    before, names = schema.read_manifest(url), set(snapshots.files(url))
    answer = compact.compact(spark, url)
    assert (answer["snapshot"], answer["files"]) == (4, 3) and answer["files_before"] == len(names) > 6
    after = schema.read_manifest(url)
    assert (after.fingerprint, after.rows) == (before.fingerprint, before.rows)
    assert len(splits.files(url, "train")) == 1
    assert read_ids(url, after) == IDS == sorted(row.id for row in spark.read.parquet(url).select("id").collect())
    for number, held in enumerate(HELD, 1):
        snapshot = lake.at_snapshot(url, number)
        assert read_ids(snapshot, after) == sorted(held)
        options = {"workers_count": 1, "num_epochs": 1, "filesystem": snapshots.petastorm_filesystem(snapshot)}
        with petastorm.make_reader(url, reader_pool_type="thread", **options) as rows:
            assert sorted(row.id for row in rows) == sorted(held)
    assert compact.compact(spark, url)["snapshot"] == 4  # nothing to do
    assert write(spark, make_frame(spark, PIXELS), url, APPEND)["added"] == 0

    with pytest.raises(UserError, match=r"runs still need what would go: old, older \(snapshot 2\).*--force"):
        snapshots.expire(url, 1, {2: ["old", "older"], 4: ["new"]})
    mine = lake.join(url, "_aside", "split=train", "part-of-mine.parquet")
    lake.write_bytes(mine, b"a stranger's")
    assert snapshots.expire(url, 2, {2: ["old"]}, force=True)["expired"] == [1, 2]
    assert read_ids(lake.at_snapshot(url, 3), after) == IDS
    gone = snapshots.expire(url, 1, {})
    assert (gone["snapshots"], gone["expired"]) == ([4], [3]) and gone["files_removed"] == len(names)
    assert lake.exists(mine)
    lake.remove(mine)
    assert read_ids(url, after) == IDS
    with petastorm.make_reader(url, reader_pool_type="thread", workers_count=1, num_epochs=1) as rows:
        assert sorted(row.id for row in rows) == IDS
    with pytest.raises(UserError, match=r"has no snapshot 1 \(there are: 4\)"):
        schema.read_manifest(lake.at_snapshot(url, 1))


def run_command(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "gan_spark", *words], capture_output=True, text=True, timeout=500)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_compact_is_a_command(grown, tmp_path):
    """In a process of its own, with its own session, as somebody types it."""
    fs, path = lake.filesystem(grown[0])
    fs.copy(path, str(tmp_path / "datasets" / "many"), recursive=True)
    url = lake.to_url(str(tmp_path / "datasets" / "many"))
    before = schema.read_manifest(url)
    done = run_command("compact", "many", "--lake", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["dataset"], answer["snapshot"], answer["files"]) == (url, 4, 3)
    assert answer["files_before"] == len(before.files)
    after = schema.read_manifest(url)
    assert after.made_by.startswith("compact many, ") and after.fingerprint == before.fingerprint
    assert read_ids(url, after) == IDS


def test_of_a_dataset_that_is_not_there_nothing_is_compacted(spark, tmp_path):
    with pytest.raises(UserError, match="no dataset at .*/mni"):
        compact.compact(spark, lake.dataset_place(str(tmp_path), "mni"))


# --- training --------------------------------------------------------------------------


@pytest.mark.timeout(1200)
def test_a_run_is_of_a_snapshot_and_another_one_begins_with_its_weights(spark, tmp_path, caplog, capsys):
    caplog.set_level("INFO")
    root = str(tmp_path / "lake")
    url = lake.dataset_place(root, "digits")

    def config(run: str, steps: int = 2, **train):
        return make_config(root, run=run, train={"steps": steps, "checkpoint_every": 1, **train})

    ingested = dataclasses.replace(APPEND, height=16, width=16, label_column="")
    write(spark, make_frame(spark, some(IDS[:150])), url, ingested)
    driver.train(spark, config("first"))
    first = Run.named(root, "first")
    assert first.record()["dataset"] | {"fingerprint": ""} == {
        "url": url,
        "snapshot": 1,
        "fingerprint": "",
        "classes": [],
        "fit": "crop",
    }
    write(spark, make_frame(spark, some(IDS[150:])), url, ingested)
    driver.train(spark, config("first", steps=3))
    (told,) = [text for text in caplog.messages if text.startswith("train: on snapshot 1 of")]
    assert "of 150 images; there is a newer one, 2, of 300 images" in told
    assert first.record()["dataset"]["snapshot"] == 1 and first.checkpoints()[-1] == 3
    with pytest.raises(UserError, match=r"train.snapshot = 2: run .*first is of snapshot 1"):
        driver.train(spark, config("first", steps=4, snapshot=2))
    with pytest.raises(UserError, match=r"has no snapshot 9 \(there are: 1, 2\)"):
        driver.train(spark, config("second", snapshot=9))

    # Another run begins with these weights, on the newer snapshot.
    with pytest.raises(UserError, match="train.start_from = 'second': expected another run"):
        driver.train(spark, config("second", start_from="second"))
    other = config("second", start_from="first")
    with pytest.raises(UserError, match=r"another model than this run's; restore these: model\.\w+: was"):
        driver.train(spark, dataclasses.replace(other, model=dataclasses.replace(other.model, width=8)))
    plain, kept = loop._begin, []

    def begins(model, job):
        plain(model, job)
        kept.append((int(model.step), loading.checksum(model)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_begin", begins)
        driver.train(spark, other)
    model = loading.build(other.model)
    loading.restore(model, first, 3)
    model.step.assign(0)
    assert kept == [(0, loading.checksum(model))]
    second = Run.named(root, "second")
    assert second.record()["dataset"]["snapshot"] == 2 and second.checkpoints()[-1] == 2
    of_first = {name: value for name, value in first.record()["dataset"].items() if name != "fit"}
    assert second.record()["started_from"] == {"url": first.url, "step": 3, "dataset": of_first}
    lake.remove(first.path("checkpoints"))
    driver.train(spark, config("second", steps=3, start_from="first"))  # It has what it needs.
    assert second.checkpoints()[-1] == 3

    def say(*words: str) -> str:
        assert not command_line.main([*words, "--lake", root])
        return capsys.readouterr().out

    assert say("datasets").splitlines()[1].split()[:4] == ["digits", "2", "2", "300"]
    shown = say("show", "digits").splitlines()
    assert len(shown) == 3 and shown[1].endswith("first") and shown[2].endswith("second")
    assert "started_from.step" in say("show", "second") and "snapshot" in say("show", "second")
    assert command_line.main(["expire", "digits", "--keep", "1", "--lake", root]) == 2
    assert "runs still need what would go: first (snapshot 1)" in capsys.readouterr().err
    assert command_line.main(["expire", "digits", "--keep", "0", "--lake", root]) == 2
    say("expire", "digits", "--keep", "1", "--force")
    with pytest.raises(UserError, match="exists with another config.*dataset.fingerprint"):
        driver.train(spark, config("first", steps=4))
