"""The walk of docs/serving.md, line by line in a shell, from the first promotion on."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT, make_config

from gan_spark.data import images
from gan_spark.training import driver


def walk() -> list[str]:
    """The commands of the page's first block."""
    block = re.search(r"^```\n(.*?)^```$", (ROOT / "docs/serving.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    return [line for line in block.splitlines() if line]


@pytest.fixture
def shell(spark, lake, digits, tmp_path):
    """A shell in a folder whose lake has the runs of the walk, with another port in place of 8080."""
    for seed, run in enumerate(("quickstart", "second")):
        driver.train(spark, make_config(lake, "dcgan", run, train={"steps": 2, "seed": seed}))
    os.symlink(lake, tmp_path / "lake")
    (tmp_path / "gan-spark").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gan_spark "$@"\n')
    (tmp_path / "gan-spark").chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = []

    def run(line: str) -> str:
        line = line.replace("8080", port)
        if not line.endswith("&"):
            return subprocess.run(
                ["bash", "-c", line], cwd=tmp_path, env=environment, check=True, stdout=subprocess.PIPE, text=True
            ).stdout
        words = ["bash", "-c", f"exec {line.removesuffix('&')} --port {port}"]
        processes.append(subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL))
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        return ""

    yield run
    for process in processes:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


@pytest.mark.long
@pytest.mark.slow
def test_the_walk_of_the_docs(shell, tmp_path):
    lines = walk()
    assert lines[:2] == ["gan-spark init quickstart", "gan-spark pipeline --config quickstart.toml"]
    outputs = {}
    for line in lines[2:]:
        if not line.startswith("gan-spark train"):  # which other tests run; here the run is there
            outputs[line] = shell(line)
        if line.startswith("gan-spark challenge"):
            time.sleep(15)  # until it is loaded
        if "/feedback" in line:
            time.sleep(6)  # until it is recorded
    answers = [json.loads(output) for line, output in outputs.items() if line.startswith("curl") and output]
    drawn, again, feedback = answers
    assert [image["seed"] for image in drawn["images"]] == [1, 2, 3] and drawn["version"] == 1
    assert again["id"] == "first" and again["version"] in (1, 2) and feedback["recorded"]
    assert images.decode_png((tmp_path / "grid.png").read_bytes()).shape == (8 * 18 + 2, 8 * 18 + 2, 1)
    verdict = outputs["gan-spark verdict --model digits"]
    assert re.search(r"verdict +not yet", verdict) and re.search(r"promoted +True", outputs[lines[-1]])
