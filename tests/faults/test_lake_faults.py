"""Faults of the lake: stores that do not answer, disks that are full, files that are not what they were, and jobs that
change one thing at once.
"""

import contextlib
import os
import re
import subprocess
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import make_config
from test_registry import add_run

from gan_spark import failures, online
from gan_spark import lake as lakes
from gan_spark.config import UserError, replaced
from gan_spark.data import ingest
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
    code, line = told(raised.value, capsys)
    assert code == 2 and line.count("\n") == 1
    assert re.search(r"^error: .*/datasets/\S+: cannot be written: No space left on device; what was there", line), line
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
    code, line = told(raised.value, capsys)
    assert code == 2 and line.count("\n") == 1
    assert re.search(r"^error: .*/disk/table: cannot be written: No space left on device; what was there", line), line
    theirs.unlink()
    assert files_in(disk) == before and spark.read.parquet(str(disk / "table")).count() == 30
    assert generate.generate(spark, more)["images"] == 300
