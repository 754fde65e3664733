"""The registry of a lake: runs, lineage, promotion and rollback."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, make_config

from gan_spark import lake as lakes
from gan_spark.config import UserError, resolved
from gan_spark.quality import evaluate, promote
from gan_spark.runs import catalogue, loading, registry
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.version import code_version

ALIKE = {
    "features": "lenet (lenet-digits-abc, step 20)",
    "features_hash": "0a1b",
    "dataset": "digits",
    "fingerprint": "abc",
    "split": "test",
    "part": "",
    "generated_images": 60,
}


def add_run(root: str, name: str, fid: float | None, step: int = 10) -> None:
    """A run as training and evaluation leave it."""
    run = Run(lakes.join(lakes.to_url(root), "runs", name))
    record = {
        "config": {"run": name, "model": {"name": "dcgan"}, "train": {"steps": step}, "uses": {}},
        "dataset": {"url": f"file://{root}/datasets/digits", "fingerprint": "abc", "classes": []},
        "versions": {"gan_spark": "0.1.0"},
        "created": f"2026-01-0{step % 9 + 1}",
    }
    run.start(record)
    run.append_metrics({"event": "start"}, {"step": step, "d_loss": 1.5, "scalars": ["d_loss"]})

    def write(prefix):
        with open(prefix + ".index", "w") as out:
            out.write(name)

    run.save_checkpoint(step, write, 3)
    if fid is not None:
        add_quality(root, name, fid, step)


def add_quality(root: str, name: str, fid: float, step: int, table: str = "", **changes) -> None:
    """What `evaluate` says of a run's images in a table; `changes` to what was measured with, and when it was."""
    url = lakes.join(lakes.to_url(root), "generated", table or name)
    lakes.write_json(
        f"{url}.quality.json",
        {
            "fid": fid,
            **ALIKE,
            "step": step,
            "run": f"file://{root}/runs/{name}",
            "table": url,
            "report": "x",
            "evaluated": "2026-01-01",
            **changes,
        },
    )


@pytest.fixture
def root(tmp_path) -> str:
    for name, fid, step in (("first", 20.0, 10), ("worse", 25.0, 11), ("better", 15.0, 12), ("unmeasured", None, 13)):
        add_run(str(tmp_path), name, fid, step)
    return str(tmp_path)


def test_a_run_begins_with_what_is_promoted(tmp_path, caplog):
    caplog.set_level("INFO")
    root = str(tmp_path)
    config = make_config(root, run="new", train={"start_from": "promoted:mine"})
    assert loading.started_from(config) is None and "nothing is promoted yet" in caplog.text
    for name, step in (("one", 10), ("two", 20)):
        add_run(root, name, None, step)
        record = Run.named(root, name).record()
        record["config"]["model"] = resolved(config.model)
        Run.named(root, name).write_record(record)
        registry.promote(root, name, "mine")
    two = loading.started_from(config)
    assert (two["url"], two["step"]) == (Run.named(root, "two").url, 20)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, width=64))
    with pytest.raises(UserError, match=r"'promoted:mine': its weights are of another model.* model\.width"):
        loading.started_from(other)
    # A run that has begun stays with what it began with, whatever is promoted later.
    add_run(root, "fresh", None)
    assert loading.started_from(dataclasses.replace(config, run="fresh")) is None
    add_run(root, "new", None)
    Run.named(root, "new").write_record({**Run.named(root, "new").record(), "started_from": two})
    registry.rollback(root, "mine")
    assert loading.started_from(config) == two
    assert loading.started_from(dataclasses.replace(config, run="newer"))["url"] == Run.named(root, "one").url


def test_only_a_better_run_is_promoted(root):
    assert registry.promote(root, "first", "digits", better=True) == {
        "model": "digits",
        "version": 1,
        "run": "first",
        "step": 10,
        "fid": 20.0,
        "promoted": True,
        "before": 0,
    }
    assert registry.promote(root, "worse", "digits", better=True)["promoted"] is False
    assert registry.current(root, "digits")["run"] == "first"
    assert registry.promote(root, "better", "digits", better=True)["promoted"] is True
    assert (
        registry.current(root, "digits") == {**registry.read(root, "digits")["versions"][2]}
        and registry.current(root, "digits")["run"] == "better"
    )
    with pytest.raises(UserError, match="no FID was measured at step 13"):
        registry.promote(root, "unmeasured", "digits", better=True)
    assert registry.promote(root, "unmeasured", "digits")["promoted"] is True


@pytest.mark.parametrize(
    "changes",
    [
        {"features": "InceptionV3 (imagenet)"},
        {"features_hash": "of another classifier that is called the same"},
        {"dataset": "letters"},
        {"fingerprint": "abd"},
        {"split": "train"},
        {"part": "a"},
        {"generated_images": 6000},
    ],
)
def test_fids_that_were_not_measured_alike_are_not_compared(root, changes):
    registry.promote(root, "first", "digits")
    before = registry.read(root, "digits")
    add_quality(root, "better", 15.0, 12, **changes)
    ((key, value),) = changes.items()
    expected = re.escape(f"{key} {value!r} and {ALIKE[key]!r}. Evaluate both alike")
    with pytest.raises(
        UserError,
        match=(
            r"run better at step 12, and of the promoted version 1, run first at step 10, cannot be compared; they"
            rf" were not measured alike: {expected}.*only_if_better = false"
        ),
    ):
        registry.promote(root, "better", "digits", better=True)
    assert registry.read(root, "digits") == before
    assert registry.promote(root, "better", "digits")["promoted"] is True
    assert registry.current(root, "digits")["measured"] == {**ALIKE, **changes}


@pytest.mark.parametrize("key", ["fingerprint", "features_hash"])
def test_evaluations_of_unknown_images_or_by_an_unknown_network_are_not_compared(root, key):
    """As those of before are, which do not say it."""
    for name, fid, step in (("first", 20.0, 10), ("better", 15.0, 12)):
        add_quality(root, name, fid, step, **{key: None})
    registry.promote(root, "first", "digits")
    with pytest.raises(UserError, match=f"not measured alike: {key} not known and not known"):
        registry.promote(root, "better", "digits", better=True)


def test_a_version_that_was_measured_after_it_was_promoted_is_compared(root):
    registry.promote(root, "unmeasured", "digits")
    with pytest.raises(
        UserError,
        match="promoted version 1, run unmeasured at step 13, cannot be compared; the second was not measured",
    ):
        registry.promote(root, "better", "digits", better=True)
    add_quality(root, "unmeasured", 12.0, 13)
    assert registry.promote(root, "better", "digits", better=True)["promoted"] is False
    assert registry.current(root, "digits")["fid"] == 12.0
    assert registry.promote(root, "unmeasured", "digits", better=True)["fid"] == 12.0


def test_the_newest_evaluation_of_a_step_counts(root):
    add_quality(root, "first", 30.0, 10, table="a", evaluated="2026-02-01")
    assert registry.promote(root, "first", "digits", better=True)["fid"] == 30.0


def test_what_was_measured_alike_counts_though_a_later_evaluation_was_not(root):
    registry.promote(root, "first", "digits")
    add_quality(root, "first", 1.0, 10, fingerprint="abd")
    assert registry.promote(root, "better", "digits", better=True)["promoted"] is True


def test_of_evaluations_of_the_promoted_version_the_newest_that_was_measured_alike_counts(root):
    registry.promote(root, "first", "digits")
    add_quality(root, "first", 10.0, 10, table="digits", evaluated="2026-01-02")
    assert registry.promote(root, "better", "digits", better=True)["promoted"] is False
    assert registry.current(root, "digits")["fid"] == 10.0


@pytest.mark.parametrize("fid, promoted", [(16.0, True), (14.0, False)])
def test_the_job_measures_the_promoted_version_again_on_new_images(root, monkeypatch, fid, promoted):
    """As every ingest that adds images makes necessary; its FID of before was 10."""
    add_quality(root, "first", 10.0, 10)
    registry.promote(root, "first", "digits")
    add_quality(root, "better", 15.0, 12, fingerprint="abd")
    told = []

    def measure(spark, config):
        told.append(config)
        add_quality(
            root,
            config.run,
            fid,
            config.generate.checkpoint,
            config.generate.table,
            fingerprint="abd",
            evaluated="2026-01-02",
        )

    monkeypatch.setattr(generate, "generate", lambda spark, config: told.append(config))
    monkeypatch.setattr(evaluate, "evaluate", measure)
    config = make_config(
        root, run="better", generate={"images": 60, "model": "another", "append": True}, promote={"model": "digits"}
    )
    assert promote.promote_run(None, config)["promoted"] is promoted
    made, measured = told
    assert (
        made == measured and made.run == "first" and made.dataset == config.dataset and made.evaluate == config.evaluate
    )
    assert made.generate == dataclasses.replace(
        config.generate, checkpoint=10, table="digits-promoted", model="", append=False
    )
    assert promote.promote_run(None, config)["promoted"] is promoted and len(told) == 2  # once is enough


def test_the_job_refuses_where_the_run_was_not_measured_as_the_config_says(root, monkeypatch):
    registry.promote(root, "first", "digits")
    add_quality(root, "better", 15.0, 12, split="train")
    for module, name in ((generate, "generate"), (evaluate, "evaluate")):
        monkeypatch.setattr(module, name, lambda spark, config: None)
    with pytest.raises(UserError, match="split 'train' and 'test'"):
        promote.promote_run(None, make_config(root, run="better", promote={"model": "digits"}))


def test_fids_of_a_lake_that_was_moved_are_compared_where_it_is(root, tmp_path_factory):
    """Those of the registry and of the reports, whether this version or one before wrote them."""

    def of_dataset(lake: str, name: str, fid: float, step: int) -> None:
        add_quality(lake, name, fid, step, dataset=f"file://{lake}/datasets/digits")

    of_dataset(root, "first", 20.0, 10)
    registry.promote(root, "first", "former")
    promoted = lakes.join(lakes.to_url(root), "models", "former.json")
    lakes.write_json(promoted, registry.read(root, "former"))  # with URLs
    registry.promote(root, "first", "digits")
    assert root not in lakes.read_bytes(promoted.replace("former", "digits")).decode()
    place = tmp_path_factory.mktemp("moved") / "lake"
    shutil.move(root, place)
    (place / "datasets" / "digits").mkdir(parents=True)
    of_dataset(str(place), "better", 15.0, 12)
    for name in ("digits", "former"):
        assert registry.promote(str(place), "better", name, better=True)["promoted"] is True
        assert registry.rollback(str(place), name)["run"] == "first"
    assert catalogue.lineage(str(place), "first")["dataset"] == f"file://{place}/datasets/digits"


def test_promoting_twice_changes_nothing(root):
    registry.promote(root, "first", better=True)
    once = registry.read(root, "default")
    again = registry.promote(root, "first", better=True)
    assert again["promoted"] is True and again["version"] == 1 and registry.read(root, "default") == once


def test_rollback_goes_back_step_by_step(root):
    for name in ("first", "better", "worse"):
        registry.promote(root, name)
    assert registry.rollback(root)["run"] == "better"
    assert registry.rollback(root)["run"] == "first"
    with pytest.raises(UserError, match="no version from before"):
        registry.rollback(root)
    assert len(registry.read(root, "default")["versions"]) == 3


def test_a_run_leads_to_its_config_code_data_and_figures(root):
    registry.promote(root, "first", "digits")
    found = catalogue.lineage(root, "first")
    assert found["config"]["train"]["steps"] == 10 and found["gan_spark"] == "0.1.0" and found["fingerprint"] == "abc"
    assert found["checkpoints"] == [10] and found["metrics"] == {"step": 10, "d_loss": 1.5}
    assert list(found["quality"].values()) == [{"fid": 20.0, **ALIKE, "step": 10, "evaluated": "2026-01-01"}] and found[
        "registered"
    ] == ["digits v1"]
    with pytest.raises(UserError, match="no run at .*/none"):
        catalogue.lineage(root, "none")


def test_code_version_names_the_commit(tmp_path):
    version = code_version()
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert version.startswith("0.1.0") and (head.returncode != 0 or head.stdout[:12] in version)


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "gan_spark", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_the_command_line_prints_tables(root):
    assert command("promote", "first", "--model", "digits", "--lake", root).returncode == 0
    listed = command("runs", "--lake", root).stdout.splitlines()
    assert listed[0].split() == ["run", "model", "dataset", "step", "fid", "created", "promoted"]
    assert [line.split()[0] for line in listed[1:]] == [
        "first",
        "worse",
        "better",
        "unmeasured",
    ] and "digits v1" in listed[1]
    assert json.loads(command("runs", "--lake", root, "--json").stdout)[2]["fid"] == 15.0
    assert "config.train.steps" in command("show", "first", "--lake", root).stdout
    failed = command("show", "none", "--lake", root)
    assert failed.returncode == 2 and failed.stderr.startswith("error: no run at") and not failed.stdout
    assert command("runs", "--lake", root + "/nowhere").stdout.strip() == "no runs"


@pytest.mark.parametrize("theirs", ['{"accuracy": 0.9}', "[1]", "no JSON"])
def test_a_strangers_file_where_a_registry_goes_is_left_alone(root, theirs):
    url = lakes.model_url(root, "digits")
    lakes.write_bytes(url, theirs.encode())
    with pytest.raises(UserError, match="digits.json: expected a registry that gan_spark wrote"):
        registry.promote(root, "first", "digits")
    assert lakes.read_bytes(url) == theirs.encode()
