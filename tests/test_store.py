"""Checkpoints are whole or absent; a run is resumed as it was or not at all."""

import json
import os

import pytest

from gan_spark import lake
from gan_spark.config import UserError
from gan_spark.store import Run


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
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(run, damage, caplog):
    save(run, 5)
    save(run, 10)
    damage(local(run, "checkpoints", "step-00000010"))
    assert newest(run) == (5, b"weights.index")
    assert "step 10 is damaged" in caplog.text
    with pytest.raises(UserError, match="step 10 is damaged"):
        newest(run, 10)


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
    record = {"config": {"model": {"name": "dcgan", "width": 64}, "train": {"steps": 10, "seed": 0}}, "dataset": {"fingerprint": "a"}}
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
    with pytest.raises(RuntimeError, match="taken over"):
        run.check_owner(first)


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
