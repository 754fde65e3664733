"""Faults of the lake: stores that do not answer, disks that are full, files that are not what they were, and jobs that
change one thing at once.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_config
from test_registry import add_run

from gan_spark import failures, online
from gan_spark import lake as lakes
from gan_spark.config import UserError, replaced
from gan_spark.data import ingest, reader, schema, snapshots, splits, tasks
from gan_spark.lake import tables
from gan_spark.quality import compare
from gan_spark.runs import challenge, registry
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.training import driver

from . import store


@pytest.fixture(scope="module")
def proxy():
    """A proxy before an S3 store, by which this process reaches it."""
    with pytest.MonkeyPatch.context() as patch, store.serving(patch) as proxy:
        yield proxy


@pytest.fixture(params=["file", "s3"])
def root(request, tmp_path):
    """A folder on the disk, and one in a bucket."""
    if request.param == "file":
        return lakes.to_url(str(tmp_path))
    request.getfixturevalue("proxy")
    return f"s3a://lake/{uuid.uuid4().hex}"


# --- two at once -----------------------------------------------------------------------


def at_once(monkeypatch, *calls) -> list:
    """What these calls return, or the `UserError` that they raise; each has read the registry before any writes it."""
    barrier, seen = threading.Barrier(len(calls), timeout=60), threading.local()
    parsed = registry._parsed

    def read(*arguments):
        value = parsed(*arguments)
        if not hasattr(seen, "once"):
            seen.once = True
            barrier.wait()
        return value

    def outcome(call):
        try:
            return call()
        except UserError as error:
            return error

    monkeypatch.setattr(registry, "_parsed", read)
    with ThreadPoolExecutor(len(calls)) as threads:
        answers = list(threads.map(outcome, calls))
    monkeypatch.setattr(registry, "_parsed", parsed)
    return answers


@pytest.mark.fault(
    "lake",
    "two promotions of a model at once, where neither, one or both come first",
    "both versions are registered, the history has both, and the later one is promoted",
)
@pytest.mark.parametrize("there", [False, True])
def test_of_two_promotions_at_once_none_is_lost(root, monkeypatch, there):
    for name, step in (("first", 10), ("second", 11), ("third", 12)):
        add_run(root, name, None, step)
    if there:
        registry.promote(root, "first")
    answers = at_once(monkeypatch, *(lambda name=name: registry.promote(root, name) for name in ("second", "third")))
    table = registry.read(root, "default")
    assert [entry["run"] for entry in table["versions"]][there:] in (["second", "third"], ["third", "second"])
    assert [entry["version"] for entry in table["history"]] == list(range(1, 3 + there))
    assert table["promoted"] == 2 + there == max(answer["version"] for answer in answers)
    assert sorted(answer["before"] for answer in answers) == [there, there + 1]


@pytest.mark.fault(
    "lake",
    "a rollback, the end of a challenge and a challenger's victory while another version is promoted",
    "each is of what is promoted by then, or refused; no version is lost",
)
@pytest.mark.parametrize("root", ["file"], indirect=True)
def test_what_changes_a_model_at_once_is_of_what_the_other_wrote(root, monkeypatch):
    for name, step in (("first", 10), ("second", 11), ("third", 12), ("fourth", 13)):
        add_run(root, name, None, step)
    for name in ("first", "second"):
        registry.promote(root, name)
    back, forth = at_once(monkeypatch, lambda: registry.rollback(root), lambda: registry.promote(root, "third"))
    table = registry.read(root, "default")
    assert len(table["versions"]) == 3 and back["version"] in (1, 2) and forth["version"] == 3
    assert table["promoted"] == table["history"][-1]["version"] in (2, 3)

    number = challenge.challenge(root, "fourth", share=0.5)["version"]
    won, promoted = at_once(
        monkeypatch, lambda: challenge.win(root, "default", number), lambda: registry.promote(root, "first")
    )
    table = registry.read(root, "default")
    assert promoted["promoted"] and "challenger" not in table
    if isinstance(won, UserError):
        assert "is not the challenger any more" in str(won) and table["promoted"] == 1
    else:
        assert [entry["version"] for entry in table["history"]][-2:] == [number, 1]
    with pytest.raises(UserError, match="version 9 is not the challenger any more"):
        challenge.challenge(root, "second", share=0.5)
        challenge.end(root, "default", 9)
    assert registry.read(root, "default")["challenger"]["version"] == 2


@pytest.mark.fault(
    "lake",
    "another version is promoted while a run of a stream is compared with the promoted one",
    "the run is compared again, with that one; nothing is decided by the former comparison",
)
def test_a_run_is_compared_again_where_another_version_was_promoted_meanwhile(tmp_path, monkeypatch):
    root, against = str(tmp_path), []
    for name, step in (("first", 10), ("second", 11), ("third", 12)):
        add_run(root, name, None, step)
    registry.promote(root, "first")

    def compared(spark, config, version):
        against.append(version["run"])
        if len(against) == 1:
            registry.promote(root, "second")
        return {"better": version["run"] == "first"}

    monkeypatch.setattr(compare, "compare", compared)
    version, comparison, answer = online._settled(None, make_config(root, run="third", promote={"model": "default"}))
    assert against == ["first", "second"] and version["run"] == "second" and comparison == {"better": False}
    assert answer["promoted"] is False and registry.current(root, "default")["run"] == "second"
    assert len(registry.read(root, "default")["versions"]) == 3


# --- a full disk -----------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many KiB, and gives its folder."""
    mounts = []

    def mounted(kibibytes: int):
        place = tmp_path / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no disk of its own can be mounted here: {done.stderr.strip()}")
        mounts.append(place)
        return place

    yield mounted
    for place in mounts:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(folder, but: int = 0):
    """The file that takes all of the disk that is left, but for some KiB."""
    path = folder / "somebody's"
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as out:
        while True:
            out.write(bytes(4096))
    with open(path, "r+b") as out:
        out.truncate(path.stat().st_size - but * 1024)
    return path


def files_in(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.fault(
    "lake",
    "the disk is full while a registry is written",
    "the registry is as it was, nothing else is left, and the error names the file; once there is room, it goes on",
)
def test_a_full_disk_leaves_a_registry_as_it_was(small_disk):
    disk = small_disk(256)
    for name, step in (("first", 10), ("second", 11)):
        add_run(str(disk), name, None, step)
    registry.promote(str(disk), "first")
    theirs = fill(disk)
    before = files_in(disk)
    for call in (lambda: registry.promote(str(disk), "second"), lambda: registry.promote(str(disk), "first", "other")):
        with pytest.raises(UserError, match=r"/models/\w+.json: cannot be written: No space left on device"):
            call()
        assert files_in(disk) == before
    theirs.unlink()
    assert registry.promote(str(disk), "second")["promoted"] and registry.promote(str(disk), "first", "other")


@pytest.mark.fault(
    "lake",
    "the disk is full while a checkpoint is written",
    "the checkpoints before are whole, nothing of the new one is left, and the error names it; with room, it is saved",
)
def test_a_full_disk_leaves_the_checkpoints_before(small_disk):
    disk = small_disk(512)
    run = Run.named(str(disk), "run")
    run.start({"config": {}, "dataset": {}})

    def write(prefix):
        for part, size in (("index", 1000), ("data-00000-of-00001", 100_000)):
            with open(f"{prefix}.{part}", "wb") as out:
                out.write(os.urandom(size))

    for step in (1, 2):
        run.save_checkpoint(step, write, 3)
    theirs = fill(disk, but=16)
    before = files_in(disk)
    with pytest.raises(UserError, match=r"/runs/run/checkpoints/step-00000003.*cannot be written: No space left"):
        run.save_checkpoint(3, write, 3)
    assert files_in(disk) == before and run.checkpoints() == [1, 2] and run.checkpoint_step() == 2
    theirs.unlink()
    run.save_checkpoint(3, write, 3)
    assert run.checkpoint_step() == 3


def told(error: Exception, capsys) -> tuple[int, str]:
    """(exit code, what the command line prints of the error)."""
    capsys.readouterr()
    code = failures.report(error)
    return code, capsys.readouterr().err


def check_no_room(error: Exception, capsys, place: str) -> None:
    """The one line that it ends with says that there was no room for `place`, a pattern."""
    code, line = told(error, capsys)
    assert code == 2 and line.count("\n") == 1
    assert re.search(rf"^error: .*{place}: cannot be written: No space left on device; what was there", line), line


@pytest.mark.fault(
    "lake",
    "the disk is full in an ingest, one that replaces a dataset and one that adds to it",
    "the dataset before is whole, nothing else is left, and one line names the file; with room, the same job ends",
)
@pytest.mark.long
@pytest.mark.parametrize("mode", ["replace", "append"])
def test_a_full_disk_in_an_ingest_leaves_the_dataset_before(spark, small_disk, capsys, mode):
    disk = small_disk(3 * 1024)
    config = make_config(str(disk), ingest={"source": "shapes", "count": 40, "height": 16, "width": 16})
    config = replaced(config, ingest={"channels": 3})
    url = ingest.ingest(spark, config)["dataset"]
    before = files_in(disk)
    theirs = fill(disk, but=100)
    more = replaced(config, ingest={"mode": mode, "count": 1500})
    with pytest.raises(Exception) as raised:
        ingest.ingest(spark, more)
    check_no_room(raised.value, capsys, r"/datasets/\S+")
    theirs.unlink()
    assert files_in(disk) == before and spark.read.parquet(url).count() == 40
    assert ingest.ingest(spark, more)["rows"] == 1500


@pytest.fixture(scope="module")
def trained(spark, lake, digits):
    """The config of a run of two steps."""
    config = make_config(lake, "vae", "of-the-faults", train={"steps": 2})
    driver.train(spark, config)
    return config


@pytest.mark.fault(
    "lake",
    "the disk is full while generated images are written",
    "the table before is whole, nothing else is left, and one line says so; with room, the same job ends",
)
@pytest.mark.long
def test_a_full_disk_in_generate_leaves_the_table_before(spark, trained, small_disk, capsys):
    disk = small_disk(2 * 1024)
    config = replaced(trained, generate={"images": 30, "table": str(disk / "table")})
    generate.generate(spark, config)
    before = files_in(disk)
    theirs = fill(disk, but=24)
    more = replaced(config, generate={"images": 300, "first_seed": 100})
    with pytest.raises(Exception) as raised:
        generate.generate(spark, more)
    check_no_room(raised.value, capsys, r"/disk/table")
    theirs.unlink()
    assert files_in(disk) == before and spark.read.parquet(str(disk / "table")).count() == 30
    assert generate.generate(spark, more)["images"] == 300


# --- files that are not what they were -------------------------------------------------


def write_file(url: str, manifest: schema.Manifest, seed: int, part: int) -> tuple[int, str]:
    """Writes 20 rows as tasks do; the file's row groups, and its seal."""
    values = [130 + 40 * seed + 20 * part + i for i in range(20)]  # of one colour each, which packs alike
    stored = [schema.npy_header(manifest.shape) + bytes([value % 256]) * 64 for value in values]
    with tasks.ParquetFile(url, tasks.rows_schema(manifest), 10) as file:
        rows = {"id": [f"{part}-{i:02d}" for i in range(20)], "image": stored}
        rows |= dict.fromkeys(schema.SOURCE_COLUMNS, [b"0" * 8] * 20)
        file.add(pa.table(rows, file.schema))
    return file.groups, file.seal


def small_dataset(folder, seed: int) -> str:
    """URL of a dataset of two files, which are as large in every other of another seed."""
    url = lakes.to_url(str(folder))
    manifest = schema.Manifest(8, 8, 1, "raw", (), {"train": 40}, 0, f"{seed}", {}, "2026-01-01T00:00:00+00:00")
    files, seals = {}, {}
    for part in range(2):
        name = f"split=train/part-0000{part}-0-train.parquet"
        files[name], seals[name] = write_file(f"{url}/{name}", manifest, seed, part)
    schema.write_manifest(url, dataclasses.replace(manifest, files=files, seals=seals))
    return url


def swap(folder, other):
    """The second file of `other` in place of that of `folder`."""
    (name,) = (path.name for path in (other / "split=train").glob("part-00001*"))
    shutil.copy(other / "split=train" / name, folder / "split=train" / name)


def swap_within(folder, other):
    first, second = sorted((folder / "split=train").iterdir())
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)


def cut(folder, other):
    path = min((folder / "split=train").iterdir())
    path.write_bytes(path.read_bytes()[:-100])


def remove(folder, other):
    min((folder / "split=train").iterdir()).unlink()


@pytest.mark.fault(
    "lake",
    "a file of a dataset is removed, cut, swapped for another dataset's of equal shapes, or for another of the same",
    "no rank trains on it: refused before the first batch, by an error that names the file",
)
@pytest.mark.parametrize(
    "change, message",
    [
        (
            swap,
            "part-00001-0-train.parquet: expected the file that snapshot 1 .*, found a file of another dataset",
        ),
        (
            swap_within,
            "part-00000-0-train.parquet: expected the file that .* found .*, or of another place in this one",
        ),
        (cut, r"part-00000-0-train.parquet: expected the file .* found [\d,]+ bytes where [\d,]+ were written"),
        (remove, "part-00000-0-train.parquet of snapshot 1 is gone; ingest it again"),
    ],
)
def test_a_file_of_a_dataset_that_is_not_what_was_written_is_refused(tmp_path, change, message):
    url, _ = (small_dataset(tmp_path / "datasets" / name, seed) for seed, name in enumerate(("one", "other")))
    folder, other = tmp_path / "datasets" / "one", tmp_path / "datasets" / "other"
    sizes = [sorted(path.stat().st_size for path in place.rglob("*.parquet")) for place in (folder, other)]
    assert sizes[0] == sizes[1] and len(set(sizes[0])) == 1
    manifest = schema.read_manifest(url)
    assert sum(reader.RowGroups(url, "train", "", manifest).counts) == 40
    change(folder, other)
    with pytest.raises(UserError, match=message):
        reader.RowGroups(url, "train", "", manifest)
    if change in (cut, remove):  # which any reader sees, Spark's too
        with pytest.raises(UserError, match=message):
            splits.files(url, "train")


@pytest.mark.fault(
    "lake",
    "a manifest of a dataset is cut, at any byte",
    "never taken for another one: refused, and the error says to ingest again; or it holds all that it held",
)
def test_a_cut_manifest_is_never_another_one(tmp_path):
    url = small_dataset(tmp_path / "datasets" / "one", 0)
    path = tmp_path / "datasets" / "one" / schema.MANIFEST
    whole, held = path.read_bytes(), schema.read_manifest(url)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            assert schema.read_manifest(url) == held and size == len(whole) - 1  # without the end of its last line
        except UserError as error:
            assert re.search(f"{schema.MANIFEST} cannot be understood .*ingest it again", str(error))


# --- stores that fail ------------------------------------------------------------------


@pytest.fixture
def bucket(proxy) -> str:
    """The root of a lake in the store, which holds run `run` with two checkpoints, two runs, and a dataset `one`."""
    root = f"s3a://lake/{uuid.uuid4().hex}"
    for name, step in (("first", 10), ("second", 11)):
        add_run(root, name, None, step)
    registry.promote(root, "first")
    run = Run.named(root, "run")
    run.start({"config": {}, "dataset": {}})
    for step in (1, 2):
        run.save_checkpoint(step, write_parts, 2)
    url = small_dataset(f"{root}/datasets/one", 0)
    sink = pa.BufferOutputStream()
    pq.write_metadata(pa.schema([("id", pa.string())]), sink)
    lakes.write_bytes(f"{url}/_common_metadata", sink.getvalue().to_pybytes())
    return root


def write_parts(prefix: str) -> None:
    for part in ("index", "data-00000-of-00001"):
        with open(f"{prefix}.{part}", "wb") as out:
            out.write(os.urandom(1000))


def add_snapshot(root: str) -> None:
    """Adds 20 rows to the dataset as an append does, whose tasks have written them."""
    url, token = f"{root}/datasets/one", uuid.uuid4().hex[:8]
    number, former = schema.next_number(url), schema.read_manifest(url)
    name = f"split=train/part-00000-1-{token}-train.parquet"
    try:
        groups, seal = write_file(f"{snapshots.aside(url)}/{name}", former, number, 9)
        held = {"rows": {"train": former.rows["train"] + 20}, "files": {**former.files, name: groups}}
        held |= {"seals": {**former.seals, name: seal}, "base": former.base or former.identity, "number": number}
        snapshots.commit(url, dataclasses.replace(former, **held))
    except BaseException:
        snapshots.remove_uncommitted(url, token, number)
        raise


def rows_of(root: str) -> int:
    """Rows of the newest snapshot, all of which are there to be read."""
    manifest = schema.read_manifest(f"{root}/datasets/one")
    counts = reader.RowGroups(f"{root}/datasets/one", "train", "", manifest).counts
    assert sum(counts) == manifest.rows["train"] == 20 * (manifest.number + 1)
    return sum(counts)


def checkpoint(root: str) -> None:
    Run.named(root, "run").save_checkpoint(3, write_parts, 2)


def newest(root: str) -> int:
    """The newest checkpoint of the run, all of which are whole."""
    run = Run.named(root, "run")
    steps = run.checkpoints()
    assert [run.checkpoint_step(step) for step in steps] == steps
    return steps[-1]


def promoted(root: str) -> str:
    table = registry.read(root, "default")
    assert len(table["versions"]) == len(table["history"]) == table["promoted"]
    return registry.current(root, "default")["run"]


# What a job does in the store, what tells whether it has, and what that says before and after.
WORKS = {
    "promotion": (lambda root: registry.promote(root, "second"), promoted, "first", "second"),
    "checkpoint": (checkpoint, newest, 2, 3),
    "snapshot": (add_snapshot, rows_of, 40, 60),
}


@pytest.mark.long
@pytest.mark.fault(
    "lake",
    "a store answers some requests with 503, closes their connections before or after it has done them, or is silent",
    "all is as if it had answered: nothing is lost, nothing is done twice",
)
@pytest.mark.parametrize("action", [(503, b"SlowDown"), "reset", "lose"])
def test_a_store_that_fails_now_and_then_is_asked_again(proxy, bucket, action):
    for work, state, before, after in WORKS.values():
        with proxy.failing(store.every(5, action)) as failed:
            assert state(bucket) == before
            work(bucket)
            assert state(bucket) == after
        assert failed


@pytest.mark.fault(
    "lake",
    "a store is silent for longer than a client waits",
    "it is asked again, and all is as if it had answered",
)
@pytest.mark.parametrize("work", WORKS)
@pytest.mark.long
def test_a_store_that_is_silent_is_asked_again(proxy, bucket, work):
    work, state, _, after = WORKS[work]
    with proxy.failing(store.every(9, store.SECONDS + 1)) as failed:
        work(bucket)
    assert failed and state(bucket) == after


@pytest.mark.fault(
    "lake",
    "the answer to a write that only one job may do is lost, and the client's second try finds it done",
    "the job knows what is its own: a snapshot is made, and its files stay; a promotion is told as one",
)
def test_a_write_whose_answer_is_lost_is_known_as_ones_own(proxy, bucket):
    with proxy.failing(store.once("PUT", "/_snapshots/00000002.json", "lose")) as failed:
        add_snapshot(bucket)
    assert len(failed) == 1 and rows_of(bucket) == 60
    with proxy.failing(store.once("PUT", "/models/default.json", "lose")) as failed:
        assert registry.promote(bucket, "second")["promoted"]
    assert len(failed) == 1 and promoted(bucket) == "second"


@pytest.mark.fault(
    "lake",
    "a store fails, or a signal ends the job, right after a snapshot was made and before its files are in sight",
    "the snapshot and its files stay: readers find them, and the next job puts them in sight",
)
@pytest.mark.parametrize("death", ["store", "signal"])
def test_a_snapshot_that_is_made_stays_whatever_comes_after(proxy, bucket, monkeypatch, death):
    made = []

    def rule(request):
        if made:
            return 403, b"ExpiredToken"
        if request.method == "PUT" and "/_snapshots/00000002.json" in request.path:
            made.append(request)
        return None

    if death == "store":
        with proxy.failing(rule) as failed:
            add_snapshot(bucket)
        assert failed
    else:
        with monkeypatch.context() as patch:
            patch.setattr(snapshots, "publish", lambda folder: signal.raise_signal(signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                add_snapshot(bucket)
    assert rows_of(bucket) == 60
    url = f"{bucket}/datasets/one"
    assert any("/_aside/" in place for place in snapshots.files(url).values())
    snapshots.tidy(url)
    assert rows_of(bucket) == 60 and not any("/_aside/" in place for place in snapshots.files(url).values())


@pytest.mark.fault(
    "lake",
    "a store answers nothing but 503, or credentials expire, from any request of a job on",
    "one line tells the cause; what was there is whole, or what is new is; once the store answers, the job ends",
)
@pytest.mark.parametrize(
    "action, cause",
    [
        ((503, b"ServiceUnavailable"), "ServiceUnavailable, says the store|Service Unavailable"),
        ((403, b"ExpiredToken"), "ExpiredToken, says the store|Forbidden"),
    ],
)
@pytest.mark.parametrize("work", [*WORKS])
@pytest.mark.long
def test_a_store_that_fails_for_good_leaves_what_was_there_or_what_is_new(proxy, bucket, capsys, work, action, cause):
    work, state, before, after = WORKS[work]
    counts = []
    for count in itertools.count():
        try:
            with proxy.failing(store.after(count, action)) as failed:
                work(bucket)
        except Exception as error:
            code, line = told(error, capsys)
            assert code == 1 and line.count("\n") == 1 and re.search(rf"^error: a store .*({cause})", line), line
            assert failed and state(bucket) in (before, after)
            counts.append(state(bucket))
            if counts[-1] == after:
                break
        else:
            break
    assert len(counts) > 3 and counts[0] == before
    if state(bucket) == before:
        work(bucket)
    assert state(bucket) == after


@pytest.mark.fault(
    "lake",
    "a store lists late what was written",
    "refused, or the state before: never a part of it as the whole, and no other job's snapshot is written over",
)
def test_what_a_store_lists_late_is_never_half_of_it(proxy, bucket):
    add_snapshot(bucket)
    url = f"{bucket}/datasets/one"
    (added,) = (name for name in schema.read_manifest(url).files if "part-00000-1-" in name)
    with (
        proxy.failing(store.late(added.rpartition("/")[2])),
        pytest.raises(UserError, match="of snapshot 2 is gone"),
    ):
        rows_of(bucket)
    with proxy.failing(store.late("00000002.json")) as failed:
        assert schema.read_manifest(url).number == 1
        with pytest.raises(UserError, match="snapshot 2 was made meanwhile"):
            add_snapshot(bucket)
    assert failed and rows_of(bucket) == 60
    add_snapshot(bucket)
    assert rows_of(bucket) == 80
    checkpoint(bucket)
    with proxy.failing(store.late("step-00000003")):
        assert newest(bucket) == 2
    assert newest(bucket) == 3


# --- Delta -----------------------------------------------------------------------------

TORN = """
import json, pathlib, sys
from gan_spark import failures, job
from gan_spark.lake import tables

folder = pathlib.Path(sys.argv[1])
url, log = f"file://{folder}", folder / "_delta_log"
spark = job.session("torn")


def state():
    # What a job reads, or the line with which it ends.
    spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()
    try:
        return tables.read(spark, url).count()
    except Exception as error:
        failures.report(error)
        return None


for number in range(3):
    frame = spark.range(10 * number, 10 * number + 10, 1, 2).selectExpr("id", "id as seed")
    tables.write_delta(frame, url, "append")
newest = sorted(log.glob("0*.json"))[-1]
whole = newest.read_bytes()
checksum = log / f".{newest.name}.crc"
checksum.unlink(missing_ok=True)  # Hadoop's, which would tell it, and which stores do not have
found = {"whole": state()}
lines = whole.splitlines(keepends=True)
for name, data in (
    ("in a line", whole[: len(whole) // 2]),
    ("after its first line", lines[0]),
    ("before its last line", b"".join(lines[:-1])),
    ("empty", b""),
):
    newest.write_bytes(data)
    print(f"--- {name}", file=sys.stderr)
    found[name] = state()
    try:
        tables.check(spark, url, "delta", "numbers", ["id", "seed"])
    except Exception as error:
        found[name] = (found[name], failures.report(error))
newest.write_bytes(whole)
(log / f".{newest.name}.1234.tmp").write_bytes(whole[:50])
(folder / "part-00000-of-a-job-that-died.snappy.parquet").write_bytes(b"PAR1 half")
found["leftovers"] = state()
print(json.dumps(found))
"""


@pytest.mark.parametrize(
    "rows, added, problem",
    [
        (40, [20, 20], ""),
        (40, [20], "20 rows of 40"),
        (40, [], "0 rows of 40"),
        (0, [], ""),  # An append of nothing: Delta tells of a file, which it has not added.
        (40, [40], ""),  # The first of two files had no rows.
        (40, [None], ""),  # Where the table has no statistics, nothing can be told.
    ],
)
def test_a_commit_is_torn_where_rows_are_missing(tmp_path, rows, added, problem):
    metrics = {"numFiles": "2", "numOutputRows": str(rows)}
    actions = [{"commitInfo": {"operation": "WRITE", "operationMetrics": metrics}}]
    for count in added:
        stats = {} if count is None else {"stats": json.dumps({"numRecords": count})}
        actions.append({"add": {"path": "part.parquet"} | stats})
    (tmp_path / "_delta_log").mkdir()
    (tmp_path / "_delta_log" / f"{1:020}.json").write_text("\n".join(map(json.dumps, actions)) + "\n")
    if problem:
        with pytest.raises(UserError, match=rf"{1:020}.json, is torn \({problem}\)"):
            tables._check_commit(f"file://{tmp_path}")
    else:
        tables._check_commit(f"file://{tmp_path}")


@pytest.mark.fault(
    "lake",
    "the newest commit of a Delta table is torn: in a line, between lines, or empty",
    "the table is refused, to read and to write, by one line that names the commit; files in no commit are in no row",
)
@pytest.mark.long
def test_a_torn_commit_of_a_delta_table_is_refused(tmp_path):
    (tmp_path / "spark-defaults.conf").write_text(
        (ROOT / "conf" / "spark-defaults.conf").read_text()
        + "spark.jars.packages io.delta:delta-core_2.12:2.4.0\n"
        + "spark.sql.extensions io.delta.sql.DeltaSparkSessionExtension\n"
        + "spark.sql.catalog.spark_catalog org.apache.spark.sql.delta.catalog.DeltaCatalog\n"
    )
    (tmp_path / "log4j2.properties").write_text((ROOT / "conf" / "log4j2.properties").read_text())
    done = subprocess.run(
        [sys.executable, "-c", TORN, str(tmp_path / "table")],
        env={**os.environ, "SPARK_CONF_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=550,
    )
    if "unresolved dependency" in done.stderr:
        pytest.skip("Spark cannot fetch Delta's jars from here")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["whole"] == found["leftovers"] == 30
    torn = {name: state for name, state in found.items() if name not in ("whole", "leftovers")}
    assert torn == {name: [None, 2] for name in torn} and len(torn) == 4, (torn, done.stderr[-3000:])
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 * len(torn)
    for line in lines:
        assert re.search(r"/table: its newest commit, \d{20}\.json, is torn", line), line
