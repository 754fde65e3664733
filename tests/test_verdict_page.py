"""The verdict as a job, and its page: evidence and drift over time."""

import datetime
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, make_config, write_config

from gan_spark import __main__ as command_line
from gan_spark import lake as lakes
from gan_spark.config import UserError
from gan_spark.data import schema
from gan_spark.runs import challenge, registry
from gan_spark.serving import records, statistics, verdict, verdict_page
from gan_spark.training import driver

pytestmark = pytest.mark.slow
PEOPLE, HOURS = 300, 24


@pytest.fixture(scope="module")
def challenged(spark, lake, digits) -> None:
    """Two runs of a classifier, of which the second challenges the first in each of these models."""
    for seed in (0, 1):
        driver.train(spark, make_config(lake, "lenet", f"judged-{seed}", train={"steps": 3, "seed": seed}))
    pixels, labels = training_images(spark, digits)
    for name, rates in (("page-better", (0.7, 0.9)), ("page-alike", (0.5, 0.5))):
        registry.promote(lake, "judged-0", name)
        challenge.challenge(lake, "judged-1", name, share=0.5)
        write(lake, name, rates, pixels, labels)


def training_images(spark, digits):
    manifest = schema.read_manifest(digits)
    rows = spark.read.parquet(lakes.join(digits, "split=train")).collect()
    pixels = schema.unpack([row["image"] for row in rows], manifest.shape, manifest.encoding)
    return pixels, [manifest.classes[row["label"]] for row in rows]


def write(lake, name: str, rates: tuple[float, float], pixels, labels) -> None:
    """Records of a day: in its last third the images that come in are darker, and mostly of one class."""
    features, random = statistics.features(pixels), np.random.default_rng(0)
    began = datetime.datetime.fromisoformat(registry.read(lake, name)["challenger"]["at"])
    ones, rows = [place for place, label in enumerate(labels) if label == "1"], []
    for person in range(PEOPLE):
        at = began + datetime.timedelta(hours=HOURS * person / PEOPLE)
        has_drifted = person > 2 * PEOPLE / 3
        for request in range(4):
            place = int(random.choice(ones)) if has_drifted else int(random.integers(len(labels)))
            version, request_id = person % 2, f"{person}-{request}"
            common = {"request_id": request_id, "at": at + datetime.timedelta(seconds=request)}
            seen = (features[place] * (0.3 if has_drifted else 1)).tolist()
            is_good = random.random() < rates[version]
            answer = {"label": [labels[place]], "features": [seen], "milliseconds": 5.0 + version}
            rows.append({**common, "kind": "request", "user": str(person), "version": version + 1, **answer})
            rows.append({**common, "kind": "feedback", "correct_label": labels[place] if is_good else "none"})
    place = records.url(lake, name)
    lakes.claim(place, records.KIND, records.SCHEMA.names)
    lakes.write_bytes(lakes.join(place, "part-1-00000000.parquet"), records._parquet(rows))


def test_the_course_tells_when_the_evidence_was_enough_and_what_drifted(challenged, lake):
    course = list(verdict_page._course(verdict.recorded(lake, "page-better")))
    assert len(course) == verdict_page._PARTS
    verdicts = [point["judged"]["verdict"] for point in course]
    assert verdicts[0] == "not yet" and verdicts[-1] == "better"
    widths = [high - low for low, high in (point["judged"]["interval"] for point in course)]
    assert widths[-1] < widths[0] / 2
    assert sum(sum(point["requests"].values()) for point in course) == 4 * PEOPLE
    assert course[-1]["judged"]["versions"] == verdict.verdict(lake, "page-better")["versions"]
    drifts = [point["drift"] for point in course]
    assert max(one["class_stability"] for one in drifts[:7]) < 0.25 < min(one["class_stability"] for one in drifts[9:])
    assert all(one["frechet"] < 3 * one["frechet_floor"] for one in drifts[:7])
    assert all(one["frechet"] > 3 * one["frechet_floor"] for one in drifts[9:])


@pytest.mark.long
def test_the_job_draws_its_page_and_acts_only_where_it_is_told_to(challenged, lake, tmp_path):
    config = make_config(lake, verdict={"model": "page-better"})
    command = [sys.executable, str(ROOT / "jobs" / "verdict.py"), "--config", write_config(tmp_path, config)]

    def run(*more: str) -> dict:
        job = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)
        assert job.returncode == 0, job.stderr[-3000:]
        return json.loads(job.stdout.splitlines()[-1])

    answer = run()
    assert (answer["verdict"], answer["acted"]) == ("better", "nothing")
    page = lakes.read_bytes(answer["page"]).decode()
    for text in ("better", "version 1, run judged-0; challenged by version 2, run judged-1", "Difference, over time"):
        assert text in page
    assert page.count("data:image/png") == 4 and "Promotions" in page
    assert run("--set", "verdict.act=true")["acted"] == "promoted"
    assert registry.read(lake, "page-better")["promoted"] == 2
    assert run()["verdict"] == "no challenger"
    assert "no challenger" in lakes.read_bytes(answer["page"]).decode()


def test_the_command_draws_the_page_where_it_is_asked_to(challenged, lake, capsys):
    arguments = ["verdict", "--lake", lake, "--model", "page-alike", "--json"]
    assert command_line.main(arguments) == 0
    assert "page" not in json.loads(capsys.readouterr().out)
    assert not lakes.exists(verdict_page.page_url(lake, "page-alike"))
    assert command_line.main([*arguments, "--page", "--act"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["verdict"], answer["acted"]) == ("not yet", "nothing") and lakes.exists(answer["page"])


def test_a_model_of_which_nothing_is_recorded_has_a_page_too(challenged, lake):
    registry.promote(lake, "judged-0", "page-empty")
    answer = verdict_page.judged(lake, "page-empty", act=True)
    assert answer["verdict"] == "no challenger" and b"Promotions" in lakes.read_bytes(answer["page"])


def test_a_strangers_page_is_not_replaced(challenged, lake):
    registry.promote(lake, "judged-0", "page-mine")
    lakes.write_bytes(verdict_page.page_url(lake, "page-mine"), b"<html>years of work</html>")
    with pytest.raises(UserError, match="is there, and is not replaced"):
        verdict_page.judged(lake, "page-mine", act=False)
