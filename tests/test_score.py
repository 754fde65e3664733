"""Images that arrive are answered once each by a registered model, by the version that is promoted at the time."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, make_config, write_config
from test_stream import arrive, bad

from gan_spark import lake as lakes
from gan_spark.config import UserError, replaced
from gan_spark.data import images, ingest
from gan_spark.lake import tables
from gan_spark.runs import registry
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.serving import functions, scoring
from gan_spark.training import driver

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(spark, lake, digits) -> None:
    """Two runs of a classifier and two of a generator."""
    for seed in (0, 1):
        driver.train(spark, make_config(lake, "lenet", f"reads-{seed}", train={"steps": 3, "seed": seed}))
        driver.train(spark, make_config(lake, "cgan", f"draws-{seed}", train={"steps": 2, "seed": seed}))


def scoring_of(lake, folder, model: str, **sections):
    source = {"source": "folder", "path": str(folder)}
    return make_config(lake, ingest=source, score={"model": model}, stream={"files_a_batch": 20}, **sections)


def rows(spark, answer: dict) -> dict:
    table = tables.load(spark, answer["table"]).collect()
    assert len({row["id"] for row in table}) == len(table)
    return {row["id"]: row for row in table}


def test_classes_are_those_of_the_service_and_a_promotion_is_followed_between_micro_batches(
    spark, lake, runs, tmp_path
):
    registry.promote(lake, "reads-0", "streamed")
    arrive(tmp_path / "in", 0, 60)
    bad(tmp_path / "in", "bad.png")
    (tmp_path / "in" / "loose.png").write_bytes(images.encode_png(np.zeros([9, 9, 3], np.uint8)))
    config = scoring_of(lake, tmp_path / "in", "streamed")

    def promote_after_the_first() -> None:
        while not tables.files(scoring.table_url(config)):
            time.sleep(0.02)
        registry.promote(lake, "reads-1", "streamed")

    promoting = threading.Thread(target=promote_after_the_first)
    promoting.start()
    answer = scoring.score(spark, config)
    promoting.join()
    assert (answer["batches"], answer["rows"], answer["rejected"]) == (4, 61, 1)
    assert set(answer["versions"]) == {"1", "2"} and sum(answer["versions"].values()) == 61
    table = rows(spark, answer)
    assert len(table) == 61 and "loose.png" in table
    for name in tables.files(answer["table"]):
        assert len({row["version"] for row in spark.read.parquet(name).collect()}) == 1, "a batch of two versions"
    rejects = tables.load(spark, answer["rejects"]).collect()
    assert [row["id"] for row in rejects] == ["0/bad.png"] and "not an image" in rejects[0]["reason"]
    for run, version in (("reads-0", 1), ("reads-1", 2)):
        answers = functions.answers(Run.named(lake, run), 3)
        some = [row for row in table.values() if row["version"] == version][:5]
        assert some and {row["run"] for row in some} == {f"lake:/runs/{run}"}
        for row in some:
            pixels = images.decode((tmp_path / "in" / row["id"]).read_bytes(), *answers.shape, answers.fit)
            probabilities = answers.classify({"image": pixels[None]}).numpy()[0]
            assert row["label"] == answers.classes[int(probabilities.argmax())]
            assert row["probability"] == pytest.approx(float(probabilities.max()), abs=1e-6)
    again = scoring.score(spark, config)
    assert again["batches"] == again["rows"] == 0 and rows(spark, again).keys() == table.keys()


def test_a_micro_batch_that_is_done_again_adds_nothing_and_changes_nothing(spark, lake, runs, tmp_path):
    registry.promote(lake, "reads-0", "again")
    arrive(tmp_path / "in", 0, 50)
    bad(tmp_path / "in", "bad.png")
    config = scoring_of(lake, tmp_path / "in", "again")
    first = scoring.score(spark, config)
    before = rows(spark, first)
    commits = scoring.checkpoint(config).removeprefix("file://") + "/commits"
    newest = sorted(name for name in os.listdir(commits) if name.isdigit())[-1]
    # Of the newest micro-batch Spark does not know that it is done; the registry names another version meanwhile.
    for name in (newest, f".{newest}.crc"):
        os.remove(f"{commits}/{name}")
    registry.promote(lake, "reads-1", "again")
    again = scoring.score(spark, config)
    assert again["batches"] == 0 and rows(spark, again) == before and len(before) == 50
    # And where it died before its rows were there, its rejects are not there twice.
    for name in (newest, f".{newest}.crc"):
        os.remove(f"{commits}/{name}")
    lakes.remove(tables.files(first["table"])[-1])
    third = scoring.score(spark, config)
    assert third["batches"] == 1 and set(third["versions"]) == {"2"} and rows(spark, third).keys() == before.keys()
    assert tables.load(spark, first["rejects"]).count() == 1


def test_a_version_that_cannot_be_read_is_told_and_the_one_before_stays(spark, lake, runs, tmp_path, caplog):
    registry.promote(lake, "reads-0", "gone")
    config = scoring_of(lake, tmp_path / "in", "gone")
    follower = scoring._Follower(spark, lake, "gone", scoring.table_url(config), "")
    assert follower.version().number == 1
    table = registry.read(lake, "gone")
    table["versions"].append({**table["versions"][0], "version": 2, "step": 999})
    table["promoted"] = 2
    lakes.write_record(lake, lakes.model_url(lake, "gone"), table)
    assert follower.version().number == 1 and "version 2 cannot be used; version 1 stays" in caplog.text


def test_a_generator_answers_requests_that_arrive_with_the_batch_jobs_images(spark, lake, runs, tmp_path):
    registry.promote(lake, "draws-0", "drawn")
    folder = tmp_path / "in"
    folder.mkdir()
    for place in range(30):
        (folder / f"{place}.json").write_text(json.dumps({"seeds": [place, 100 + place]}))
    (folder / "one.json").write_text(json.dumps({"first_seed": 500, "images": 3, "label": "7"}))
    (folder / "nan.json").write_text('{"seeds": [NaN]}')
    (folder / "many.json").write_text('{"first_seed": 0, "images": 1000000000}')
    (folder / "path.json").write_text('{"seeds": [1], "label": "../../etc"}')
    config = scoring_of(lake, folder, "drawn")
    answer = scoring.score(spark, config)
    assert (answer["rows"], answer["rejected"]) == (63, 3)
    table = tables.load(spark, answer["table"]).collect()
    made = {row["seed"]: bytes(row["image"]) for row in table}
    batch = make_config(lake, "cgan", "draws-0", generate={"images": 30, "table": "beside"})
    generate.generate(spark, batch)
    expected = {row["seed"]: bytes(row["image"]) for row in tables.read(spark, lakes.table_url(batch)).collect()}
    assert all(made[seed] == expected[seed] for seed in range(30))
    assert sorted(row["id"] for row in table if row["seed"] >= 500) == ["one.json"] * 3
    with pytest.raises(UserError, match="images of a stream"):
        registry.promote(lake, "reads-0", "drawn")
        scoring.score(spark, config)


@pytest.mark.long
def test_images_are_translated_of_the_domain_that_is_named(spark, lake, digits, tmp_path):
    parts = make_config(lake, "cyclegan", "translates", ingest={"parts": "classes", "domains": ["1", "7"]})
    parts = dataclasses.replace(parts, dataset="two-domains")
    ingest.ingest(spark, parts)
    driver.train(spark, dataclasses.replace(parts, train=dataclasses.replace(parts.train, steps=2, batch_size=4)))
    registry.promote(lake, "translates", "translator")
    arrive(tmp_path / "in", 0, 12)
    with pytest.raises(UserError, match="generate.part = '': .* one of a, b"):
        scoring.score(spark, scoring_of(lake, tmp_path / "in", "translator"))
    answer = scoring.score(spark, scoring_of(lake, tmp_path / "in", "translator", generate={"part": "a"}))
    row = next(iter(rows(spark, answer).values()))
    assert answer["rows"] == 12 and images.decode_png(row["image"]).shape == (row["height"], row["width"], 1)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"score": {"model": "nobody"}}, "model 'nobody': no version of it is promoted"),
        ({"score": {"model": "../x"}}, "score.model = '../x'"),
        ({"tables": "delta"}, "tables = 'delta': the table of a scored stream is Parquet"),
        ({"ingest": {"source": "digits"}}, "ingest.source = 'digits': expected 'folder'"),
        ({"ingest": {"source": "kafka"}}, "ingest.source = 'kafka': a scored stream is of a folder's files"),
    ],
)
def test_what_cannot_be_scored_is_told(spark, lake, runs, tmp_path, changes, message):
    registry.promote(lake, "reads-0", "told")
    with pytest.raises(UserError, match=message):
        top = {key: changes.pop(key) for key in [*changes] if key == "tables"}
        scoring.score(spark, dataclasses.replace(replaced(scoring_of(lake, tmp_path, "told"), **changes), **top))


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.fault(
    "orchestration", "a stream that scores is killed (SIGKILL) and started again", "every image is answered once"
)
def test_a_job_that_is_killed_goes_on_and_every_image_is_answered_once(spark, lake, runs, tmp_path):
    registry.promote(lake, "reads-0", "killed")
    arrive(tmp_path / "in", 0, 300)
    config = scoring_of(lake, tmp_path / "in", "killed")
    command = [sys.executable, str(ROOT / "jobs" / "score.py"), "--config", write_config(tmp_path, config)]
    for _ in range(2):
        job = subprocess.Popen([*command, "--set", "stream.trigger=1 seconds"], start_new_session=True)
        before, end = len(tables.files(scoring.table_url(config))), time.time() + 400
        try:
            while len(tables.files(scoring.table_url(config))) < before + 3:
                assert time.time() < end and job.poll() is None
                time.sleep(0.05)
        finally:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
        registry.promote(lake, "reads-1", "killed")
    last = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert last.returncode == 0, last.stderr[-3000:]
    table = rows(spark, json.loads(last.stdout.splitlines()[-1]))
    assert len(table) == 300 and {row["version"] for row in table.values()} == {1, 2}
