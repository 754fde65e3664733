"""Hostile requests: each is refused with its own status, in its time, while the service answers others."""

import base64
import contextlib
import io
import json
import socket
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from conftest import make_config
from PIL import Image
from service import Service, running

from gan_spark.runs import registry
from gan_spark.training import driver

pytestmark = pytest.mark.slow

RECEIVE = 3  # seconds that a request may take to come


@pytest.fixture(scope="module")
def services(spark, lake, digits, tmp_path_factory):
    """A service that draws and one that classifies, with small limits."""
    for model in ("cgan", "lenet"):
        driver.train(spark, make_config(lake, model, f"besieged-{model}", train={"steps": 1}))
        registry.promote(lake, f"besieged-{model}", f"besieged-{model}")
    limits = ("--max-mb", "4", "--receive-seconds", str(RECEIVE), "--max-megapixels", "4", "--answer-seconds", "20")
    folder = tmp_path_factory.mktemp("besieged")
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(running(folder, "--lake", lake, "--model", f"besieged-{model}", *limits))
            for name, model in (("draws", "cgan"), ("classifies", "lenet"))
        }


@pytest.fixture
def others(services):
    """Meanwhile others ask both services; all are answered, none late."""
    stop, problems, counts = threading.Event(), [], []

    def ask_again_and_again(service: Service, path: str, body: dict) -> None:
        while not stop.is_set():
            began = time.monotonic()
            try:
                status, _, data = service.ask("POST", path, body, timeout=20)
            except OSError as error:
                status, data = 0, repr(error)
            if status != 200 or time.monotonic() - began > 10:
                problems.append((status, data, time.monotonic() - began))
            counts.append(1)

    asked = (("draws", "/generate", {"seeds": [1]}), ("classifies", "/", {"data": text(png(16, 16))}))
    threads = [
        threading.Thread(target=ask_again_and_again, args=(services[name], path, body)) for name, path, body in asked
    ]
    for thread in threads:
        thread.start()
    yield
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == [] and len(counts) >= 2


def png(height: int, width: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width), np.uint8)).save(out, "PNG")
    return out.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int) -> bytes:
    """A small PNG file of many pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * (side + 1) * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def liar(side: int) -> bytes:
    """A PNG file that declares many more pixels than it has."""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10)) + chunk(b"IEND", b"")


def infer(name: str, datatype: str, shape: list, data: list) -> dict:
    return {"inputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}


CLASSIFY, GENERATE, INFER = "/", "/generate", "/v2/models/besieged-cgan/infer"
# By name: which service, path, body, the statuses that are right.
REQUESTS = {
    "a bomb of 100 megapixels": ("classifies", CLASSIFY, lambda: {"data": text(bomb(10_000))}, 400),
    "a liar of 10^18 pixels": ("classifies", CLASSIFY, lambda: {"data": text(liar(10**9))}, 400),
    "an image that ends early": ("classifies", CLASSIFY, lambda: {"data": text(png(64, 64)[:900])}, 400),
    "an empty image": ("classifies", CLASSIFY, lambda: {"data": ""}, 400),
    "a script for an image": ("classifies", CLASSIFY, lambda: {"data": text(b"#!/bin/sh\nrm -rf /\n")}, 400),
    "PostScript for an image": ("classifies", CLASSIFY, lambda: {"data": text(b"%!PS-Adobe-3.0 EPSF-3.0\n")}, 400),
    "a pickle for an image": ("classifies", CLASSIFY, lambda: {"data": text(b"\x80\x04cos\nsystem\n.")}, 400),
    "wrong base64": ("classifies", CLASSIFY, lambda: {"data": "@@@@ not base64 @@@@"}, 400),
    "base64 of half a byte": ("classifies", CLASSIFY, lambda: {"data": "AAA"}, 400),
    "a number for an image": ("classifies", CLASSIFY, lambda: {"data": 7}, 400),
    "a path for an image": ("classifies", CLASSIFY, lambda: {"data": "/etc/passwd"}, 400),
    "a URL for an image": ("classifies", CLASSIFY, lambda: {"data": "file:///etc/passwd"}, 400),
    "a key nobody knows": ("classifies", CLASSIFY, lambda: {"data": text(png(9, 9)), "model": "../../x"}, 400),
    "NaN for a seed": ("draws", GENERATE, lambda: b'{"seeds": [NaN]}', 400),
    "infinity for a seed": ("draws", GENERATE, lambda: b'{"seeds": [1e999]}', 400),
    "a half for a seed": ("draws", GENERATE, lambda: {"seeds": [0.5]}, 400),
    "true for a seed": ("draws", GENERATE, lambda: {"seeds": [True]}, 400),
    "a seed below 0": ("draws", GENERATE, lambda: {"seeds": [-1]}, 400),
    "a seed of 4,000 digits": ("draws", GENERATE, lambda: b'{"seeds": [' + b"9" * 4000 + b"]}", 400),
    "a seed of a million digits": ("draws", GENERATE, lambda: b'{"seeds": [' + b"9" * 10**6 + b"]}", 400),
    "10^9 images": ("draws", GENERATE, lambda: {"first_seed": 0, "images": 10**9}, 400),
    "a million seeds": ("draws", GENERATE, lambda: {"seeds": [1] * 10**6}, 400),
    "a label that is a path": ("draws", GENERATE, lambda: {"seeds": [1], "label": "../../etc/passwd"}, 400),
    "a label of a megabyte": ("draws", GENERATE, lambda: {"seeds": [1], "label": "x" * 10**6}, 400),
    "half a character": ("draws", GENERATE, lambda: b'{"seeds": [1], "label": "\\ud800"}', 400),
    "deep JSON": ("draws", GENERATE, lambda: b"[" * 10**6, 400),
    "deep JSON in a seed": ("draws", GENERATE, lambda: b'{"seeds": ' + b'{"a":' * 10**5 + b"1" + b"}" * 10**5, 400),
    "bytes that are no text": ("draws", GENERATE, lambda: b"\xff\xfe\x00\x01" * 100, 400),
    "an empty body": ("draws", GENERATE, lambda: b"", 400),
    "200 MB": ("draws", GENERATE, lambda: b"0" * (200 * 2**20), 413),
    "a tensor of another shape": ("draws", INFER, lambda: infer("seed", "INT64", [10**9], [1]), 400),
    "a tensor of negative shape": ("draws", INFER, lambda: infer("seed", "INT64", [-1], [1]), 400),
    "a tensor of 1,000 axes": ("draws", INFER, lambda: infer("seed", "INT64", [1] * 1000, [1]), 400),
    "a tensor that is a file": ("draws", INFER, lambda: infer("file:///etc/passwd", "BYTES", [1], ["x"]), 400),
    "tensors of text for seeds": ("draws", INFER, lambda: infer("seed", "INT64", [1], ["__import__('os')"]), 400),
    "a path out of the lake": ("draws", "/v2/models/..%2F..%2Fetc%2Fpasswd/infer", lambda: {"inputs": []}, 404),
    "a path out of the pages": ("draws", "/../../../../etc/passwd", lambda: {}, 404),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_hostile_request_is_refused_in_its_time(services, others, name):
    where, path, body, expected = REQUESTS[name]
    began = time.monotonic()
    try:
        status, _, data = services[where].ask("POST", path, body(), timeout=30)
    except (BrokenPipeError, ConnectionResetError):
        assert expected == 413  # It hung up while it was sent what nobody reads.
    else:
        assert status == expected, data[:500]
        assert "error" in json.loads(data) and len(data) < 1000 and b"Traceback" not in data
    assert time.monotonic() - began < 10


# --- what no HTTP client sends ----------------------------------------------------------


def answered(connection: socket.socket, seconds: float) -> bytes:
    """What comes on the connection before it is closed, or `seconds` are over."""
    connection.settimeout(seconds)
    data = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(65536):
            data += part
    return data


def status_of(data: bytes) -> int:
    return int(data.split()[1]) if data.startswith(b"HTTP/1.1 ") else 0


def head(*lines: str) -> bytes:
    return "\r\n".join(["POST /generate HTTP/1.1", "Host: x", *lines, "", ""]).encode()


# By name: what is sent at once, and the status.
BYTES = {
    "a flood of headers": (head(*(f"X-{place}: {'y' * 50}" for place in range(5000))), 400),
    "a header of a megabyte": (head("X-Long: " + "y" * 2**20), 400),
    "a path of a megabyte": (b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 40 + b"\r\n\r\n", 400),
    "two lengths of one body": (head("Content-Length: 3", "Content-Length: 30") + b"{}}", 400),
    "a length and chunks": (head("Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n", (400, 413)),
    "a length that is no number": (head("Content-Length: 0x10") + b"{}", 400),
    "a length of 10^19": (head(f"Content-Length: {10**19}") + b"{}", (400, 413)),
    "chunks without an end": (
        head("Transfer-Encoding: chunked")
        + b"100000\r\n"
        + b"x" * 0x100000
        + b"\r\n"
        + b"800000\r\n"
        + b"x" * 0x800000,
        413,
    ),
    "a method nobody knows": (b"BREW /generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_no_client_sends_are_refused(services, others, name):
    data, expected = BYTES[name]
    with services["draws"].connect() as connection:
        with contextlib.suppress(OSError):  # It may hang up before it has read all of it.
            connection.sendall(data)
        status = status_of(answered(connection, 10))
    assert status in (expected if isinstance(expected, tuple) else (expected,)) or (status == 0 and len(data) > 2**16)


@pytest.mark.parametrize(
    "name, start",
    [
        ("a head a byte at a time", b"POST /generate HTTP/1.1\r\nX-Slow: "),
        ("a body a byte at a time", head("Content-Length: 1000")),
        ("a second request that never ends", b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /"),
        ("nothing at all", b""),
    ],
)
def test_a_slow_client_is_hung_up_on(services, others, name, start):
    began = time.monotonic()
    with services["draws"].connect() as connection:
        connection.sendall(start)
        data = b""
        with contextlib.suppress(OSError):
            connection.settimeout(0.3)
            while time.monotonic() - began < 4 * RECEIVE:
                if start:
                    connection.sendall(b"x")
                try:
                    part = connection.recv(65536)
                except TimeoutError:
                    continue
                data += part
                if not part:
                    break
    assert time.monotonic() - began < 2.5 * RECEIVE
    assert b" 408 " in data


def test_many_connections_that_say_nothing_do_not_keep_others_out(services, others):
    connections = [services["draws"].connect() for _ in range(300)]
    assert services["draws"].json("/generate", {"seeds": [1]})["version"] == 1
    assert all(status_of(answered(connection, 4 * RECEIVE)) in (0, 408) for connection in connections)
    for connection in connections:
        connection.close()


def test_a_connection_that_is_one_too_many_is_told_when_to_come_again(lake, services, tmp_path):
    arguments = ("--lake", lake, "--model", "besieged-lenet", "--max-connections", "4", "--log-share", "0")
    with running(tmp_path, *arguments) as service:
        connections = [service.connect() for _ in range(4)]
        time.sleep(0.2)
        status, headers, data = service.ask("GET", "/model")
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert "too many connections" in json.loads(data)["error"]
        for connection in connections:
            connection.close()
        service.until(lambda: service.ask("GET", "/model")[0] == 200)


def test_the_services_go_on_and_nothing_failed_within(services):
    """After all of the above: no request of it was a failure of the service's own."""
    for service in services.values():
        assert service.process.poll() is None
        assert not [line for line in service.log() if "traceback" in line or line["level"] == "error"]
        assert b'status="500"' not in service.ask("GET", "/metrics")[2]
