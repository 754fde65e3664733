"""The functions of deploy/lambda, run by Amazon's runtime client and emulator, with moto's S3.

Speech and recognition are a stub on loopback that speaks their wire format.
"""

import base64
import contextlib
import http.server
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tomllib
import typing
import urllib.request
import zlib

import numpy as np
import pytest
from conftest import ROOT, make_config
from PIL import Image
from test_lakes import s3  # noqa: F401 (a fixture)

from gan_spark import lake as lakes
from gan_spark.data import images
from gan_spark.lake import tables
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.serving import export, functions
from gan_spark.training import driver

pytestmark = pytest.mark.slow
EMULATOR = "github.com/aws/aws-lambda-runtime-interface-emulator/cmd/aws-lambda-rie"
EMULATORS_VERSION = "v0.0.0-20261030222936-bef5c4ba774d"
MP3 = b"\xff\xfb\x90\x64" + bytes(413)  # a frame of silence: MPEG 1 layer 3, 128 kbit/s, 44.1 kHz


@pytest.fixture(scope="module")
def emulator(tmp_path_factory) -> str:
    """Path of the emulator: that on the PATH, else built from its Go module."""
    pytest.importorskip("awslambdaric", reason="Amazon's runtime client (awslambdaric) is not installed")
    if path := shutil.which("aws-lambda-rie"):
        return path
    if not shutil.which("go"):
        pytest.skip("aws-lambda-rie is not on the PATH, nor is go, which could build it")
    folder = tmp_path_factory.mktemp("emulator")
    environment = {**os.environ, "GOBIN": str(folder), "GOFLAGS": "-mod=mod"}
    build = subprocess.run(
        ["go", "install", f"{EMULATOR}@{EMULATORS_VERSION}"], capture_output=True, text=True, env=environment
    )
    if build.returncode:
        pytest.skip(f"aws-lambda-rie cannot be built: {build.stderr.strip().splitlines()[-1]}")
    return str(folder / "aws-lambda-rie")


class Stub(http.server.BaseHTTPRequestHandler):
    """Polly and Rekognition on the wire: what each was asked is in `asked`."""

    asked: typing.ClassVar[list] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        target = self.headers.get("X-Amz-Target", "")
        assert "AWS4-HMAC-SHA256" in self.headers["Authorization"]
        Stub.asked.append((target or self.path, body))
        if self.path == "/v1/speech":
            self.answer(MP3, "audio/mpeg")
        elif target == "RekognitionService.DetectLabels":
            self.json({"Labels": [{"Name": "Cat", "Confidence": 97.5}, {"Name": "Pet", "Confidence": 91.0}]})
        else:
            eyes = {"Value": True, "Confidence": 99.0}
            emotions = [{"Type": "HAPPY", "Confidence": 88.0}]
            face = {"Confidence": 99.9, "Emotions": emotions, "Eyeglasses": eyes, "BoundingBox": {"Width": 0.5}}
            self.json({"FaceDetails": [face]})

    def json(self, value):
        self.answer(json.dumps(value).encode(), "application/x-amz-json-1.1")

    def answer(self, data: bytes, kind: str):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def services():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def bucket(spark, lake, digits, s3) -> str:  # noqa: F811
    """Name of a bucket that holds an export of a classifier and one of a generator."""
    lakes.filesystem("s3a://functions")[0].mkdir("functions")
    for name, model in (("reads", "lenet"), ("draws", "cgan")):
        driver.train(spark, make_config(lake, model, f"function-{name}", train={"steps": 3}))
        export.export(lake, f"s3a://functions/exports/{name}", f"function-{name}")
    return "functions"


class Function:
    """A running function, to be invoked over HTTP."""

    def __init__(self, process, port: int, log: str):
        self.process, self._log = process, log
        self._url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"

    def invoke(self, event):
        request = urllib.request.Request(self._url, json.dumps(event).encode())
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read())

    def log(self) -> str:
        with open(self._log) as file:
            return file.read()


@contextlib.contextmanager
def running(emulator: str, handler: str, folder, services: str, **environment: str):
    """The function of this handler in the emulator; `folder` is its /tmp."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(2)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        port, api = (probe.getsockname()[1] for probe in probes)
    log = str(folder / f"{handler}-{port}.log")
    addresses = ["--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
    addresses += ["--runtime-api-address", f"127.0.0.1:{api}"]
    with open(log, "w") as out:
        process = subprocess.Popen(
            [emulator, *addresses, sys.executable, "-m", "awslambdaric", handler],
            cwd=ROOT / "deploy" / "lambda",
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("TF_")},
                "PYTHONPATH": str(ROOT / "deploy" / "lambda"),
                "TMPDIR": str(folder),
                "AWS_LAMBDA_FUNCTION_TIMEOUT": "300",
                "AWS_ENDPOINT_URL_POLLY": services,
                "AWS_ENDPOINT_URL_REKOGNITION": services,
                **environment,
            },
        )
    try:
        end = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.05)
        yield Function(process, port, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def gateways(body: str, is_base64: bool = False, **parameters: str) -> dict:
    """The event of an API gateway."""
    request = {"httpMethod": "POST", "queryStringParameters": parameters or None}
    return {**request, "body": body, "isBase64Encoded": is_base64}


def stored(key: str) -> bytes:
    return lakes.read_bytes(f"s3a://functions/{key}")


def bomb() -> bytes:
    """A PNG of a few bytes that declares 6,000 x 6,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 6_000, 6_000, 8, 0, 0, 0, 0)
    chunks = [head, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
    packed = [struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one)) for one in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_an_image_is_identified_and_the_sentence_spoken_and_a_second_container_finds_the_model_in_its_tmp(
    emulator, services, bucket, lake, tmp_path, capsys
):
    place = {"BUCKET": bucket, "MODEL": "exports/reads"}
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    event = {"base64Image": text(images.encode_png(pixels)), "imageName": "digit-1"}
    with running(emulator, "identify.handler", tmp_path, services, **place) as function:
        began = time.monotonic()
        sentence = function.invoke(event)
        cold = time.monotonic() - began
        answers = functions.answers(Run.named(lake, "function-reads"), 3)
        probabilities = answers.classify({"image": pixels[None]}).numpy()[0]
        expected = answers.classes[int(probabilities.argmax())]
        assert sentence == f"The image is identified as {expected} (with score = {probabilities.max():.5f})"
        assert stored("raw-image/digit-1.png") == images.encode_png(pixels) and stored("audio/digit-1.mp3") == MP3
        spoken = ("/v1/speech", {"Text": sentence, "OutputFormat": "mp3", "VoiceId": "Joanna"})
        assert spoken in Stub.asked
        warm = []
        for _ in range(5):
            began = time.monotonic()
            assert function.invoke(gateways(json.dumps(event)))["body"] == json.dumps(sentence)
            warm.append(time.monotonic() - began)
        # Another format is stored as what its name says.
        jpeg = io.BytesIO()
        Image.fromarray(pixels[:, :, 0]).save(jpeg, "JPEG")
        function.invoke({"base64Image": text(jpeg.getvalue()), "imageName": "photo"})
        assert stored("raw-image/photo.png").startswith(b"\x89PNG")
        assert function.log().count("model: loaded") == 1
        check_refusals(function, event)
    assert min(warm) < cold / 3
    with running(emulator, "identify.handler", tmp_path, services, **place) as function:
        began = time.monotonic()
        assert function.invoke(event) == sentence
        kept = time.monotonic() - began
        assert "model: 0 of" in function.log()
    [folder] = tmp_path.glob("model-*")
    damaged = next(folder.rglob("variables.data*"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    with running(emulator, "identify.handler", tmp_path, services, **place) as function:
        assert function.invoke(event) == sentence and "model: 1 of" in function.log()
    with capsys.disabled():
        print(f"\nidentify: cold {cold:.1f} s, with the model in /tmp {kept:.1f} s, warm {1000 * min(warm):.0f} ms")


def check_refusals(function: Function, event: dict) -> None:
    for changes, message in (
        ({"imageName": "../audio/x"}, "imageName: expected"),
        ({"imageName": None}, "imageName: expected"),
        ({"base64Image": "%%%"}, "base64Image: not base64"),
        ({"base64Image": text(b"no image")}, "base64Image: not an image"),
        ({"base64Image": text(bomb())}, "6000 x 6000 pixels; at most 16 megapixels"),
    ):
        answer = function.invoke(gateways(json.dumps({**event, **changes})))
        assert answer["statusCode"] == 400 and message in answer["body"], answer
    for body in ("", "[1]", "{", "[" * 100_000):
        assert function.invoke(gateways(body))["statusCode"] == 400
    assert "Refused" in function.invoke({"imageName": "x"})["errorType"]


def test_an_image_is_drawn_from_a_seed_as_the_batch_job_draws_it(emulator, services, bucket, spark, lake, tmp_path):
    config = make_config(lake, "cgan", "function-draws", generate={"images": 40, "table": "of-function"})
    generate.generate(spark, config)
    batch = {row["seed"]: bytes(row["image"]) for row in tables.read(spark, lakes.table_url(config)).collect()}
    place = {"BUCKET": bucket, "MODEL": "exports/draws"}
    with running(emulator, "draw.handler", tmp_path, services, **place) as function:
        for seed in range(40):
            drawn = base64.b64decode(function.invoke({"seed": seed})["png"])
            np.testing.assert_array_equal(images.decode_png(drawn), images.decode_png(batch[seed]))
        answer = function.invoke(gateways(json.dumps({"seed": 3, "label": "3"})))
        assert answer["headers"]["Content-Type"] == "image/png" and answer["isBase64Encoded"]
        drawn = images.decode_png(base64.b64decode(answer["body"]))
        np.testing.assert_array_equal(drawn, images.decode_png(batch[3]))
        for fields in ({}, {"seed": -1}, {"seed": 2**63}, {"seed": 1.5}, {"seed": 1, "label": "../x"}):
            assert function.invoke(gateways(json.dumps(fields)))["statusCode"] == 400


def test_labels_and_faces_are_those_of_the_managed_service(emulator, services, bucket, tmp_path):
    picture = images.encode_png(np.zeros([8, 8, 3], np.uint8))
    with running(emulator, "recognise.handler", tmp_path, services, BUCKET=bucket) as function:
        ask = lambda **parameters: function.invoke(gateways(text(picture), True, **parameters))
        answer = ask(activity="label-detect", fileName="cat.png")
        assert answer["statusCode"] == 200 and json.loads(answer["body"]) == {"Cat": 97.5, "Pet": 91.0}
        assert stored("raw-image/cat.png") == picture
        image = {"S3Object": {"Bucket": bucket, "Name": "raw-image/cat.png"}}
        asked = ("RekognitionService.DetectLabels", {"Image": image, "MaxLabels": 5, "MinConfidence": 90})
        assert asked in Stub.asked
        faces = json.loads(ask(activity="face-detect", fileName="face")["body"])
        expected = {"Eyeglasses": {"value": True, "confidence": 99.0}}
        assert faces == {"face 1": {"confidence": 99.9, "emotions": {"HAPPY": 88.0}, "attributes": expected}}
        for parameters in (
            {"activity": "delete", "fileName": "x"},
            {"activity": "label-detect", "fileName": "../../x"},
            {"activity": "label-detect"},
            {},
        ):
            assert ask(**parameters)["statusCode"] == 400
        assert "tensorflow" not in function.log().lower()


def test_the_functions_packages_are_the_projects():
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    lines = (ROOT / "deploy/lambda/requirements.txt").read_text().splitlines()
    packages = {line.replace("tensorflow-cpu", "tensorflow") for line in lines if line and not line.startswith("#")}
    assert packages - {"boto3>=1.34"} <= set(project["dependencies"])
