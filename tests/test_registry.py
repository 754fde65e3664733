"""The registry of a lake: runs, lineage, promotion and rollback."""

import json
import subprocess
import sys

import pytest

from conftest import ROOT
from gan_spark import lake as lakes, registry
from gan_spark.config import UserError
from gan_spark.store import Run


def add_run(root: str, name: str, fid: float | None, step: int = 10) -> None:
    """A run as training and evaluation leave it."""
    run = Run(lakes.join(lakes.to_url(root), "runs", name))
    record = {
        "config": {"run": name, "model": {"name": "dcgan"}, "train": {"steps": step}, "uses": {}},
        "dataset": {"url": f"file://{root}/datasets/digits", "fingerprint": "abc", "classes": []}, "versions": {"gan_spark": "0.1.0"}, "created": f"2026-01-0{step % 9 + 1}",
    }  # fmt: skip
    run.start(record)
    run.append_metrics({"event": "start"}, {"step": step, "d_loss": 1.5, "scalars": ["d_loss"]})

    def write(prefix):
        with open(prefix + ".index", "w") as out:
            out.write(name)

    run.save_checkpoint(step, write, 3)
    if fid is not None:
        lakes.write_json(lakes.join(lakes.to_url(root), "generated", f"{name}.quality.json"), {"fid": fid, "step": step, "run": run.url, "table": f"file://{root}/generated/{name}", "report": "x"})


@pytest.fixture
def root(tmp_path) -> str:
    for name, fid, step in (("first", 20.0, 10), ("worse", 25.0, 11), ("better", 15.0, 12), ("unmeasured", None, 13)):
        add_run(str(tmp_path), name, fid, step)
    return str(tmp_path)


def test_only_a_better_run_is_promoted(root):
    assert registry.promote(root, "first", "digits", better=True) == {"model": "digits", "version": 1, "run": "first", "step": 10, "fid": 20.0, "promoted": True, "before": 0}
    assert registry.promote(root, "worse", "digits", better=True)["promoted"] is False
    assert registry.current(root, "digits")["run"] == "first"
    assert registry.promote(root, "better", "digits", better=True)["promoted"] is True
    assert registry.current(root, "digits") == {**registry.read(root, "digits")["versions"][2]} and registry.current(root, "digits")["run"] == "better"
    with pytest.raises(UserError, match="no FID was measured at step 13"):
        registry.promote(root, "unmeasured", "digits", better=True)
    assert registry.promote(root, "unmeasured", "digits")["promoted"] is True


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
    found = registry.lineage(root, "first")
    assert found["config"]["train"]["steps"] == 10 and found["gan_spark"] == "0.1.0" and found["fingerprint"] == "abc"
    assert found["checkpoints"] == [10] and found["metrics"] == {"step": 10, "d_loss": 1.5}
    assert list(found["quality"].values()) == [{"fid": 20.0, "step": 10}] and found["registered"] == ["digits v1"]
    with pytest.raises(UserError, match="no run at .*/none"):
        registry.lineage(root, "none")


def test_code_version_names_the_commit(tmp_path):
    version = registry.code_version()
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    assert version.startswith("0.1.0") and (head.returncode != 0 or head.stdout[:12] in version)


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "gan_spark", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_the_command_line_prints_tables(root):
    assert command("promote", "first", "--model", "digits", "--lake", root).returncode == 0
    listed = command("runs", "--lake", root).stdout.splitlines()
    assert listed[0].split() == ["run", "model", "dataset", "step", "fid", "created", "promoted"]
    assert [line.split()[0] for line in listed[1:]] == ["first", "worse", "better", "unmeasured"] and "digits v1" in listed[1]
    assert json.loads(command("runs", "--lake", root, "--json").stdout)[2]["fid"] == 15.0
    assert "config.train.steps" in command("show", "first", "--lake", root).stdout
    failed = command("show", "none", "--lake", root)
    assert failed.returncode == 2 and failed.stderr.startswith("error: no run at") and not failed.stdout
    assert command("runs", "--lake", root + "/nowhere").stdout.strip() == "no runs"
