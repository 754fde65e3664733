"""Parts that the benchmarks share: arguments, a passing lake, Fashion-MNIST, pairs of figures, the result line."""

import argparse
import contextlib
import gzip
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

PARTS = ("train", "t10k")  # 60,000 and 10,000 images


def parser(description: str, repeats: int = 3) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--data",
        default="/usr/share/datasets/fashion-mnist",
        help="folder of Fashion-MNIST's IDX files (default: %(default)s)",
    )
    options.add_argument("--lake", help="folder to work in, which is kept and used again; a temporary one otherwise")
    if repeats:
        options.add_argument(
            "--repeats", type=int, default=repeats, help="times that each side is measured (default: %(default)s)"
        )
    return options


def arguments(options: argparse.ArgumentParser, argv: list[str] | None = None) -> argparse.Namespace:
    parsed = options.parse_args(argv)
    names = [f"{part}-{kind}-ubyte.gz" for part in PARTS for kind in ("images-idx3", "labels-idx1")]
    missing = [name for name in names if not os.path.exists(os.path.join(parsed.data, name))]
    if missing:
        print(
            f"error: --data {parsed.data}: no {missing[0]} in it; Debian and Ubuntu have Fashion-MNIST as the package"
            " dataset-fashion-mnist",
            file=sys.stderr,
        )
        sys.exit(2)
    parsed.data = os.path.abspath(parsed.data)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    return parsed


@contextlib.contextmanager
def lake(parsed: argparse.Namespace) -> Iterator[str]:
    if parsed.lake:
        yield os.path.abspath(parsed.lake)
    else:
        with tempfile.TemporaryDirectory(prefix="gan-spark-benchmark-", ignore_cleanup_errors=True) as folder:
            yield folder


def read_idx(folder: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 28, 28, 1] and labels uint8 [n] of a part of Fashion-MNIST."""
    with gzip.open(os.path.join(folder, f"{part}-images-idx3-ubyte.gz")) as stream:
        images = np.frombuffer(stream.read(), np.uint8, offset=16).reshape(-1, 28, 28, 1)
    with gzip.open(os.path.join(folder, f"{part}-labels-idx1-ubyte.gz")) as stream:
        return images, np.frombuffer(stream.read(), np.uint8, offset=8)


def training_only(data: str, folder: str) -> str:
    """A folder that holds the 60,000 training images alone, as links."""
    links = os.path.join(folder, "idx-train")
    os.makedirs(links, exist_ok=True)
    for kind in ("images-idx3", "labels-idx1"):
        link = os.path.join(links, f"train-{kind}-ubyte.gz")
        if not os.path.exists(link):
            os.symlink(os.path.join(data, os.path.basename(link)), link)
    return links


def config(lake: str, path: str, run: str = "run", **sections: dict):
    """A config of a DCGAN on the IDX files in `path`; `sections` are added to it."""
    from gan_spark.config import parse
    from gan_spark.models import config_class

    table = {"run": run, "dataset": "fashion-mnist", "lake": lake, "model": {"name": "dcgan"}} | sections
    table["ingest"] = {"source": "idx", "path": path, "validation": 0.0, "test": 0.0} | sections.get("ingest", {})
    return parse(table, config_class)


def ingested(spark, config) -> str:
    """URL of the config's dataset, which is written unless the lake has it."""
    from gan_spark import lake
    from gan_spark.data import ingest, schema

    url = lake.dataset_url(config)
    if not lake.exists(lake.join(url, schema.MANIFEST)):
        say(f"writing the dataset {url}")
        ingest.ingest(spark, config)
    return url


def alternate(sides: dict[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measures the sides in turn, A B A B; each one's figures in order."""
    figures = {name: [] for name in sides}
    for turn in range(repeats):
        for name, side in sides.items():
            figures[name].append(round(side(), 2))
            say(f"{turn + 1} of {repeats}: {name} {figures[name][-1]:,}")
    return figures


def ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios pair by pair."""
    return round(statistics.median(upper / lower for upper, lower in zip(above, below, strict=True)), 3)


def child(script: str, side: str, job: dict) -> dict:
    """The JSON that `script side job` prints last, in a process of its own."""
    completed = subprocess.run(
        [sys.executable, script, side, json.dumps(job)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(completed.stdout.splitlines()[-1])


def side_by_side(script: str, side: str, job: dict, count: int = 2) -> float:
    """Images a second of `count` such processes at once, together.

    That is what the machine's cores can give without anything to share.
    """
    with ThreadPoolExecutor(count) as pool:
        return sum(result["images_per_second"] for result in pool.map(lambda _: child(script, side, job), range(count)))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def finish(result: dict) -> None:
    print(json.dumps(result), flush=True)
