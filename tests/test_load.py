"""Minutes of load on nginx and its two workers, while everything happens that may: promotions, rollbacks, challengers,
a version that cannot be loaded, a worker killed each minute, a lake that does not answer.

GAN_SPARK_LOAD_MINUTES says how many; ten where nothing says so.
"""

import base64
import collections
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

import fsspec
import numpy as np
import psutil
import pytest
import tensorflow as tf
from conftest import make_config
from test_deploy import fronted, workers

from gan_spark import lake as lakes
from gan_spark.data import images
from gan_spark.runs import challenge, registry
from gan_spark.runs.store import Run
from gan_spark.serving import functions, records
from gan_spark.training import driver

MINUTES = float(os.environ.get("GAN_SPARK_LOAD_MINUTES", "10"))
SILENCE = 30  # seconds in which the lake does not answer
SEEDS, CLIENTS = 16, 8
NAME = "loaded"
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(60 * MINUTES + 1200),
    pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not here"),
]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """(A process that is the store of a lake, the lake's URL): moto's S3, which can be stopped and go on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for key, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }.items():
        monkeypatch.setenv(key, value)
    moto = os.path.join(os.path.dirname(sys.executable), "moto_server")
    with open(tmp_path / "moto", "w") as log:
        server = subprocess.Popen([moto, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        end = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < end
            time.sleep(0.1)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # of another file's moto, which has ended
        lakes.filesystem("s3a://loaded")[0].mkdir("loaded")
        yield server, "s3a://loaded/lake"
    finally:
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.wait(30)


@pytest.fixture
def pictures(spark, lake, digits, store) -> dict[str, list[np.ndarray]]:
    """Three runs of a generator in a lake on the store; of each the seeds' images, as the batch job makes them."""
    made = {}
    for seed in range(3):
        driver.train(spark, make_config(lake, "dcgan", f"load-{seed}", train={"steps": 2, "seed": seed}))
        answers = functions.answers(Run.named(lake, f"load-{seed}"), 2)
        _, function = functions.largest_exact(answers, "generate")
        drawn = images.to_pixels(function({"seed": tf.range(answers.batch, dtype=tf.int64)}))
        made[f"load-{seed}"] = list(drawn[:SEEDS])
        fs, path = lakes.filesystem(store[1])
        fs.put(lakes.filesystem(f"{lake}/runs/load-{seed}")[1], f"{path}/runs/load-{seed}", recursive=True)
    return made


class Clients:
    """Clients that ask until they are told to stop, each answer held to what its version makes."""

    def __init__(self, port: str, pictures: dict[str, list[np.ndarray]], runs: dict[int, str]):
        self._port, self._pictures, self._runs = int(port), pictures, runs
        self.stop = threading.Event()
        self.statuses: collections.Counter = collections.Counter()
        self.wrong: list = []
        self.answered: dict[str, int] = {}  # version by request
        self.seconds: list[float] = []
        self._threads = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, client: int) -> None:
        draws, count = random.Random(client), 0
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=90)
        while not self.stop.is_set():
            count += 1
            request_id, seeds = f"c{client}-{count}", [draws.randrange(SEEDS) for _ in range(draws.randint(1, 4))]
            headers = {"X-Request-Id": request_id, "X-Sticky-Key": f"person-{draws.randrange(200)}"}
            began = time.monotonic()
            try:
                connection.request("POST", "/generate", json.dumps({"seeds": seeds}), headers)
                answer = connection.getresponse()
                status, body = answer.status, answer.read()
                told = {name.lower(): value for name, value in answer.getheaders()}
            except OSError as error:
                connection.close()
                status, told, body = type(error).__name__, {}, str(error).encode()
            self.seconds.append(time.monotonic() - began)
            self._look(request_id, seeds, status, told, body)

    def _look(self, request_id: str, seeds: list[int], status, headers: dict, body: bytes) -> None:
        self.statuses[status] += 1
        if status == 503 and "retry-after" in headers:
            return
        if status != 200:
            self.wrong.append((request_id, status, body[:200]))
            return
        answer = json.loads(body)
        expected = self._pictures[self._runs[answer["version"]]]
        drawn = [images.decode_png(base64.b64decode(one["png"])) for one in answer["images"]]
        is_right = all(np.array_equal(one, expected[seed]) for seed, one in zip(seeds, drawn, strict=True))
        if not is_right or headers.get("x-model-version") != str(answer["version"]) or answer["id"] != request_id:
            self.wrong.append((request_id, "mixed", answer["version"]))
        self.answered[request_id] = answer["version"]


class Memory:
    """Resident megabytes of a process, each second, with the minute."""

    def __init__(self, process_id: int):
        self._process, self.stop, self.samples = psutil.Process(process_id), threading.Event(), []
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        began = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            while not self.stop.wait(1):
                self.samples.append((time.monotonic() - began, self._process.memory_info().rss / 2**20))

    def end(self) -> None:
        self.stop.set()
        self._thread.join()

    def median(self, first: float, last: float) -> float:
        """Of the samples between these shares of the time."""
        end = self.samples[-1][0]
        return statistics.median(size for at, size in self.samples if first * end <= at <= last * end)


def break_the_registry(root: str) -> None:
    """Promotes a version whose checkpoint is not there."""
    table = registry.read(root, NAME)
    number = len(table["versions"]) + 1
    table["versions"].append({**table["versions"][0], "version": number, "step": 999})
    table["history"].append({"version": number, "at": registry.now()})
    table["promoted"] = number
    table.pop("challenger", None)
    lakes.write_record(root, lakes.model_url(root, NAME), table)


def what_happens(root: str, server: subprocess.Popen) -> list[tuple[float, str, object]]:
    """(share of the time, what, a function)."""

    def go_silent() -> None:
        server.send_signal(signal.SIGSTOP)
        time.sleep(min(SILENCE, 60 * MINUTES / 10))
        server.send_signal(signal.SIGCONT)

    return [
        (0.10, "promotion", lambda: registry.promote(root, "load-1", NAME)),
        (0.20, "rollback", lambda: registry.rollback(root, NAME)),
        (0.30, "challenger", lambda: challenge.challenge(root, "load-2", NAME, 0.4)),
        (0.40, "challenger ended", lambda: challenge.end(root, NAME)),
        (0.50, "a version that cannot be loaded", lambda: break_the_registry(root)),
        (0.57, "rollback", lambda: registry.rollback(root, NAME)),
        (0.60, "the lake is silent", go_silent),
        (0.75, "challenger", lambda: challenge.challenge(root, "load-1", NAME, 0.5)),
        (0.85, "challenger promoted", lambda: challenge.win(root, NAME, 1)),
        (0.93, "promotion", lambda: registry.promote(root, "load-2", NAME)),
    ]


@contextlib.contextmanager
def killing(port: str, killed: list[int]):
    """The worker at the port is killed each minute, half of the time in a way that it cannot notice."""
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(6 * MINUTES):
            number = signal.SIGKILL if len(killed) % 2 else signal.SIGTERM
            for process_id in workers(port):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, number)
                    killed.append(number)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_nothing_fails_whatever_happens(store, pictures, tmp_path, capsys):
    server, root = store
    for run in ("load-1", "load-2", "load-0"):  # versions 1, 2, 3
        registry.promote(root, run, NAME)
    runs = {entry["version"]: entry["run"] for entry in registry.read(root, NAME)["versions"]}
    options, killed, happened = "--threads 1", [], []
    with fronted(tmp_path, root, NAME, options) as (ports, process):
        clients, began = Clients(ports["8080"], pictures, runs), time.monotonic()
        memory = Memory(workers(ports["8082"])[0])
        try:
            with killing(ports["8081"], killed):
                for share, what, function in what_happens(root, server):
                    time.sleep(max(0, began + 60 * MINUTES * share - time.monotonic()))
                    function()
                    happened.append((round(time.monotonic() - began), what))
                time.sleep(max(0, began + 60 * MINUTES - time.monotonic()))
        finally:
            clients.end()
            memory.end()
        process.terminate()
        assert process.wait(120) == 0
    place = records.url(root, NAME)
    logged = collections.Counter(records.read(place)["request_id"].to_pylist())
    missing = clients.answered.keys() - logged.keys()
    twice = [name for name, count in logged.items() if count > 1]
    # Of a request that a worker died over: at most of the one that each client waited for.
    by_two = records.read_files(place).num_rows - len(logged)
    first, last = memory.median(0.15, 0.3), memory.median(0.85, 1.0)
    seconds = sorted(clients.seconds)
    with capsys.disabled():
        print(
            f"\n{len(seconds)} requests in {MINUTES:g} minutes: {dict(clients.statuses)}; by version"
            f" {dict(collections.Counter(clients.answered.values()))}; p50 {seconds[len(seconds) // 2] * 1000:.0f} ms,"
            f" p99 {seconds[len(seconds) * 99 // 100] * 1000:.0f} ms, longest {seconds[-1]:.1f} s;"
            f" {len(killed)} workers ended, {killed.count(signal.SIGKILL)} of them by SIGKILL; memory"
            f" {first:.0f} to {last:.0f} MB; {len(logged)} recorded, {len(missing)} not, {by_two} by two workers;"
            f" {happened}"
        )
    assert not clients.wrong, clients.wrong[:5]
    assert set(clients.answered.values()) >= {1, 2, 3}
    assert last < 1.15 * first
    assert not twice and not missing and by_two <= CLIENTS * killed.count(signal.SIGKILL)
