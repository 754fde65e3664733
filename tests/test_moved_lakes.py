"""A lake that was moved or copied opens wholly where it is now."""

import dataclasses
import json
import os
import shutil
import uuid

import pytest
from conftest import make_config

from gan_spark import lake
from gan_spark.config import UserError, replaced
from gan_spark.data import schema
from gan_spark.quality import evaluate, promote, report
from gan_spark.runs import catalogue, loading, registry
from gan_spark.runs.record import describe
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.training import driver

RECORD = {
    "config": {"run": "second", "uses": {"first": {"url": "ROOT/runs/first", "step": 4, "uses": {}}}},
    "dataset": {"url": "ROOT/datasets/digits", "fingerprint": "abc"},
}


def record_of(root: str) -> dict:
    """What a run's record is in memory, in the lake at `root`."""
    return json.loads(json.dumps(RECORD).replace("ROOT", root))


# --- references -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "root, url, reference",
    [
        ("file:///a/lake", "file:///a/lake/runs/r", "lake:/runs/r"),
        ("/a/lake", "file:///a/lake/runs/r", "lake:/runs/r"),
        ("file:///a/lake", "file:///a/lake2/runs/r", None),
        ("file:///a/lake", "file:///a", None),
        ("s3a://bucket/lake", "s3://bucket/lake/runs/r", "lake:/runs/r"),
        ("s3n://bucket/lake", "s3a://bucket/lake/runs/r", "lake:/runs/r"),
        ("s3://bucket", "s3a://bucket/runs/r", "lake:/runs/r"),
        ("s3a://bucket/lake", "s3a://another/lake/runs/r", None),
        ("s3a://bucket/lake", "gs://bucket/lake/runs/r", None),
        ("gs://bucket/lake", "gcs://bucket/lake/runs/r", "lake:/runs/r"),
        ("abfss://c@host/lake", "abfs://c@host/lake/runs/r", "lake:/runs/r"),
        ("abfss://c@host/lake", "abfss://c@another/lake/runs/r", None),
        ("dbfs:/lake", "file:///dbfs/lake/runs/r", "lake:/runs/r"),
        ("/dbfs/lake", "dbfs:/lake/runs/r", "lake:/runs/r"),
        ("file:///a/lake", "imagenet", None),
        ("file:///a/lake", "", None),
    ],
)
def test_a_record_refers_to_what_is_in_its_lake(root, url, reference):
    value = {"a": [url, 1, None], "b": {"c": url}}
    written = lake.relative(root, value)
    assert written == ({"a": [reference, 1, None], "b": {"c": reference}} if reference else value)
    assert lake.absolute("s3://moved/to", written)["b"]["c"] == ("s3://moved/to/runs/r" if reference else url)
    if reference:
        assert lake.absolute(root, value)["b"]["c"] == f"{lake.to_url(root)}/runs/r"  # in the spelling of the root


@pytest.mark.parametrize(
    "url, others",
    [
        ("s3://b/k", {"s3a://b/k", "s3://b/k", "s3n://b/k"}),
        ("file:///dbfs/k", {"file:///dbfs/k", "dbfs:/k"}),
        ("hdfs://h/k", {"hdfs://h/k"}),
    ],
)
def test_one_place_has_all_of_its_spellings(url, others):
    assert set(lake.spellings(url)) == others and {lake.canonical(other) for other in others} == {lake.canonical(url)}


def test_what_a_lake_says_of_itself_is_relative_and_what_lies_elsewhere_is_not(tmp_path):
    root, inside, outside = (lake.to_url(f"{tmp_path}/{name}") for name in ("lake", "lake/a.json", "elsewhere/a.json"))
    for url in (inside, outside):
        lake.write_record(root, url, {"run": f"{root}/runs/r"})
        assert lake.read_record(root, url) == {"run": f"{root}/runs/r"}
    assert lake.read_json(inside) == {"run": "lake:/runs/r"}
    assert lake.read_json(outside) == {"run": f"{root}/runs/r"}
    assert lake.reference(root, inside, f"{root}/runs/r") == "lake:/runs/r"
    assert lake.reference(root, outside, f"{root}/runs/r") == f"{root}/runs/r"


# --- records ----------------------------------------------------------------------------


@pytest.fixture(params=["file", "memory"])
def roots(request, tmp_path):
    """URLs of two places for a lake, one of them on the disk."""
    if request.param == "file":
        yield lake.to_url(f"{tmp_path}/old"), lake.to_url(f"{tmp_path}/new")
    else:
        url = f"memory://lake-{uuid.uuid4().hex}"
        yield lake.to_url(f"{tmp_path}/old"), url
        lake.remove(url)


def copy(old: str, new: str) -> None:
    """A lake from the disk to another place, of another store perhaps."""
    folder = lake.filesystem(old)[1]
    for path, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(path, name), "rb") as stream:
                lake.write_bytes(lake.join(new, os.path.relpath(os.path.join(path, name), folder)), stream.read())


@pytest.mark.parametrize("is_former", [False, True])
@pytest.mark.parametrize("is_gone", [False, True])
def test_a_run_resumes_in_a_lake_that_was_copied(roots, is_former, is_gone):
    old, new = roots
    run = Run.named(old, "second")
    run.start(record_of(old))
    if is_former:
        lake.write_json(run.path("config.json"), record_of(old))
    for name in ("datasets/digits/part", "runs/first/part"):
        lake.write_bytes(lake.join(old, name), b"")
    copy(old, new)
    if is_gone:
        lake.remove(old)
    moved = Run.named(new, "second")
    assert moved.record() == record_of(new)
    moved.check(record_of(new), {})
    moved.start(record_of(new))
    assert moved.record() == record_of(new)
    if not is_gone:
        assert run.record() == record_of(old)
    another = record_of(new)
    another["dataset"]["fingerprint"] = "abd"
    with pytest.raises(UserError, match="dataset.fingerprint: was 'abc', is 'abd'"):
        moved.check(another, {})


def test_a_former_run_without_its_lake_keeps_its_urls(tmp_path):
    old, new = (lake.to_url(f"{tmp_path}/{name}") for name in ("old", "new"))
    lake.write_json(lake.join(new, "runs", "second", "config.json"), record_of(old))
    assert Run.named(new, "second").record() == record_of(old)


def test_a_run_goes_on_with_a_copy_of_its_dataset_and_says_where_that_is(tmp_path):
    root = lake.to_url(str(tmp_path))
    run, record = Run.named(root, "second"), record_of(root)
    run.start(record)
    record["dataset"]["url"] = f"{root}/datasets/copy"
    run.check(record, {})
    run.start(record)
    assert run.record() == record


@pytest.mark.parametrize("schemes", [("s3", "s3a"), ("s3a", "s3"), ("gcs", "gs")])
def test_two_spellings_of_a_bucket_are_one_lake(schemes, monkeypatch):
    """Whatever wrote the record: this version, or one that wrote URLs."""
    written = {}
    monkeypatch.setattr(lake, "write_json", lambda url, value: written.update({url: value}))
    monkeypatch.setattr(lake, "read_json", lambda url: written[url])
    old, new = (f"{scheme}://bucket/lake" for scheme in schemes)
    for record in (record_of(old), lake.relative(old, record_of(old))):
        written[f"{new}/runs/second/config.json"] = record
        run = Run.named(new, "second")
        assert run.record() == record_of(new)
        run.check(record_of(new), {})
        assert {f"{old}/runs/second", f"{new}/runs/second", "lake:/runs/second"} <= set(run.names())


def test_a_file_of_the_lake_that_a_model_begins_from_moves_with_it(tmp_path, monkeypatch):
    def described(root: str, weights: str) -> dict:
        config = make_config(root, "classifier", run="tuned")
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=weights))
        manifest = schema.Manifest(32, 32, 1, "raw", (), {}, 0, "abc", {"fit": "crop"}, "")
        settings = {"model": dataclasses.asdict(config.model), "train": {}, "uses": {}}
        return describe(config, lake.join(lake.to_url(root), "datasets", "digits"), manifest, settings)

    old, new = (lake.to_url(f"{tmp_path}/{name}") for name in ("old", "new"))
    monkeypatch.chdir(tmp_path)
    former = described(old, f"{old}/runs/first/network.h5")
    former["config"]["model"]["weights"] = "old/runs/first/network.h5"  # as a version before recorded what it was given
    lake.write_json(lake.join(old, "runs", "tuned", "config.json"), former)
    Run.named(old, "tuned").check(described(old, "old/runs/first/network.h5"), {})
    lake.remove(old)
    Run.named(old, "tuned").start(described(old, "old/runs/first/network.h5"))
    assert str(tmp_path) not in lake.read_bytes(lake.join(old, "runs", "tuned", "config.json")).decode()
    shutil.move(tmp_path / "old", tmp_path / "new")
    run = Run.named(new, "tuned")
    run.check(described(new, "new/runs/first/network.h5"), {})
    assert run.record()["config"]["model"]["weights"] == f"{new}/runs/first/network.h5"
    with pytest.raises(UserError, match="config.model.weights: was 'file:.*first/network.h5', is 'file:.*other.h5'"):
        run.check(described(new, f"{new}/other.h5"), {})
    for weights in ("", "imagenet", "/elsewhere/network.h5"):
        assert described(new, weights)["config"]["model"]["weights"] == weights


# --- a whole lake -----------------------------------------------------------------------


def configs_of(root: str) -> tuple:
    """Configs of the run of a super-resolution network, and of another that starts from it."""
    options = {
        "train": {"steps": 2, "checkpoint_every": 1, "sample_every": 2},
        "generate": {"images": 12, "batch_size": 4},
        "evaluate": {"classifier_steps": 2, "classifier_batch": 16, "neighbours": 2},
        "promote": {"model": "digits"},
    }
    first, second = (make_config(root, "srgan", run=name, **options) for name in ("first", "second"))
    return first, dataclasses.replace(second, model=dataclasses.replace(second.model, pretrained="first"))


@pytest.mark.slow
@pytest.mark.long
def test_a_lake_that_was_moved_opens_wholly(spark, digits, tmp_path):
    old, new = str(tmp_path / "old"), str(tmp_path / "new")
    shutil.copytree(lake.filesystem(digits)[1], f"{old}/datasets/digits")
    for config in configs_of(old):
        driver.train(spark, config)
        generate.generate(spark, config)
        evaluate.evaluate(spark, config)
        registry.promote(old, config.run, "digits")
    before = catalogue.lineage(old, "second")
    shutil.move(old, new)
    texts = [path for path in (tmp_path / "new").rglob("*") if path.suffix in (".json", ".jsonl")]
    assert [str(path) for path in texts if old in path.read_text()] == []

    root, (first, second) = lake.to_url(new), configs_of(new)
    assert [row["run"] for row in catalogue.runs(new) if row["fid"]] == ["first", "second"]
    found = catalogue.lineage(new, "second")
    assert found["dataset"] == f"{root}/datasets/digits" and found["registered"] == ["digits v2"]
    assert list(found["quality"]) == [f"{root}/generated/second"] and found["metrics"] == before["metrics"]
    uses = Run.of(second).record()["config"]["uses"]["pretrained"]
    assert (uses["url"], uses["step"]) == (f"{root}/runs/first", 2)

    # The table of before is measured again, as it was, and the FID of before is one to compare with.
    again = evaluate.evaluate(spark, second)
    assert again["run"] == f"{root}/runs/second" and again["fid"] == pytest.approx(
        registry.current(new, "digits")["fid"], abs=1e-5
    )
    assert "not measured" not in lake.read_bytes(report.report(spark, second)["report"]).decode()
    better = replaced(first, promote={"only_if_better": True})
    assert promote.promote_run(None, better)["before"] == 2
    registry.promote(new, "first", "digits")
    assert registry.rollback(new, "digits")["run"] == "second"

    made = generate.generate(spark, replaced(first, generate={"model": "digits", "table": "promoted"}))
    assert (made["run"], made["step"], made["images"]) == (f"{root}/runs/second", 2, 12)

    assert driver.train(spark, replaced(second, train={"steps": 3}))["steps"] == 3
    lake.remove(Run.of(second).path("checkpoints"))
    assert driver.train(spark, replaced(second, train={"steps": 1}))["steps"] == 1  # from the first, once more
    third = dataclasses.replace(second, run="third")
    assert loading.used_runs(third)["pretrained"]["url"] == f"{root}/runs/first"
