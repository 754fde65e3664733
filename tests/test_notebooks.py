"""Every cell of every notebook, on local Spark with small settings; Databricks' own globals are stood in for."""

import gzip
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from sklearn.datasets import load_digits

pytestmark = pytest.mark.slow

NOTEBOOKS = ROOT / "notebooks"
LOCAL = (
    "train.launcher=local;train.batch_size=8;train.log_every=1;train.checkpoint_every=4;train.sample_every=4;"
    "ingest.planned_workers=1"
)
CHEAP = f"{LOCAL};evaluate.classifier_steps=10;evaluate.classifier_batch=8"


class Widgets:
    """What dbutils.widgets does, with values from the test."""

    def __init__(self, values: dict):
        self.values, self.made, self.used = values, {}, set()

    def text(self, name, default, label=None):
        self.made[name] = self.values.get(name, default)

    def dropdown(self, name, default, choices, label=None):
        assert default in choices
        self.text(name, default, label)

    def get(self, name):
        self.used.add(name)
        return self.made[name]


def cells(name: str) -> list[str]:
    text = (NOTEBOOKS / f"{name}.py").read_text()
    first, _, rest = text.partition("\n")
    assert first == "# Databricks notebook source"
    return [cell.strip() for cell in rest.split("# COMMAND ----------")]


@pytest.fixture(scope="module")
def digits_idx(tmp_path_factory) -> str:
    """600 digits of 28x28 in IDX files, as MNIST is."""
    folder = tmp_path_factory.mktemp("idx")
    source = load_digits()
    pixels = np.stack(
        [np.asarray(Image.fromarray((image * 15).astype(np.uint8)).resize((28, 28))) for image in source.images[:600]]
    )
    for part, rows in (("train", slice(0, 500)), ("t10k", slice(500, 600))):
        for kind, values in (
            ("images-idx3", pixels[rows]),
            ("labels-idx1", source.target[:600][rows].astype(np.uint8)),
        ):
            header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    return str(folder)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> str:
    """Two classes of pictures, in folders."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name, value in (("dark", 40), ("light", 210)):
        (folder / name).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(value - 40, value + 40, [40, 40, 3]).astype(np.uint8)).save(
                folder / name / f"{i}.png"
            )
    return str(folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("notebooks"))


def run(spark, monkeypatch, name: str, **widgets: str) -> tuple[dict, list, list]:
    """(the notebook's globals, tables that were displayed, HTML that was)."""
    monkeypatch.chdir(NOTEBOOKS)
    made, tables, pages = Widgets(widgets), [], []
    names = {
        "spark": spark,
        "dbutils": SimpleNamespace(widgets=made),
        "display": lambda frame: tables.append(frame.collect()),
        "displayHTML": pages.append,
    }
    for number, cell in enumerate(cells(name)):
        if cell.startswith("# MAGIC"):
            assert all(line.startswith("# MAGIC") for line in cell.splitlines())
        else:
            exec(compile(cell, f"{name}, cell {number}", "exec"), names)
    assert set(widgets) <= set(made.made) and made.used == set(made.made)
    assert all(tables) and all("<img" in page and "base64," in page for page in pages)
    return names, tables, pages


def test_quickstart_and_quality_report(spark, monkeypatch, root):
    small = f"{CHEAP};ingest.height=16;ingest.width=16;model.image_size=16;model.width=4;generate.images=40"
    names, tables, pages = run(spark, monkeypatch, "quickstart", lake=root, steps="4", workers="1", set=small)
    assert names["trained"]["steps"] == 4 and len(pages) == 1 and len(tables[1]) == 40
    names, tables, pages = run(spark, monkeypatch, "quality_report", lake=root, set=f"{small};train.workers=1")
    assert tables[0][0]["run"] == "quickstart" and names["measured"]["fid"] > 0 and "<h1>quickstart</h1>" in pages[0]


@pytest.mark.long
def test_conditional_generation(spark, monkeypatch, root, digits_idx):
    names, _, pages = run(
        spark,
        monkeypatch,
        "conditional_generation",
        **{
            "lake": root,
            "steps": "4",
            "workers": "1",
            "path": digits_idx,
            "class": "Bag",
            "images": "40",
            "set": f"{CHEAP};model.width=4;run=conditional;dataset=conditional",
        },
    )
    assert len(pages) == 1 and 0 <= names["measured"]["class_agreement"] <= 1


@pytest.mark.long
def test_image_translation(spark, monkeypatch, root, digits_idx):
    small = f"{LOCAL};model.width=4;model.blocks=1;generate.batch_size=20"
    _, _, pages = run(
        spark,
        monkeypatch,
        "image_translation",
        **{"lake": root, "steps": "2", "workers": "1", "path": digits_idx, "from": "b", "images": "40", "set": small},
    )
    assert len(pages) == 1


@pytest.mark.long
def test_text_to_image(spark, monkeypatch, root):
    names, tables, pages = run(
        spark,
        monkeypatch,
        "text_to_image",
        lake=root,
        steps="2",
        encoder_steps="2",
        workers="1",
        count="200",
        sentences="a red circle; a blue square",
        set=f"{LOCAL};model.embedding=16",
    )
    assert names["matched"]["steps"] == 2 and len(pages) == 1
    assert {row["input"] for row in tables[1]} == {"a red circle", "a blue square"}


@pytest.mark.long
def test_transfer_learning(spark, monkeypatch, root, photographs):
    names, _, _ = run(
        spark,
        monkeypatch,
        "transfer_learning",
        lake=root,
        path=photographs,
        network="MobileNetV2",
        weights="",
        set="ingest.planned_workers=1;ingest.height=32;ingest.width=32;"
        "featurize.iterations=3;featurize.regularisation=0.0",
    )
    assert names["fitted"]["images"] + names["fitted"]["trained_on"] == 40 and names["fitted"]["accuracy"] > 0.5


def test_every_notebook_is_run_here():
    tested = {
        "quickstart",
        "quality_report",
        "conditional_generation",
        "image_translation",
        "text_to_image",
        "transfer_learning",
    }
    assert {path.stem for path in NOTEBOOKS.glob("*.py")} == tested
