"""What gan_spark does to the process that it runs in: nothing when it is imported, and settings where it says so."""

import collections
import glob
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, make_model
from PIL import Image

from gan_spark import __version__, check, process
from gan_spark.config import resolved
from gan_spark.data.images import BadImage, read
from gan_spark.runs.store import Run

# The libraries that gan_spark imports come first: what they change is theirs.
IMPORTS = """
import importlib, json, logging, os, pkgutil, sys, warnings
import cv2, fsspec.implementations.local, horovod.spark, horovod.tensorflow, jinja2, matplotlib.pyplot, pandas
import petastorm.reader, petastorm.tf_utils, pyspark.ml, scipy.optimize, sklearn.datasets, tensorflow, tqdm.auto
from PIL import Image

def state():
    loggers = logging.root.manager.loggerDict
    return {
        "environment": dict(os.environ),
        "warnings": [str(entry) for entry in warnings.filters],
        "Pillow's limit": Image.MAX_IMAGE_PIXELS,
        "the root logger": [logging.root.level, str(logging.root.handlers)],
        "levels": {name: log.level for name, log in loggers.items() if getattr(log, "level", 0)},
        "threads": [
            tensorflow.config.threading.get_intra_op_parallelism_threads(),
            tensorflow.config.threading.get_inter_op_parallelism_threads(),
        ],
        "precision": tensorflow.keras.mixed_precision.global_policy().name,
    }

before = state()
import gan_spark
names = [module.name for module in pkgutil.walk_packages(gan_spark.__path__, "gan_spark.")]
names.remove("gan_spark.serving.mlflow_code")  # a file that is handed to MLflow, which imports it there
for name in names:
    importlib.import_module(name)
after = state()
print(json.dumps({"modules": len(names), "changed": {key: [before[key], after[key]] for key in before
                                                      if before[key] != after[key]}}))
"""


def in_fresh_process(program: str, *arguments: str) -> dict:
    """What the program prints as JSON last, without the settings of these tests."""
    environment = {name: value for name, value in os.environ.items() if name not in process.ENVIRONMENT}
    answer = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300, env=environment
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.slow
def test_importing_every_module_changes_nothing_of_the_process():
    answer = in_fresh_process(IMPORTS)
    assert answer["modules"] > 60 and answer["changed"] == {}


def test_settings_are_made_where_they_are_asked_for_and_keep_what_is_there(monkeypatch):
    session = SimpleNamespace(sparkContext=SimpleNamespace(environment={}))
    monkeypatch.setattr(process, "check_workers", lambda spark: None)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    with warnings.catch_warnings():
        process.prepare(session)
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "1"
    assert session.sparkContext.environment == {"TF_CPP_MIN_LOG_LEVEL": "1", "TF_ENABLE_ONEDNN_OPTS": "1"}


def test_workers_of_a_session_get_the_settings(spark, monkeypatch):
    monkeypatch.setitem(process.ENVIRONMENT, "GAN_SPARK_TEST", "7")
    process.prepare(spark)
    try:
        values = spark.sparkContext.parallelize(range(2), 2).map(lambda _: os.environ.get("GAN_SPARK_TEST")).collect()
    finally:
        del os.environ["GAN_SPARK_TEST"], spark.sparkContext.environment["GAN_SPARK_TEST"]
    assert values == ["7", "7"]


# --- workers ---------------------------------------------------------------------------

SESSION = """
import json, sys
sys.path.insert(0, sys.argv[1])
from gan_spark import failures, job

spark, text = None, ""
try:
    spark = job.session("workers")
except Exception as error:
    code, text = failures.report(error), str(error)
print(json.dumps({"code": code if text else 0, "error": text}))
"""


def other_pythons() -> list[str]:
    """Pythons of other versions than this; the test is skipped where there is none."""
    paths, others = [shutil.which(f"python3.{minor}") for minor in range(8, 15)], {}
    paths += glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python"))
    for path in filter(None, paths):
        answer = subprocess.run([path, "--version"], capture_output=True, text=True)
        if version := re.match(r"Python (3\.\d+)", answer.stdout):
            others.setdefault(version[1], path)
    others.pop(f"{sys.version_info[0]}.{sys.version_info[1]}", None)
    if not others:
        pytest.skip("no Python of another version is here")
    return [others[version] for version in sorted(others, key=lambda text: int(text[2:]))]


def session_with(python: str, folder) -> dict:
    """What a session says whose workers run `python` with `folder` on their path."""
    environment = {**os.environ, "PYSPARK_PYTHON": python, "PYTHONPATH": str(folder)}
    answer = subprocess.run(
        [sys.executable, "-c", SESSION, str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=folder,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout.splitlines()[-1])


EXPECTED = f"expected Python 3.11 with gan_spark {__version__} as in this process, found "


@pytest.mark.long
@pytest.mark.slow
def test_workers_of_another_python_are_told_before_any_work(tmp_path):
    # The newest may be too new for this Spark, and fails before it has said its version.
    for python in {other_pythons()[0], other_pythons()[-1]}:
        answer = session_with(python, tmp_path)
        found = r"(Python 3.\d+|no Python that can run a task \(\w+Error: .*\)); point PYSPARK_PYTHON"
        assert answer["code"] == 2 and re.search(rf"workers \({python}\): {EXPECTED}{found}", answer["error"])
    answer = session_with(str(tmp_path / "none"), tmp_path)
    assert answer["code"] == 2 and re.search(
        rf"{EXPECTED}no Python that can run a task \(.*No such file.*\); point", answer["error"]
    )
    assert "\n" not in answer["error"]


@pytest.mark.long
@pytest.mark.slow
def test_workers_without_gan_spark_or_with_another_version_are_told_before_any_work(tmp_path):
    if sys._base_executable == sys.executable:
        pytest.skip("this Python is no environment of its own: none without gan_spark is known")
    answer = session_with(sys._base_executable, tmp_path)
    assert answer["code"] == 2 and f"{EXPECTED}no gan_spark (No module named 'gan_spark'); point" in answer["error"]
    (tmp_path / "gan_spark").mkdir()
    (tmp_path / "gan_spark" / "__init__.py").write_text('__version__ = "0.0.9"')
    answer = session_with(sys.executable, tmp_path)
    assert answer["code"] == 2 and f"{EXPECTED}gan_spark 0.0.9; point" in answer["error"]


def test_workers_are_looked_at_once_a_session(spark, monkeypatch):
    monkeypatch.setattr(process, "_checked", weakref.WeakSet())
    jobs = []
    monkeypatch.setattr(process, "_identity", lambda: jobs.append(1) or (lambda _: ("host", __version__)))
    for _ in range(3):
        process.prepare(spark)
    assert jobs == [1]


# --- threads ---------------------------------------------------------------------------

THREADS = """
import json, sys
import numpy as np
import tensorflow as tf
from gan_spark.runs import loading
from gan_spark.runs.store import Run

url, where = sys.argv[1:]
if where == "task":
    from pyspark import TaskContext
    TaskContext._getOrCreate()
model = loading.load_model(url, 1, Run(url).record())
pixels = model.generate({}, np.arange(64)).numpy()
print(json.dumps({"threads": tf.config.threading.get_intra_op_parallelism_threads(), "pixels": pixels.tolist()}))
"""


@pytest.mark.slow
def test_a_driver_keeps_its_threads_and_a_task_has_one(tmp_path):
    model, run = make_model("dcgan"), Run(f"file://{tmp_path}/run")
    run.start({"config": {"model": resolved(model.config), "uses": {}}, "created": "2024-01-01T00:00:00+00:00"})
    run.save_checkpoint(1, lambda prefix: tf.train.Checkpoint(model=model).write(prefix), 1)
    driver, task, again = (in_fresh_process(THREADS, run.url, where) for where in ("driver", "task", "task"))
    assert (driver["threads"], task["threads"]) == (0, 1)  # 0: TensorFlow's own choice
    assert task["pixels"] == again["pixels"]
    np.testing.assert_allclose(driver["pixels"], task["pixels"], atol=1e-5)


# --- the cache -------------------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch) -> collections.OrderedDict:
    monkeypatch.setattr(process, "_cache", collections.OrderedDict())
    return process._cache


def test_the_cache_keeps_what_was_asked_for_last(cache):
    calls = []
    for key in ("a", "b", "c", "d", "a", "e", "a", "b"):
        assert process.cached(key, lambda key=key: calls.append(key) or key.upper()) == key.upper()
    assert calls == ["a", "b", "c", "d", "e", "b"] and list(cache) == ["d", "e", "a", "b"]


def test_an_object_of_the_cache_may_be_made_of_others(cache):
    assert process.cached("outer", lambda: process.cached("inner", lambda: 1) + 1) == 2
    assert list(cache) == ["inner", "outer"]


def test_what_could_not_be_made_is_tried_again(cache):
    with pytest.raises(ZeroDivisionError):
        process.cached("key", lambda: 1 / 0)
    assert process.cached("key", lambda: 1) == 1


def test_threads_that_ask_at_once_get_one_object(cache):
    objects, barrier = [], threading.Barrier(8)

    def ask():
        barrier.wait()
        objects.append(process.cached("key", object))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(objects) == 8 and len(set(objects)) == 1


# --- Pillow's limit --------------------------------------------------------------------


def blank(format: str, side: int) -> bytes:
    out = io.BytesIO()
    Image.new("1" if format != "JPEG" else "L", (side, side)).save(out, format)
    return out.getvalue()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
def test_the_configs_limit_on_pixels_stands_in_for_pillows(monkeypatch, format):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300_000)  # so that a small image is over twice of it
    data = blank(format, 1100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(data, 1, max_megapixels=2).shape == (1100, 1100, 1)
        with pytest.raises(BadImage, match="declares 1100 x 1100 pixels, over the limit of 1 megapixels"):
            read(data, 1, max_megapixels=1)
    assert Image.MAX_IMAGE_PIXELS == 300_000


def test_threads_that_read_images_leave_pillows_limit_as_it_was():
    before, data, shapes = Image.MAX_IMAGE_PIXELS, blank("PNG", 300), set()

    def many():
        shapes.update(read(data, 1).shape for _ in range(50))
        with pytest.raises(BadImage):
            read(b"no image", 1)

    threads = [threading.Thread(target=many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shapes == {(300, 300, 1)} and before == Image.MAX_IMAGE_PIXELS is not None


def test_the_small_config_of_a_model_keeps_to_its_ranges():
    for name in check.MODEL_CONFIGS:
        config = check.small_config(name)
        assert (config.name, config.image_size) == (name, check.MODEL_CONFIGS[name]["image_size"])
