"""Checkpoints are whole or absent; a run is resumed as it was or not at all."""

import builtins
import json
import os
import uuid

import fsspec
import pytest

from gan_spark import lake
from gan_spark.config import TaskFailure, UserError
from gan_spark.runs.store import Run


@pytest.fixture
def run(tmp_path):
    return Run(lake.to_url(str(tmp_path / "runs" / "r")))


def save(run, step, keep=3, content=b"weights"):
    def write(prefix):
        for suffix in (".index", ".data-00000-of-00001"):
            with open(prefix + suffix, "wb") as out:
                out.write(content + suffix.encode())

    run.save_checkpoint(step, write, keep)


def newest(run, step=0):
    with run.checkpoint(step) as found:
        if found is None:
            return None
        with open(found[1] + ".index", "rb") as stream:
            return found[0], stream.read()


def local(run, *parts):
    return lake.filesystem(run.path(*parts))[1]


def test_the_step_of_a_checkpoint_is_the_newest_whole_one_or_that_which_is_asked_for(run):
    with pytest.raises(UserError, match=f"^run {run.url}: no whole checkpoint yet; train it first$"):
        run.checkpoint_step()
    for step in (5, 10):
        save(run, step)
    assert run.checkpoint_step() == 10 and run.checkpoint_step(5) == 5
    damage_flip(local(run, "checkpoints", "step-00000010"))
    assert run.checkpoint_step() == 5
    with pytest.raises(UserError, match="checkpoint at step 10 is damaged"):
        run.checkpoint_step(10)


def test_the_newest_checkpoint_is_found_and_old_ones_go(run):
    assert newest(run) is None
    for step in (5, 10, 15, 20):
        save(run, step, keep=2)
    assert run.checkpoints() == [15, 20]
    assert newest(run) == (20, b"weights.index")
    assert newest(run, 15) == (15, b"weights.index")
    assert sorted(os.listdir(local(run, "checkpoints"))) == ["step-00000015", "step-00000020"]


def damage_truncate(folder):
    with open(f"{folder}/checkpoint.index", "wb") as out:
        out.write(b"wei")


def damage_flip(folder):
    with open(f"{folder}/checkpoint.index", "wb") as out:
        out.write(b"Weights.index")


def damage_missing(folder):
    os.remove(f"{folder}/checkpoint.data-00000-of-00001")


def damage_manifest(folder):
    with open(f"{folder}/manifest.json", "w") as out:
        out.write("{")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_missing, damage_manifest])
@pytest.mark.fault(
    "training",
    "the newest checkpoint is cut, changed, or lacks a file",
    "passed over with a warning that names it; training goes on from the one before",
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(run, damage, caplog):
    save(run, 5)
    save(run, 10)
    damage(local(run, "checkpoints", "step-00000010"))
    assert newest(run) == (5, b"weights.index")
    assert "step 10 is damaged" in caplog.text
    with pytest.raises(UserError, match="step 10 is damaged"):
        newest(run, 10)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_checkpoint_that_a_training_removes_while_it_is_read_gives_way_to_a_newer_one(run, monkeypatch, caplog, keep):
    for step in (5, 10):
        save(run, step, keep)
    fetch = Run._fetch

    def overtaken(run, step, temporary):
        if step == 10:
            monkeypatch.setattr(Run, "_fetch", fetch)
            for later in (15, 20):
                save(run, later, keep, b"later")
        return fetch(run, step, temporary)

    monkeypatch.setattr(Run, "_fetch", overtaken)
    assert newest(run) == (20, b"later.index") and "damaged" not in caplog.text
    monkeypatch.setattr(Run, "_fetch", lambda run, step, temporary: lake.remove(run.path("checkpoints")) or "gone")
    with pytest.raises(UserError, match=r"no checkpoint at step 20 \(there are: none\)"):
        newest(run, 20)


def test_what_is_saved_after_going_back_takes_the_place_of_later_checkpoints(run):
    """Step 2000 is damaged, so training went on from before it, and its checkpoint must not count as the newest."""
    save(run, 2000, keep=1)
    run.save_best({"step": 2000, "accuracy": 0.9})
    damage_flip(local(run, "checkpoints", "step-00002000"))
    for step in (500, 1000, 1500):
        save(run, step, keep=1)
        assert newest(run) == (step, b"weights.index")
        assert os.listdir(local(run, "checkpoints")) == [f"step-{step:08d}"]
    assert run.best() is None  # or what is measured from now on would be compared with weights that are gone


def test_the_best_checkpoint_from_before_stays(run):
    save(run, 5, keep=1)
    run.save_best({"step": 5, "accuracy": 0.9})
    save(run, 20, keep=1)
    save(run, 10, keep=1)
    assert run.checkpoints() == [5, 10] and run.best()["step"] == 5


def test_a_later_checkpoint_that_is_half_removed_does_not_exist(run, monkeypatch):
    save(run, 20)
    remove = lake.remove

    def dies(url):
        if url.endswith("step-00000020"):
            raise ConnectionError("503 slow down")
        remove(url)

    monkeypatch.setattr(lake, "remove", dies)
    with pytest.raises(ConnectionError):
        save(run, 10)
    assert run.checkpoints() == []


@pytest.mark.parametrize("method", ["cat_file", "get_file", "ls", "info"])
def test_a_store_that_does_not_answer_is_no_damage(run, monkeypatch, method):
    """Or a healthy run would start again from the beginning, in silence."""
    save(run, 5)

    def fails(*arguments, **options):
        raise ConnectionError("503 slow down")

    with monkeypatch.context() as patch:
        patch.setattr(type(lake.filesystem(run.url)[0]), method, fails)
        with pytest.raises(ConnectionError, match="503"):
            newest(run)
    assert newest(run) == (5, b"weights.index")


def test_a_store_that_does_not_answer_is_no_missing_file(monkeypatch):
    run = Run(f"memory://lake-{uuid.uuid4().hex}/runs/r")
    run.start({"config": {"width": 4}, "dataset": {}})
    run.save_best({"step": 5})

    def fails(*arguments, **options):
        raise ConnectionError("503 slow down")

    with monkeypatch.context() as patch:
        for method in ("info", "cat_file"):
            patch.setattr(type(lake.filesystem(run.url)[0]), method, fails)
        for ask in (
            run.best,
            run.record,
            lambda: run.check({}, {}),
            lambda: run.start({}),
            lambda: run.is_owner("token"),
        ):
            with pytest.raises(ConnectionError):
                ask()
    assert run.best() == {"step": 5} and run.record()["config"] == {"width": 4}
    lake.remove(run.url)


@pytest.mark.parametrize("folder", ["[prod]", "a*b", "a?b", "a#b", "{a,b}"])
def test_checkpoints_are_found_whatever_the_lake_is_called(tmp_path, folder):
    run = Run(lake.to_url(str(tmp_path / folder / "runs" / "r")))
    assert run.checkpoints() == []
    for step in (5, 10, 15):
        save(run, step, keep=2)
    assert run.checkpoints() == [10, 15] and newest(run) == (15, b"weights.index")


def test_only_folders_named_as_checkpoints_are_checkpoints(run):
    for step in (5, 10, 123456789):
        save(run, step)
    folder = local(run, "checkpoints")
    for other in ("step-00000005.bak", "step-5", "step-000000005", "old-step-00000005", "step-00000006"):
        os.makedirs(f"{folder}/{other}")
        if other != "step-00000006":
            with open(f"{folder}/{other}/manifest.json", "w") as out:
                out.write("{}")
    with open(f"{folder}/step-00000007", "w") as out:
        out.write("a file")
    assert run.checkpoints() == [5, 10, 123456789]


def test_a_checkpoint_without_its_manifest_does_not_exist(run):
    save(run, 5)
    save(run, 10)
    os.remove(local(run, "checkpoints", "step-00000010", "manifest.json"))
    assert run.checkpoints() == [5]


def test_a_save_that_fails_leaves_no_checkpoint_that_looks_whole(run):
    def write(prefix):
        raise OSError("disk full")

    save(run, 5)
    with pytest.raises(OSError, match="disk full"):
        run.save_checkpoint(10, write, 3)
    assert run.checkpoints() == [5]


def test_another_config_is_refused_with_the_differences(run):
    record = {
        "config": {"model": {"name": "dcgan", "width": 64}, "train": {"steps": 10, "seed": 0}},
        "dataset": {"fingerprint": "a"},
    }
    run.check(record, {})
    run.start(record)
    run.check({**record, "config": {**record["config"], "train": {"steps": 99, "seed": 0}}}, {})
    changed = json.loads(json.dumps(record))
    changed["config"]["model"]["width"] = 32
    changed["dataset"]["fingerprint"] = "b"
    with pytest.raises(UserError, match=r"config.model.width: was 64, is 32; dataset.fingerprint: was 'a', is 'b'"):
        run.check(changed, {})


def test_an_option_that_is_newer_than_the_run_counts_as_its_default(run):
    run.start({"config": {"model": {"width": 64}}, "dataset": {}})
    newer = {"config": {"model": {"width": 64, "depth": 2}}, "dataset": {}}
    run.check(newer, {"model": {"width": 8, "depth": 2}})
    with pytest.raises(UserError, match="config.model.depth: was 3, is 2"):
        run.check(newer, {"model": {"width": 8, "depth": 3}})


def test_a_run_that_was_taken_over_stops_its_former_owner(run):
    first = run.start({})
    run.check_owner(first)
    second = run.start({})
    run.check_owner(second)
    with pytest.raises(TaskFailure, match="taken over"):
        run.check_owner(first)
    assert run.is_owner(second) and not run.is_owner(first)
    lake.remove(run.url)
    assert not run.is_owner(second)


def test_metrics_are_whole_lines(run):
    run.append_metrics({"step": 1}, {"step": 2})
    lines, offset = run.watch(0)
    assert [line["step"] for line in lines] == [1, 2]
    with open(local(run, "metrics.jsonl"), "ab") as out:
        out.write(b'{"step": 3}\n{"st')
    lines, offset = run.watch(offset)
    assert [line["step"] for line in lines] == [3]
    assert run.watch(offset) == ([], offset)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]


TORN = b'{"step": 2, "d_lo'


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.fault(
    "training",
    "a line of `metrics.jsonl` is cut off",
    "it is left out with a warning; no other line is lost, and new ones follow on lines of their own",
)
def test_a_line_that_was_cut_off_costs_no_other(run, caplog, end):
    run.append_metrics({"step": 1})
    with open(local(run, "metrics.jsonl"), "ab") as out:
        out.write(TORN + end)
    _, offset = run.watch(0)
    run.append_metrics({"step": 3})
    run.append_metrics({"step": 4})
    with open(local(run, "metrics.jsonl"), "rb") as stream:
        assert stream.read() == b'{"step": 1}\n' + TORN + b'\n{"step": 3}\n{"step": 4}\n'
    caplog.clear()
    assert [line["step"] for line in run.metrics()] == [1, 3, 4]
    assert len(caplog.messages) == 1 and "1 lines that were cut off" in caplog.text and TORN.decode() in caplog.text
    assert [line["step"] for line in run.watch(offset)[0]] == [3, 4]


@pytest.fixture
def appends(monkeypatch):
    """Modes of appending in which files are opened, through fsspec and without."""
    found = []

    def spied(target, name):
        opened = getattr(target, name)

        def spy(*arguments, **options):
            found.extend(
                mode
                for mode in [*arguments, *options.values()]
                if isinstance(mode, str) and mode.startswith("a") and len(mode) <= 3
            )
            return opened(*arguments, **options)

        monkeypatch.setattr(target, name, spy)

    spied(fsspec.AbstractFileSystem, "open")
    spied(builtins, "open")
    return found


@pytest.mark.parametrize(
    "url", ["memory://lake/runs/r", "dbfs:/lake/runs/r", "file:///dbfs/lake/runs/r", "file:///Volumes/a/b/c/runs/r"]
)
def test_where_nothing_can_be_appended_the_file_is_written_anew(url, appends, monkeypatch):
    """HDFS has no append to a file that is not there, Databricks' mounts and object stores have none at all."""
    held = {}

    def read(url):
        if url not in held:
            raise FileNotFoundError(url)
        return held[url]

    monkeypatch.setattr(lake, "read_bytes", read)
    monkeypatch.setattr(lake, "write_bytes", held.__setitem__)
    run = Run(url)
    run.append_metrics({"step": 1})
    held[run.path("metrics.jsonl")] += TORN
    run.append_metrics({"step": 3}, {"step": 4})
    assert held == {run.path("metrics.jsonl"): b'{"step": 1}\n' + TORN + b'\n{"step": 3}\n{"step": 4}\n'}
    assert appends == []


def test_a_local_disk_appends(run, appends):
    run.append_metrics({"step": 1})
    assert appends == ["a+b"]


def test_metrics_are_read_where_they_are_written_anew():
    run = Run(f"memory://lake-{uuid.uuid4().hex}/runs/r")
    run.append_metrics({"step": 1})
    run.append_metrics({"step": 2})
    assert [line["step"] for line in run.metrics()] == [1, 2]
    lake.remove(run.url)
