"""Exports: a SavedModel and an MLflow model answer without gan_spark, to the bit what the batch job answers."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_config, make_model
from PIL import Image

from gan_spark import __main__ as command_line
from gan_spark import check, models
from gan_spark import lake as lakes
from gan_spark.config import UserError
from gan_spark.data import images, schema
from gan_spark.runs import loading, registry
from gan_spark.runs.store import Run
from gan_spark.sampling import generate
from gan_spark.serving import decoding, export, functions, signatures, statistics
from gan_spark.training import driver

pytestmark = pytest.mark.slow

SEEDS = 150  # two whole batches and a part of one

# Runs in a process that has TensorFlow, and neither gan_spark nor Spark.
ALONE = """
import json, sys
for name in ("gan_spark", "pyspark", "horovod", "petastorm", "keras.src.saving.saving_lib"):
    sys.modules[name] = None
import numpy as np, tensorflow as tf
tf.config.threading.set_intra_op_parallelism_threads(1)
request = np.load(sys.argv[2], allow_pickle=False)
model = tf.saved_model.load(sys.argv[1])
inputs = {name: tf.constant(request[name]) for name in request.files}
if "image_bytes" in inputs:
    inputs["image_bytes"] = tf.constant([row.tobytes().rstrip(b"|") for row in request["image_bytes"]])
answers = model.signatures[sys.argv[3]](**inputs)
np.savez(sys.argv[4], **{name: value.numpy() for name, value in answers.items() if value.dtype != tf.string})
assert "gan_spark" not in [name for name, module in sys.modules.items() if module is not None]
"""


def ask(folder: Path, saved_model: str, signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    """What a SavedModel answers in a process of its own."""
    request, answer = folder / "request.npz", folder / "answer.npz"
    np.savez(request, **inputs)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"TF_ENABLE_ONEDNN_OPTS": "1"}
    subprocess.run(
        [sys.executable, "-c", ALONE, saved_model, str(request), signature, str(answer)],
        check=True,
        cwd=folder,
        env=environment,
    )
    with np.load(answer) as arrays:
        return dict(arrays)


def rows_of_bytes(encoded: list[bytes]) -> np.ndarray:
    """Strings of bytes as one array, filled up with "|"."""
    width = max(map(len, encoded))
    return np.stack([np.frombuffer(data.ljust(width, b"|"), np.uint8) for data in encoded])


@pytest.fixture(scope="module")
def trained(spark, lake, digits):
    """A function that trains a small run of a model, once."""
    runs = {}

    def train(model: str):
        if model not in runs:
            config = make_config(
                lake, model, f"exported-{model}", train={"steps": 2}, generate={"images": SEEDS, "first_seed": 5}
            )
            driver.train(spark, config)
            runs[model] = config
        return runs[model]

    return train


def job_images(spark, config) -> np.ndarray:
    """Images of the batch job, in the order of their seeds, uint8."""
    url = generate.generate(spark, config)["table"]
    rows = spark.read.parquet(url).orderBy("seed").collect()
    return np.stack([images.decode_png(row["image"]) for row in rows])


@pytest.mark.parametrize(
    "model", ["cgan", *(pytest.param(name, marks=pytest.mark.long) for name in ("dcgan", "vae", "diffusion"))]
)
def test_a_seed_is_the_batch_jobs_image_in_a_process_with_tensorflow_alone(spark, trained, tmp_path, lake, model):
    config = trained(model)
    expected = job_images(spark, config)
    to = tmp_path / "export"
    answer = export.export(lake, str(to), config.run)
    assert answer["signatures"] == ["generate"] and answer["step"] == 2
    seeds = np.arange(5, 5 + SEEDS, dtype=np.int64)
    inputs = {"seed": seeds, **({"label": (seeds % 10).astype(np.int32)} if model in ("cgan", "diffusion") else {})}
    found = ask(tmp_path, str(to / "1"), "generate", **inputs)
    assert found["image"].dtype == np.uint8 and np.array_equal(found["image"], expected)
    few = {name: values[[70, 3, 149]] for name, values in inputs.items()}
    assert np.array_equal(ask(tmp_path, str(to / "1"), "generate", **few)["image"], expected[[70, 3, 149]])


def test_classes_are_those_of_the_run_and_of_no_other_number_of_images(spark, trained, tmp_path, lake, digits):
    config = trained("lenet")
    to = tmp_path / "export"
    export.export(lake, str(to), config.run)
    manifest = schema.read_manifest(digits)
    frame = spark.read.parquet(lakes.join(digits, "split=test")).limit(37).collect()
    pixels = schema.unpack([row["image"] for row in frame], manifest.shape, manifest.encoding)
    encoded = rows_of_bytes([images.encode_png(image) for image in pixels])
    found = ask(tmp_path, str(to / "1"), "classify", image_bytes=encoded)["probability"]
    run = Run.of(config)
    model = loading.load_model(run.url, 2, run.record())
    np.testing.assert_allclose(found, model.classify(images.to_unit(tf.constant(pixels))), atol=1e-6)
    alone = ask(tmp_path, str(to / "1"), "classify", image_bytes=encoded[5:6])["probability"]
    assert np.array_equal(alone[0], found[5])


def test_an_mlflow_model_answers_the_same(spark, trained, tmp_path, lake):
    mlflow = pytest.importorskip("mlflow.pyfunc")
    import pandas as pd

    config = trained("cgan")
    expected = job_images(spark, config)
    to = tmp_path / "export"
    assert export.export(lake, str(to), config.run)["mlflow"]
    moved = tmp_path / "elsewhere"
    shutil.move(to / "mlflow", moved)
    model = mlflow.load_model(str(moved))
    frame = pd.DataFrame({"seed": [5, 9], "label": pd.array([5, 9], "int32")})
    pngs = [base64.b64decode(text) for text in model.predict(frame)["image"]]
    assert np.array_equal(np.stack([images.decode_png(png) for png in pngs]), expected[[0, 4]])
    with pytest.raises(ValueError, match="expected the columns seed, label; found seed"):
        model.predict(pd.DataFrame({"seed": [5]}))


def test_the_description_has_lineage_and_the_training_datas_statistics(spark, trained, tmp_path, lake, digits):
    config = trained("cgan")
    registry.promote(lake, config.run, "described")
    answer = export.export(lake, str(tmp_path / "export"), model="described")
    assert answer["version"] == 1
    described = json.loads((tmp_path / "export" / "description.json").read_text())
    run, manifest = Run.of(config), schema.read_manifest(digits)
    assert described["classes"] == [str(digit) for digit in range(10)]
    assert described["value_range"]["image"] == [0, 255]
    assert described["signatures"]["generate"] == {
        "inputs": {"seed": {"dtype": "int64", "shape": [None]}, "label": {"dtype": "int32", "shape": [None]}},
        "outputs": {
            "image": {"dtype": "uint8", "shape": [None, 16, 16, 1]},
            "png_bytes": {"dtype": "string", "shape": [None]},
        },
    }
    lineage = described["lineage"]
    assert lineage["checkpoint_hash"] == run.checkpoint_hash(2) and lineage["fingerprint"] == manifest.fingerprint
    assert (lineage["run"], lineage["step"], lineage["registered_as"]) == (config.run, 2, "described")
    rows = spark.read.parquet(lakes.join(digits, "split=train")).collect()
    pixels = schema.unpack([row["image"] for row in rows], manifest.shape, manifest.encoding)
    shares = described["statistics"]["class_shares"]
    assert shares["3"] == pytest.approx(sum(row["label"] == 3 for row in rows) / len(rows), abs=1e-6)
    assert described["statistics"]["images"] == len(rows)
    assert sum(described["statistics"]["histogram"][0]) == pytest.approx(1, abs=1e-4)
    assert described["statistics"]["histogram"][0][0] == pytest.approx((pixels < 16).mean(), abs=1e-6)
    mean = np.array(described["statistics"]["features"]["mean"])
    blocks = pixels.reshape(len(rows), 8, 2, 8, 2).mean((0, 2, 4)).ravel() / 255
    np.testing.assert_allclose(mean, blocks, atol=0.51 / 255)


def test_an_export_replaces_an_export_and_nothing_else(trained, tmp_path, lake):
    config = trained("gan")
    to = tmp_path / "export"
    export.export(lake, str(to), config.run)
    first = (to / "1" / "saved_model.pb").stat().st_mtime_ns
    export.export(lake, str(to), config.run)
    assert (to / "1" / "saved_model.pb").stat().st_mtime_ns != first
    (to / "1" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="found 1/notes.txt"):
        export.export(lake, str(to), config.run)
    assert (to / "1" / "notes.txt").read_text() == "mine"
    stranger = tmp_path / "thesis"
    stranger.mkdir()
    (stranger / "saved_model.pb").write_text("years of work")
    with pytest.raises(UserError, match="expected nothing, an empty folder or an export"):
        export.export(lake, str(stranger), config.run)
    assert os.listdir(stranger) == ["saved_model.pb"]


def test_an_export_that_fails_leaves_the_former_one_and_nothing_else(trained, tmp_path, lake, monkeypatch):
    config = trained("gan")
    to = tmp_path / "export"
    export.export(lake, str(to), config.run)
    before = (to / "description.json").read_text()
    monkeypatch.setattr(lakes, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError("the store is full")))
    with pytest.raises(OSError, match="full"):
        export.export(lake, str(to), config.run)
    assert os.listdir(tmp_path) == ["export"] and (to / "description.json").read_text() == before


def test_what_cannot_be_exported_is_told(capsys, trained, tmp_path, lake):
    to = str(tmp_path / "export")
    with pytest.raises(UserError, match="model 'nobody': no version of it is promoted"):
        export.export(lake, to, model="nobody")
    with pytest.raises(UserError, match="model 'text_encoder' neither makes images nor classifies"):
        run = Run.named(lake, "encodes")
        record = Run.of(trained("gan")).record()
        record["config"]["model"] = {"name": "text_encoder"}
        run.write_record(record)
        functions.answers(run, 1)
    with pytest.raises(UserError, match="Spark reads as patterns"):
        export.export(lake, f"{to}*", trained("gan").run)
    with pytest.raises(SystemExit):
        command_line.main(["export", "--to", to])
    assert command_line.main(["export", "never-trained", "--to", to, "--lake", lake]) == 2
    assert "no run at" in capsys.readouterr().err


def encode(image: Image.Image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_graph_decodes_as_data_images_does(channels):
    """To the last value of files of the model's size, whatever their channels; nearly so where they are resized."""
    random = np.random.default_rng(3)
    coloured = Image.fromarray(random.integers(0, 256, (16, 16, 4), np.uint8), "RGBA")
    kinds = [coloured.convert(mode) for mode in ("L", "LA", "RGB", "RGBA")]
    files = [encode(image, "PNG") for image in kinds] + [encode(coloured.convert("RGB"), "BMP")]
    found = decoding.decoded(tf.constant(files), (16, 16, channels), "crop").numpy()
    expected = np.stack([images.decode(data, 16, 16, channels) for data in files])
    assert np.array_equal(found, expected)
    smooth = images.resize(random.integers(0, 256, (4, 5, 3), np.uint8), 60, 90)
    data = encode(Image.fromarray(smooth), "PNG")
    for fit in ("crop", "pad", "stretch"):
        found = decoding.decoded(tf.constant([data]), (16, 24, channels), fit).numpy()[0].astype(int)
        assert np.abs(found - images.decode(data, 16, 24, channels, fit)).max() <= 3
        found = decoding.decoded(tf.constant([data]), (16, 16, channels), fit).numpy()[0].astype(int)
        assert np.abs(found - images.decode(data, 16, 16, channels, fit)).mean() <= 8


@pytest.mark.parametrize("name", [name for name in models.MODELS if check.is_generative(name)])
def test_every_model_that_makes_images_has_signatures_which_make_the_same(name):
    """Those that translate one for each domain; embeddings and images come as a caller has them."""
    model, config = make_model(name), check.small_config(name)
    side, takes = config.image_size, type(model).takes(config)
    rows, random = 3, np.random.default_rng(0)
    pixels = random.integers(0, 256, (rows, side, side, config.channels), np.uint8)
    embedding = random.normal(size=(rows, getattr(config, "embedding", 1))).astype(np.float32)
    parts = takes if "a" in takes else ()
    shape = (side, side, config.channels)
    answers = functions.Answers(model, takes, parts, tuple("0123456789"), shape, "crop", embedding.shape[1])
    exported = signatures.Exported(answers, {name: [4, 64] for name in answers.calls()})
    given = {
        "seed": tf.constant([3, 1, 2**40], tf.int64),
        "label": tf.constant([3, 9, 0]),
        "caption": tf.constant(["a red circle", "a", "\u00e9"]),
        "embedding": tf.constant(embedding),
        "image_bytes": tf.constant([images.encode_png(image) for image in pixels]),
    }
    inputs = {"label": given["label"], "caption": given["caption"], "embedding": given["embedding"][:, None]}
    for part in parts or ("",):
        function = exported.functions[f"generate_{part}" if part else "generate"]
        names = [signatures.NAMES[column] for column in answers.columns()]
        answer = function(**{key: given[key] for key in names})
        columns = {key: inputs[key] for key in takes if key in inputs}
        if part or "image" in takes:
            columns[part or "image"] = images.to_unit(tf.constant(pixels))
        filled = tf.nest.map_structure(lambda value: tf.gather(value, [0, 1, 2, 2]), (columns, given["seed"]))
        assert np.array_equal(answer["image"], images.to_pixels(tf.function(model.generate)(*filled))[:3])
        assert np.array_equal(images.decode_png(answer["png_bytes"].numpy()[2]), answer["image"][2])


def test_a_label_that_is_no_class_is_refused():
    answers = functions.Answers(make_model("cgan"), ("label",), (), tuple("0123456789"), (16, 16, 1), "crop", 0)
    function = signatures.Exported(answers, {"generate": [1, 64]}).functions["generate"]
    for label in (-1, 10):
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected an index from 0 to 9"):
            function(seed=tf.constant([1], tf.int64), label=tf.constant([label]))


def test_sizes_that_change_the_last_bit_are_not_exact():
    def call(rows):
        values = tf.cast(rows["seed"], tf.float32)
        return values + (1e-7 if rows["seed"].shape[0] in (2, 8) else 0.0)

    rows = {"seed": tf.ones([16], tf.int64)}
    assert list(functions.exact_sizes(call, rows, 16)) == [1, 4, 16]


def test_more_rows_than_are_exact_are_computed_in_parts_that_are():
    def call(rows):
        values = tf.cast(rows["seed"], tf.float32)
        return values[:, None] + (1e-7 if rows["seed"].shape[0] > 2 else 0.0)

    class Counting:
        def calls(self):
            return {"generate": functions.Call(call, ("seed",), 1, 16)}

        def noise(self, rows, columns):
            return {"seed": tf.range(rows, dtype=tf.int64)}

    plain = {"generate": functions.exact_sizes(call, Counting().noise(16, ()), 1)}
    assert list(plain["generate"]) == [1, 2]
    found = functions.with_parts(Counting(), plain)["generate"]
    assert list(found) == [1, 2, 4, 8, 16]
    assert found[16](Counting().noise(16, ())).numpy().tolist() == [[float(seed)] for seed in range(16)]


def test_statistics_of_nothing():
    assert statistics.described(None) is None
    assert statistics.histogram(np.full((2, 3, 3, 1), 255, np.uint8)).tolist() == [[0] * 15 + [18]]
