"""What is deployed: manifests are held to their published schemas, nginx and its two workers are run for real."""

import concurrent.futures
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request

import pytest
from conftest import ROOT, make_config

from gan_spark.runs import registry
from gan_spark.training import driver

MANIFESTS = sorted(ROOT.glob("deploy/kubernetes/**/*.yaml"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(ROOT / "deploy")))
def test_a_manifest_is_of_its_published_schema(path):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    yaml = pytest.importorskip("yaml")
    for manifest in yaml.safe_load_all(path.read_text()):
        if manifest["kind"] == "Kustomization":  # whose schema Kubernetes does not publish
            generated = [name for one in manifest.get("configMapGenerator", []) for name in one["files"]]
            listed = {*manifest["resources"], *generated, path.name}
            assert listed == {other.name for other in path.parent.glob("*.yaml")}
        else:
            kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_a_container_runs_as_nobody_in_particular_on_a_root_that_it_cannot_write():
    yaml = pytest.importorskip("yaml")
    pod = yaml.safe_load((ROOT / "deploy/kubernetes/deployment.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert container["securityContext"]["readOnlyRootFilesystem"] and container["resources"]["limits"]["memory"]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
    assert re.search(r"^USER 10001$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)


def test_the_containers_packages_are_the_projects():
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    known = {*project["dependencies"], *extras["serve"], *extras["s3"]}
    lines = (ROOT / "deploy/requirements.txt").read_text().splitlines()
    packages = {line for line in lines if line and not line.startswith("#")}
    assert packages <= known and set(extras["serve"]) <= packages


@pytest.fixture
def front(spark, lake, digits, tmp_path):
    """(Port, process) of deploy/start.sh."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not here")
    driver.train(spark, make_config(lake, "dcgan", "deployed", train={"steps": 1}))
    registry.promote(lake, "deployed", "deployed")
    with fronted(tmp_path, lake, "deployed", "--threads 1 --log-share 0") as (ports, process):
        yield ports, process


@contextlib.contextmanager
def fronted(folder, lake: str, model: str, options: str):
    """(Ports by those in the files, process) of deploy/start.sh, with ports of its own, once both workers answer."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = dict(zip(("8080", "8081", "8082"), (str(probe.getsockname()[1]) for probe in probes), strict=True))
    for name in ("nginx.conf", "start.sh"):
        text = (ROOT / "deploy" / name).read_text().replace("listen 8080", "listen 127.0.0.1:8080")
        text = re.sub(r"\b808[012]\b", lambda match: ports[match[0]], text)
        (folder / name).write_text(text.replace("/tmp/nginx", f"{folder}/nginx-"))
    (folder / "gan-spark").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gan_spark "$@"\n')
    (folder / "gan-spark").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "LAKE": lake,
        "MODEL": model,
        "OPTIONS": options,
    }
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(["sh", str(folder / "start.sh")], env=environment, stderr=log, stdout=log)
    try:
        wait(ports["8081"], process)
        wait(ports["8082"], process)
        yield ports, process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(90)


def wait(port: str, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5)
            return
        except OSError:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.2)


def workers(lake_port: str) -> list[int]:
    """Process ids of the worker that listens on the port."""
    found = subprocess.run(["pgrep", "-f", f"gan_spark serve .*--port {lake_port}"], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


@pytest.mark.slow
def test_a_worker_is_killed_under_load_and_no_answer_fails(front):
    ports, process = front
    stop, statuses = threading.Event(), []

    def client(_) -> None:
        while not stop.is_set():
            request = urllib.request.Request(f"http://127.0.0.1:{ports['8080']}/generate", b'{"seeds": [1]}')
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    statuses.append(answer.status)
            except OSError as error:
                statuses.append(str(error))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client, place) for place in range(4)]
        time.sleep(2)
        for number in workers(ports["8081"]):
            os.kill(number, signal.SIGKILL)
        time.sleep(2)
        wait(ports["8081"], process)  # It is begun again.
        time.sleep(1)
        stop.set()
        for one in clients:
            one.result()
    assert len(statuses) > 20 and set(statuses) == {200}
    process.terminate()
    assert process.wait(90) == 0
    assert not workers(ports["8081"]) and not workers(ports["8082"])
