"""Challengers: traffic is divided, recorded and judged."""

import base64
import concurrent.futures
import datetime
import json
import re
import time
import uuid

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import make_config
from service import running

from gan_spark import __main__ as command_line
from gan_spark import lake as lakes
from gan_spark.config import UserError
from gan_spark.data import images, schema
from gan_spark.runs import challenge, registry
from gan_spark.serving import records, statistics, verdict, versions
from gan_spark.training import driver


@pytest.fixture(scope="module")
def classifiers(spark, lake, digits) -> list[str]:
    """Two runs of a classifier."""
    for seed in (0, 1):
        driver.train(spark, make_config(lake, "lenet", f"rival-{seed}", train={"steps": 3, "seed": seed}))
    return ["rival-0", "rival-1"]


@pytest.fixture(scope="module")
def pngs(spark, digits) -> list[str]:
    manifest = schema.read_manifest(digits)
    rows = spark.read.parquet(lakes.join(digits, "split=test")).limit(60).collect()
    pixels = schema.unpack([row["image"] for row in rows], manifest.shape, manifest.encoding)
    return [base64.b64encode(images.encode_png(image)).decode() for image in pixels]


@pytest.mark.slow
def test_traffic_is_divided_and_every_request_recorded_once_though_the_service_ends(
    classifiers, lake, pngs, tmp_path, spark
):
    registry.promote(lake, "rival-0", "divided")
    challenge.challenge(lake, "rival-1", "divided", share=0.4)
    with running(tmp_path, "--lake", lake, "--model", "divided", "--log-images") as service:
        service.until(lambda: service.json("/model")["challenger"] == {"version": 2, "share": 0.4})
        keys = [f"person-{number}" for number in range(60)]

        def one(place: int) -> tuple[str, int]:
            headers = {"X-Sticky-Key": keys[place % 60], "X-Request-Id": f"r-{place}"}
            answer = service.json("/", {"data": pngs[place % 60]}, headers)
            status, _, _ = service.ask("POST", "/feedback", {"id": f"r-{place}", "label": "3"})
            assert status == 202
            return keys[place % 60], answer["version"]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(one, range(240)))
        by_key = {key: {version for other, version in answers if other == key} for key in keys}
        assert all(len(numbers) == 1 for numbers in by_key.values()), "a key went to two versions"
        share = sum(numbers == {2} for numbers in by_key.values()) / 60
        assert share == sum(versions.place(f"divided/2/{key}") < 0.4 for key in keys) / 60
        assert 0.2 < share < 0.6
        figures = service.ask("GET", "/metrics")[2].decode()
        assert re.search(r'gan_spark_version\{run="rival-1",step="3",version="2"\} 0.4', figures)
        for body in ({"id": "r-1"}, {"id": "../x", "kept": True}, {"id": "r-1", "kept": True, "label": "3"}, {"id": 1}):
            assert service.ask("POST", "/feedback", body)[0] == 400
        service.end()
        assert not [line for line in service.log() if line["level"] == "error"]
    place = records.url(lake, "divided")
    table = records.read(place)
    assert sorted(spark.read.parquet(place).columns) == sorted(records.SCHEMA.names)
    requests = [row for row in table.to_pylist() if row["kind"] == "request"]
    feedback = [row for row in table.to_pylist() if row["kind"] == "feedback"]
    assert sorted(row["request_id"] for row in requests) == sorted(f"r-{place}" for place in range(240))
    assert sorted(row["request_id"] for row in feedback) == sorted(f"r-{place}" for place in range(240))
    row = next(row for row in requests if row["request_id"] == "r-7")
    assert (row["version"], row["call"], row["images"]) == (by_key["person-7"].pop(), "classify", 1)
    assert row["sent"] == [base64.b64decode(pngs[7])] and row["milliseconds"] > 0
    pixels = images.decode_png(base64.b64decode(pngs[7]))[None]
    np.testing.assert_allclose(row["features"][0], statistics.features(pixels)[0], atol=1e-6)
    assert "person-7" not in str(row)
    found = verdict.verdict(lake, "divided")
    assert [one["requests"] for one in found["versions"].values()] == [
        240 - 4 * round(60 * share),
        4 * round(60 * share),
    ]
    assert sum(one["outcomes"] for one in found["versions"].values()) == 240
    assert found["verdict"] == "not yet" and "at least 50" in found["why"]
    drift = found["drift"]
    assert drift["frechet_floor"] > 0 and drift["frechet"] < 30 * drift["frechet_floor"]


@pytest.mark.slow
def test_a_challenger_that_is_promoted_goes_on_as_it_is_and_one_that_is_ended_is_let_go(classifiers, lake, tmp_path):
    registry.promote(lake, "rival-0", "changing-hands")
    with running(tmp_path, "--lake", lake, "--model", "changing-hands", "--log-share", "0") as service:

        def is_served(current: int, challenger: int | None) -> bool:
            model = service.json("/model")
            return (model["version"], (model["challenger"] or {}).get("version")) == (current, challenger)

        challenge.challenge(lake, "rival-1", "changing-hands", share=0.5)
        service.until(lambda: is_served(1, 2))
        challenge.win(lake, "changing-hands", 2)
        service.until(lambda: is_served(2, None))
        assert sum("is loaded" in line["message"] for line in service.log()) == 2, "it was loaded again"
        challenge.challenge(lake, "rival-0", "changing-hands", share=0.5)
        service.until(lambda: is_served(2, 1))
        challenge.end(lake, "changing-hands")
        service.until(lambda: is_served(2, None))
        assert service.ask("POST", "/feedback", {"id": "r", "kept": True})[0] == 404
    assert not lakes.exists(records.url(lake, "changing-hands"))


def write(lake: str, name: str, people: int, requests: int, rates: tuple[float, float]) -> None:
    """Records as a service leaves them: of each of two versions as many people, who like that share of answers."""
    rows = []
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
    for version, rate in enumerate(rates, 1):
        for person in range(people):
            for request in range(requests):
                request_id = uuid.uuid4().hex
                row = {"request_id": request_id, "at": at}
                person_key = f"{version}-{person}"
                rows.append({**row, "kind": "request", "user": person_key, "version": version, "milliseconds": 5.0})
                rows.append(
                    {**row, "kind": "feedback", "kept": (person * requests + request) * 0.6180339887 % 1 < rate}
                )
    place = records.url(lake, name)
    lakes.claim(place, records.KIND, records.SCHEMA.names)
    lakes.write_bytes(lakes.join(place, "part-1-00000000.parquet"), records._parquet(rows))


@pytest.mark.slow
@pytest.mark.parametrize(
    "rates, expected, acted",
    [
        ((0.80, 0.87), "better", "promoted"),
        ((0.87, 0.80), "worse", "ended"),
        ((0.50, 0.51), "not yet", "nothing"),
        ((0.99, 0.99), "no difference that matters", "ended"),
    ],
)
def test_a_verdict_acts_where_it_is_told_to_and_the_evidence_allows(capsys, classifiers, lake, rates, expected, acted):
    name = f"judged-{rates[0]}-{rates[1]}"
    registry.promote(lake, "rival-0", name)
    challenge.challenge(lake, "rival-1", name)
    write(lake, name, 400, 3, rates)
    found = verdict.verdict(lake, name)
    assert (found["verdict"], found["acted"]) == (expected, "nothing")
    assert "challenger" in registry.read(lake, name)
    one, two = found["versions"].values()
    assert (one["requests"], one["outcomes"], one["people"]) == (1200, 1200, 400) and one["milliseconds_p99"] == 5
    assert two["interval"][0] < two["rate"] < two["interval"][1]
    low, high = found["interval"]
    assert low < found["difference"] < high
    assert command_line.main(["verdict", "--lake", lake, "--model", name, "--act", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["acted"] == acted
    table = registry.read(lake, name)
    assert ("challenger" in table) == (acted == "nothing")
    assert table["promoted"] == (2 if acted == "promoted" else 1)


@pytest.mark.slow
def test_the_registry_of_challengers(capsys, classifiers, lake):
    with pytest.raises(UserError, match="no version is promoted"):
        challenge.challenge(lake, "rival-0", "rivals")
    registry.promote(lake, "rival-0", "rivals")
    with pytest.raises(UserError, match="is the promoted version itself"):
        challenge.challenge(lake, "rival-0", "rivals")
    for share in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match="more than 0 and less than 1"):
            challenge.challenge(lake, "rival-1", "rivals", share)
    arguments = ["--lake", lake, "--model", "rivals", "--json"]
    assert command_line.main(["challenge", "rival-1", "--share", "0.25", *arguments]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["version"], answer["share"], answer["against"]) == (2, 0.25, 1)
    champion, challenger = challenge.served(lake, "rivals")
    assert champion["run"] == "rival-0" and challenger["run"] == "rival-1" and challenger["share"] == 0.25
    assert command_line.main(["challenge", "--end", *arguments]) == 0
    assert command_line.main(["challenge", "--end", *arguments]) == 2
    assert "has no challenger" in capsys.readouterr().err
    challenge.challenge(lake, "rival-1", "rivals")
    registry.promote(lake, "rival-1", "rivals")
    assert challenge.served(lake, "rivals")[1] is None
    challenge.challenge(lake, "rival-0", "rivals")
    registry.rollback(lake, "rivals")
    assert challenge.served(lake, "rivals")[1] is None
    with pytest.raises(UserError, match="is not the challenger any more"):
        challenge.win(lake, "rivals", 2)
    assert verdict.verdict(lake, "rivals")["verdict"] == "no challenger"


def test_records_are_held_while_the_store_does_not_answer_and_then_written_once(tmp_path, monkeypatch):
    place, plain, failures = f"file://{tmp_path}/served/m", lakes.write_bytes, [3]

    def failing(url, data):
        if failures[0]:
            failures[0] -= 1
            raise OSError("no answer")
        plain(url, data)

    monkeypatch.setattr(lakes, "write_bytes", failing)
    monkeypatch.setattr(records, "EVERY", 0.01)
    sink = records.Records(place)
    for number in range(30):
        sink.add(kind="request", request_id=f"r{number}", version=1)
    sink.close()
    assert sorted(records.read(place)["request_id"].to_pylist()) == sorted(f"r{number}" for number in range(30))
    assert failures == [0] and sink.lost == 0
    names = [path.name for path in (tmp_path / "served" / "m").iterdir()]
    assert all(re.fullmatch(r"part-\d+-[0-9a-f]{8}\.parquet|_made_by_gan_spark\.json", name) for name in names)


def test_rows_that_cannot_be_written_do_not_keep_others_from_it(tmp_path, monkeypatch):
    place = f"file://{tmp_path}/served/m"
    monkeypatch.setattr(records, "EVERY", 0.05)
    sink = records.Records(place)
    sink.add(kind="request", request_id="bad", version="no number")
    while not sink.lost:
        time.sleep(0.01)
    sink.add(kind="request", request_id="good", version=1)
    sink.close()
    assert records.read(place)["request_id"].to_pylist() == ["good"] and sink.lost == 1


def test_a_file_that_no_service_wrote_is_told(tmp_path):
    place = f"file://{tmp_path}/served/m"
    lakes.write_bytes(lakes.join(place, "part-1.parquet"), b"no Parquet")
    with pytest.raises(UserError, match="part-1.parquet is no file that a service wrote"):
        records.read(place)
    pq.write_table(records.SCHEMA.empty_table().select(["user"]), tmp_path / "served" / "m" / "part-1.parquet")
    with pytest.raises(UserError, match="part-1.parquet is no file that a service wrote"):
        records.read(place)


def test_a_strangers_folder_is_not_recorded_into(tmp_path):
    folder = tmp_path / "served" / "mine"
    folder.mkdir(parents=True)
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="found chapter.txt"):
        records.check(records.url(str(tmp_path), "mine"))
    (folder / "chapter.txt").unlink()
    pq.write_table(records.SCHEMA.empty_table().select(["user"]), folder / "part-1.parquet")
    with pytest.raises(UserError, match="expected nothing"):
        records.check(records.url(str(tmp_path), "mine"))
