"""The service: what it answers is the batch job's, whatever else is asked for, and while versions change."""

import base64
import concurrent.futures
import http.client
import json
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_config
from service import ask, running

from gan_spark import __main__ as command_line
from gan_spark import lake as lakes
from gan_spark.data import images, schema
from gan_spark.runs import registry
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.training import driver

pytestmark = pytest.mark.slow

SEEDS = 200


def trained(spark, lake, model: str, run: str, seed: int = 0):
    config = make_config(
        lake, model, run, train={"steps": 2, "seed": seed}, generate={"images": SEEDS, "partitions": 2}
    )
    driver.train(spark, config)
    return config


@pytest.fixture(scope="module")
def drawing(spark, lake, digits):
    """Two runs of a CGAN, with the PNGs of the batch job by seed; the first is promoted."""
    pngs = []
    for seed in (0, 1):
        config = trained(spark, lake, "cgan", f"served-{seed}", seed)
        table = spark.read.parquet(generate.generate(spark, config)["table"])
        pngs.append({row["seed"]: bytes(row["image"]) for row in table.collect()})
    assert pngs[0][0] != pngs[1][0]
    registry.promote(lake, "served-0", "drawing")
    return pngs


@pytest.fixture(scope="module")
def service(lake, drawing, tmp_path_factory):
    with running(tmp_path_factory.mktemp("service"), "--lake", lake, "--model", "drawing", "--threads", "2") as service:
        yield service


@pytest.fixture(scope="module")
def classifying(spark, lake, digits, tmp_path_factory):
    trained(spark, lake, "lenet", "classifies")
    registry.promote(lake, "classifies", "classifying")
    folder = tmp_path_factory.mktemp("service")
    with running(folder, "--lake", lake, "--model", "classifying", "--threads", "2") as service:
        yield service


def test_a_seed_is_the_batch_jobs_png(service, drawing):
    answer = service.json("/generate", {"seeds": [7, 150, 3]})
    assert [one["seed"] for one in answer["images"]] == [7, 150, 3] and answer["version"] == 1
    assert [base64.b64decode(one["png"]) for one in answer["images"]] == [drawing[0][seed] for seed in (7, 150, 3)]
    status, headers, png = service.ask("POST", "/generate", {"first_seed": 9, "images": 1, "format": "png"})
    assert (status, headers["content-type"], headers["x-model-version"]) == (200, "image/png", "1")
    assert png == drawing[0][9]
    _, _, png = service.ask("POST", "/generate", {"seeds": [1, 2]}, {"Accept": "image/png"})
    pair = np.stack([images.decode_png(drawing[0][seed]) for seed in (1, 2)])
    assert np.array_equal(images.decode_png(png), images.grid(pair))


def test_200_seeds_under_load_are_the_batch_jobs_whatever_they_are_computed_with(service, drawing):
    """32 clients ask for each seed alone, and for some of them together, in an order of their own."""
    lists = [[seed] for seed in range(SEEDS)] + [[seed, seed // 2, 199 - seed] for seed in range(0, SEEDS, 5)]
    np.random.default_rng(0).shuffle(lists)

    def one(seeds: list[int]) -> bool:
        answer = service.json("/generate", {"seeds": seeds})
        return [base64.b64decode(image["png"]) for image in answer["images"]] == [drawing[0][seed] for seed in seeds]

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        assert all(pool.map(one, lists))
    figures = service.ask("GET", "/metrics")[2].decode()
    batches = float(re.search(r'gan_spark_batch_rows_count\{call="generate"\} (\S+)', figures)[1])
    rows = float(re.search(r'gan_spark_batch_rows_sum\{call="generate"\} (\S+)', figures)[1])
    assert rows > 1.5 * batches, "nothing was computed together"


def test_a_label_is_the_class_that_is_drawn(service, drawing):
    same = service.json("/generate", {"seeds": [13, 14], "label": ["3", "4"]})["images"]
    assert [base64.b64decode(one["png"]) for one in same] == [drawing[0][13], drawing[0][14]]
    other = service.json("/generate", {"seeds": [13], "label": "4"})["images"]
    assert base64.b64decode(other[0]["png"]) != drawing[0][13]


def test_classes_are_the_three_likeliest(classifying, spark, lake, digits):
    manifest = schema.read_manifest(digits)
    rows = spark.read.parquet(lakes.join(digits, "split=test")).limit(12).collect()
    pixels = schema.unpack([row["image"] for row in rows], manifest.shape, manifest.encoding)
    pngs = [base64.b64encode(images.encode_png(image)).decode() for image in pixels]
    alone = [classifying.json("/", {"data": png})["predictions"] for png in pngs]
    assert all(len(answer) == 3 and set(answer[0]) == {"label", "description", "probability"} for answer in alone)
    assert all(answer[0]["probability"] >= answer[1]["probability"] > 0 for answer in alone)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda png: classifying.json("/", {"data": png})["predictions"], pngs * 4))
    assert together == alone * 4
    infer = {"inputs": [{"name": "image", "shape": [12], "datatype": "BYTES", "data": pngs}]}
    outputs = {one["name"]: one for one in classifying.json("/v2/models/classifying/infer", infer)["outputs"]}
    assert outputs["label"]["data"] == [answer[0]["label"] for answer in alone]
    probability = np.reshape(outputs["probability"]["data"], outputs["probability"]["shape"])
    assert probability.shape == (12, 10)
    assert [round(100 * float(one), 2) for one in probability.max(1)] == [one[0]["probability"] for one in alone]


def test_the_open_inference_protocol(service, drawing):
    assert service.json("/v2/health/live") == {"live": True} and service.json("/v2/health/ready") == {"ready": True}
    assert service.json("/v2")["name"] == "gan_spark"
    described = service.json("/v2/models/drawing")
    assert described["versions"] == ["1"] and described["inputs"][0] == {
        "name": "seed",
        "datatype": "INT64",
        "shape": [-1],
    }
    assert service.json("/v2/models/drawing/versions/1/ready")["ready"]
    request = {
        "id": "mine",
        "inputs": [
            {"name": "seed", "shape": [2, 1], "datatype": "INT64", "data": [[13], [14]]},
            {"name": "label", "shape": [2], "datatype": "BYTES", "data": ["3", "4"]},
        ],
    }
    answer = service.json("/v2/models/drawing/versions/1/infer", request)
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("mine", "drawing", "1")
    png, image = answer["outputs"]
    assert [base64.b64decode(text) for text in png["data"]] == [drawing[0][13], drawing[0][14]]
    pixels = np.reshape(image["data"], image["shape"])
    assert np.array_equal(pixels[1], images.decode_png(drawing[0][14]))
    request["outputs"] = [{"name": "png"}]
    assert [one["name"] for one in service.json("/v2/models/drawing/infer", request)["outputs"]] == ["png"]
    for path in ("/v2/models/another", "/v2/models/drawing/versions/7"):
        assert service.ask("GET", path)[0] == 404


def test_the_pages_and_figures(service):
    schema = service.json("/openapi.json")
    assert {"/", "/generate", "/v2/models/{name}/infer"} <= schema["paths"].keys()
    assert "seeds" in json.dumps(schema["paths"]["/generate"])
    assert b"swagger" in service.ask("GET", "/docs")[2].lower()
    page = service.ask("GET", "/ui")[2].decode()
    assert "<title>gan_spark</title>" in page and not re.search(r"https?://", page)
    assert service.json("/model")["classes"] == [str(digit) for digit in range(10)]
    figures = service.ask("GET", "/metrics")[2].decode()
    assert 'gan_spark_version{run="served-0",step="2",version="1"} 1.0' in figures
    assert re.search(r'gan_spark_requests_total\{path="/ui",status="200"\} [1-9]', figures)


def test_every_request_has_a_line_in_the_log_with_its_id(service):
    _, headers, _ = service.ask("POST", "/generate", {"seeds": [1]}, {"X-Request-Id": "from-a-test"})
    assert headers["x-request-id"] == "from-a-test"
    _, headers, _ = service.ask("GET", "/model", None, {"X-Request-Id": 'bad"id\\n'})
    assert re.fullmatch("[0-9a-f]{32}", headers["x-request-id"])

    def lines() -> dict[str, dict]:
        return {line.get("request_id"): line for line in service.log()}

    service.until(lambda: headers["x-request-id"] in lines())  # It is written once the answer is sent.
    line = lines()["from-a-test"]
    assert (line["path"], line["status"], line["version"]) == ("/generate", 200, 1) and line["milliseconds"] > 0


def test_a_promotion_and_a_rollback_change_the_version_without_a_failed_or_mixed_answer(drawing, lake, tmp_path):
    registry.promote(lake, "served-0", "changing")
    with running(tmp_path, "--lake", lake, "--model", "changing") as service:
        stop, answers = threading.Event(), []

        def client(place: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
            while not stop.is_set():
                seeds = [place, place + 50, place + 100]
                status, _, data = ask(connection, "POST", "/generate", {"seeds": seeds})
                answers.append((status, seeds, json.loads(data)))
            connection.close()

        threads = [threading.Thread(target=client, args=(place,)) for place in range(8)]
        for thread in threads:
            thread.start()

        def version() -> int:
            return service.json("/model")["version"]

        registry.promote(lake, "served-1", "changing")
        service.until(lambda: version() == 2)
        registry.rollback(lake, "changing")
        service.until(lambda: version() == 1)
        broken = Run.named(lake, "served-broken")
        shutil.copytree(lakes.filesystem(Run.named(lake, "served-1").url)[1], lakes.filesystem(broken.url)[1])
        registry.promote(lake, "served-broken", "changing")
        for path in lakes.filesystem(broken.path("checkpoints"))[0].find(lakes.filesystem(broken.url)[1]):
            if "data-" in path:
                Path(path).write_bytes(b"damaged")
        service.until(lambda: b"gan_spark_refused_versions 1.0" in service.ask("GET", "/metrics")[2])
        assert version() == 1
        registry.rollback(lake, "changing")
        time.sleep(1)
        stop.set()
        for thread in threads:
            thread.join()
        assert {status for status, _, _ in answers} == {200}
        for _, seeds, answer in answers:
            expected = drawing[answer["version"] - 1]
            assert [base64.b64decode(one["png"]) for one in answer["images"]] == [expected[seed] for seed in seeds]
        assert {answer["version"] for _, _, answer in answers} == {1, 2}
        assert any("cannot be loaded" in line["message"] and "damaged" in line["message"] for line in service.log())


def test_sigterm_finishes_what_was_begun_and_what_is_too_much_is_refused(drawing, lake, tmp_path):
    limits = ("--max-waiting", "48", "--threads", "1", "--batch-milliseconds", "1000")
    with (
        running(tmp_path, "--lake", lake, "--model", "drawing", *limits) as service,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        asked = [
            pool.submit(service.ask, "POST", "/generate", {"first_seed": 8 * one, "images": 16}) for one in range(8)
        ]
        answers = [one.result() for one in asked]
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 503}
        refused = next(answer for answer in answers if answer[0] == 503)
        assert 1 <= int(refused[1]["retry-after"]) <= 60 and b"wait already" in refused[2]
        asked = [pool.submit(service.ask, "POST", "/generate", {"seeds": [one]}) for one in range(8)]
        time.sleep(0.5)  # They wait to be computed.
        assert service.end() == -signal.SIGTERM
        for seed, one in enumerate(asked):
            status, _, data = one.result()
            assert status == 200 and base64.b64decode(json.loads(data)["images"][0]["png"]) == drawing[0][seed]


def test_a_token_is_asked_of_all_but_probes(drawing, lake, tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    with running(tmp_path, "--lake", lake, "--model", "drawing", "--token-file", str(token)) as service:
        bearer = {"Authorization": "Bearer 0123456789abcdef"}
        for headers in ({}, {"Authorization": "Bearer 0123456789abcdeg"}, {"Authorization": "0123456789abcdef"}):
            status, answer, _ = service.ask("POST", "/generate", {"seeds": [1]}, headers)
            assert status == 401 and answer["www-authenticate"] == "Bearer"
            assert service.ask("GET", "/metrics", None, headers)[0] == 401
        assert service.ask("GET", "/v2/health/live")[0] == 200
        assert service.ask("POST", "/generate", {"seeds": [1]}, bearer)[0] == 200
        assert "0123456789abcdef" not in service.text()


def test_a_network_of_imagenet_by_its_name_and_weights(tmp_path):
    import tensorflow as tf

    tf.keras.utils.set_random_seed(8)
    network = tf.keras.applications.MobileNetV2(weights=None)
    for layer in network.layers:  # so that images do not fade out on their way through random weights
        if isinstance(layer, (tf.keras.layers.Conv2D, tf.keras.layers.DepthwiseConv2D)):
            layer.set_weights([3.0 * weight for weight in layer.get_weights()])
    network.save_weights(str(tmp_path / "weights.h5"))
    index = {str(place): [f"n{place:08d}", f"thing_{place}"] for place in range(1000)}
    (tmp_path / "classes.json").write_text(json.dumps(index))
    picture = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    arguments = ("--weights", str(tmp_path / "weights.h5"), "--class-index", str(tmp_path / "classes.json"))
    with running(tmp_path, "--network", "MobileNetV2", *arguments) as service:
        png = base64.b64encode(images.encode_png(picture)).decode()
        answer = service.json("/", {"data": png})
    inputs = tf.keras.applications.mobilenet_v2.preprocess_input(
        images.resize(picture, 224, 224, "stretch")[None].astype(np.float32)
    )
    probabilities = network(inputs, training=False).numpy()[0]
    likeliest = np.argsort(-probabilities)[:3]
    assert [one["label"] for one in answer["predictions"]] == [f"n{place:08d}" for place in likeliest]
    assert answer["predictions"][0]["description"] == f"thing_{likeliest[0]}"
    assert answer["predictions"][0]["probability"] == pytest.approx(100 * probabilities[likeliest[0]], abs=0.02)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "nobody"], "no version of it is promoted"),
        (["--model", "nobody", "--max-images", "0"], "--max-images 0: expected 1 to 4096"),
        (["--model", "nobody", "--port", "70000"], "--port 70000: expected 0 to 65535"),
        (["--model", "nobody", "--token-file", "/none"], "no such file"),
        (["--model", "../outside"], "expected letters, digits"),
        (["--network", "InceptionV9", "--class-index", "CLASSES"], "no network 'InceptionV9'"),
    ],
)
def test_what_cannot_be_served_is_told_at_the_start(capsys, monkeypatch, tmp_path, arguments, message):
    from gan_spark.serving import json_log, server

    monkeypatch.setattr(json_log, "configure", lambda: None)
    monkeypatch.setattr(server, "set_threads", lambda _: None)
    (tmp_path / "classes.json").write_text('{"0": ["n0", "thing"]}')
    arguments = [str(tmp_path / "classes.json") if one == "CLASSES" else one for one in arguments]
    assert command_line.main(["serve", "--lake", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
