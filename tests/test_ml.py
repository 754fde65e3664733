"""Spark ML stages over networks: equal to Keras, whole through save and load, unmoved by bad images."""

import collections
import io
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import ROOT
from PIL import Image
from pyspark import cloudpickle
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.linalg import Vectors
from pyspark.sql import functions as F
from pyspark.sql.utils import PythonException

from gan_spark import job, process
from gan_spark.config import UserError
from gan_spark.data import images, schema
from gan_spark.ml import (
    DeepImageFeaturizer,
    DeepImagePredictor,
    KerasImageFileTransformer,
    KerasTransformer,
    carry,
    columns,
    register_keras_image_udf,
)

pytestmark = pytest.mark.slow

# Workers cannot import this module, so the loader below travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def picture(seed: int, height: int = 40, width: int = 60, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pictures of several sizes and modes."""
    made = tmp_path_factory.mktemp("pictures")
    for seed, (height, width, mode) in enumerate(
        [(40, 60, "RGB"), (300, 310, "RGB"), (224, 224, "RGB"), (20, 20, "L"), (64, 48, "RGB"), (500, 30, "RGB")]
    ):
        picture(seed, height, width, mode).save(made / f"{seed}.png")
    return made


@pytest.fixture(scope="module")
def frame(spark, folder):
    rows = [(name, bytearray((folder / name).read_bytes())) for name in sorted(os.listdir(folder))]
    return spark.createDataFrame(rows, "name string, image binary").repartition(3).cache()


def by_keras(name: str, output: str, path, weights: str = "", seed: int = 0) -> np.ndarray:
    """What Keras alone makes of a file."""
    size = carry.SIZES[name]
    tf.keras.utils.set_random_seed(seed)
    make = getattr(tf.keras.applications, name)
    network = (
        make(weights=None, include_top=True)
        if output == "predictions"
        else make(weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3))
    )
    if weights:
        network.load_weights(weights)
    if output not in ("features", "predictions"):
        network = tf.keras.Model(network.input, network.get_layer(output).output)
    pixels = tf.keras.utils.img_to_array(
        tf.keras.utils.load_img(path, target_size=(size, size), interpolation="bilinear")
    )
    module = {"MobileNetV2": "mobilenet_v2", "InceptionV3": "inception_v3"}[name]
    return (
        network(getattr(tf.keras.applications, module).preprocess_input(pixels)[None], training=False).numpy().ravel()
    )


def same(made: np.ndarray, expected: np.ndarray) -> bool:
    """Random weights make numbers of any size, so errors are held against the largest."""
    assert made.shape == expected.shape and np.abs(expected).max() > 0
    return float(np.abs(made - expected).max()) <= 1e-4 * float(np.abs(expected).max())


def features(made, column: str = "features") -> dict[str, np.ndarray]:
    return {
        row["name"]: row[column].toArray() for row in made.select("name", column).collect() if row[column] is not None
    }


@pytest.mark.parametrize(
    "name, size", [pytest.param("InceptionV3", 2048, marks=pytest.mark.long), ("MobileNetV2", 1280)]
)
def test_features_are_those_of_keras(frame, folder, name, size):
    made = features(DeepImageFeaturizer(modelName=name, weights="").transform(frame))
    assert len(made) == 6
    for file in ("0.png", "1.png", "3.png"):
        expected = by_keras(name, "features", folder / file)
        assert made[file].shape == (size,) and same(made[file], expected)
    assert not same(made["0.png"], made["1.png"])


@pytest.mark.parametrize(
    "name, size",
    [
        ("VGG16", 512),
        ("Xception", 2048),
        *(
            pytest.param(*other, marks=pytest.mark.long)
            for other in (("EfficientNetB0", 1280), ("ResNet50", 2048), ("VGG19", 512))
        ),
    ],
)
def test_the_siblings_have_their_own_sizes_and_scales(name, size):
    network = carry.KerasNetwork(name, weights="")
    weights = network.whole("").get_weights()
    pixels = np.stack([carry.fitted(name, np.asarray(picture(0)))] * 2)
    made = carry._apply(network, weights)(pixels)
    assert made.shape == (2, size) and np.isfinite(made).all()


def test_a_layer_by_name_and_a_seed(frame, folder):
    made = features(
        DeepImageFeaturizer(modelName="MobileNetV2", weights="", layer="block_16_project", seed=5).transform(
            frame.where("name = '2.png'")
        )
    )
    expected = by_keras("MobileNetV2", "block_16_project", folder / "2.png", seed=5)
    assert made["2.png"].shape == (7 * 7 * 320,)
    assert same(made["2.png"], expected)


def test_every_kind_of_image_column_gives_the_same_features(spark):
    """Encoded, a dataset's raw column, and Spark's struct in BGR and BGRA."""
    pixels = np.asarray(picture(7, 30, 20))
    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    bgra = np.concatenate([bgr, np.full([30, 20, 1], 255, np.uint8)], 2)
    raw = schema.npy_header(pixels.shape) + pixels.tobytes()
    struct = "image struct<origin string, height int, width int, nChannels int, mode int, data binary>"
    frames = {
        "encoded": spark.createDataFrame([("x", bytearray(png(picture(7, 30, 20))))], "name string, image binary"),
        "raw": spark.createDataFrame([("x", bytearray(raw))], "name string, image binary"),
        "bgr": spark.createDataFrame([("x", ("", 30, 20, 3, 16, bytearray(bgr.tobytes())))], f"name string, {struct}"),
        "bgra": spark.createDataFrame(
            [("x", ("", 30, 20, 4, 24, bytearray(bgra.tobytes())))], f"name string, {struct}"
        ),
    }
    made = {
        kind: features(DeepImageFeaturizer(modelName="MobileNetV2", weights="").transform(each))["x"]
        for kind, each in frames.items()
    }
    for kind in made:
        np.testing.assert_array_equal(made[kind], made["encoded"])


def test_sparks_own_image_source_can_be_read(spark, folder):
    found = (
        spark.read.format("image").load(str(folder)).withColumn("name", F.element_at(F.split("image.origin", "/"), -1))
    )
    made = features(DeepImageFeaturizer(modelName="MobileNetV2", weights="").transform(found))
    assert len(made) == 6
    assert same(made["1.png"], by_keras("MobileNetV2", "features", folder / "1.png"))


def test_a_bad_image_is_null_and_counted(spark, frame):
    whole = png(picture(1))
    pickled = io.BytesIO()
    np.save(pickled, np.array([print], object), allow_pickle=True)
    odd = [
        ("empty", bytearray()),
        ("text", bytearray(b"not an image")),
        ("cut", bytearray(whole[: len(whole) // 2])),
        ("null", None),
        ("pickle", bytearray(pickled.getvalue())),
        ("good", bytearray(whole)),
    ]
    stage = DeepImageFeaturizer(modelName="MobileNetV2", weights="")
    made = stage.transform(spark.createDataFrame(odd, "name string, image binary").repartition(2)).cache()
    assert {row["name"]: row["features"] is not None for row in made.collect()} == {
        "empty": False,
        "text": False,
        "cut": False,
        "null": False,
        "pickle": False,
        "good": True,
    }
    assert stage.rejected == 4  # a null is not a bad image
    struct = "image struct<origin string, height int, width int, nChannels int, mode int, data binary>"
    frames = spark.createDataFrame(
        [("mode", ("", 2, 2, 3, 21, bytearray(48))), ("size", ("", 9, 9, 3, 16, bytearray(12))), ("null", None)],
        f"name string, {struct}",
    )
    stage = DeepImageFeaturizer(modelName="MobileNetV2", weights="")
    assert features(stage.transform(frames)) == {}
    assert stage.rejected == 2


def with_bad_rows(spark, frame):
    """Pictures with labels, in one partition with a null and a file that is cut."""
    good = frame.select("name", "image", (F.col("name") < "3").cast("double").alias("label"))
    bad = [("null", None, 0.0), ("cut", bytearray(png(picture(1))[:500]), 1.0)]
    return good.union(spark.createDataFrame(bad, good.schema)).coalesce(1)


def test_the_example_of_the_docs_outlives_bad_images_in_fit_and_in_transform(spark, frame, monkeypatch):
    page = (ROOT / "docs" / "spark-ml.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    small = example.replace('modelName="InceptionV3"', 'modelName="MobileNetV2", weights=""').replace(
        "maxIter=20", "maxIter=2"
    )
    assert small.count("MobileNetV2") == 1
    names = {"frame": with_bad_rows(spark, frame)}
    exec(small, names)
    answers = names["model"].transform(names["frame"]).collect()
    assert {row["name"] for row in answers} == set(frame.toPandas()["name"])
    assert all(row["prediction"] in (0.0, 1.0) for row in answers)
    assert names["features"].rejected >= 2  # in fit, and in transform


def test_handle_invalid_keeps_skips_or_ends_the_job(spark, frame, tmp_path):
    rows, names = with_bad_rows(spark, frame), {row["name"] for row in frame.collect()}
    made = {
        value: DeepImageFeaturizer(modelName="MobileNetV2", weights="", handleInvalid=value).transform(rows)
        for value in columns.INVALID
    }
    kept, skipped = ({row["name"]: row["features"] for row in made[value].collect()} for value in ("keep", "skip"))
    assert set(kept) == names | {"null", "cut"} and {name for name in kept if kept[name] is None} == {"null", "cut"}
    assert skipped == {name: kept[name] for name in names}
    for bad, reason in (("null", "it is null"), ("cut", "a PNG file that is truncated")):
        with pytest.raises(PythonException, match=rf"inputCol = 'image': .*'error'.*: {reason}.*'skip' leaves"):
            made["error"].where(F.col("name").isin("0.png", bad)).collect()
    assert made["error"].where("label is not null and name = '0.png'").first()["features"] == kept["0.png"]
    stage = DeepImageFeaturizer(modelName="MobileNetV2", weights="").setHandleInvalid("skip")
    stage.write().overwrite().save(str(tmp_path / "stage"))
    assert DeepImageFeaturizer.load(str(tmp_path / "stage")).getHandleInvalid() == "skip"
    assert DeepImageFeaturizer().getHandleInvalid() == "keep"
    with pytest.raises(UserError, match="handleInvalid = 'drop': expected one of keep, skip, error"):
        DeepImageFeaturizer(modelName="MobileNetV2", weights="", handleInvalid="drop").transform(frame)


def test_a_network_that_skips_rows_is_called_once_on_every_row(frame):
    made = DeepImageFeaturizer(modelName="MobileNetV2", weights="", handleInvalid="skip").transform(frame)

    def plan(rows) -> str:
        return rows._jdf.queryExecution().optimizedPlan().toString().partition("InMemoryRelation")[0]

    for rows in (made, made.select("features"), made.where("features is not null")):
        assert plan(rows).count("ArrowEvalPython") == 1
    # Conditions on other columns come before the network.
    assert "ArrowEvalPython" in plan(made.where("name < '3'")).partition("Filter")[0]


@pytest.mark.long
def test_tasks_are_handed_few_images_at_once(spark, default_batches, tmp_path, monkeypatch, caplog):
    plain = columns.values

    def watched(column):
        sizes = [len(value) for value in column]
        with open(tmp_path / str(os.getpid()), "a") as log:
            log.write(f"{sum(sizes)}\n")
        return plain(column)

    monkeypatch.setattr(columns, "values", watched)
    pixels = np.zeros([600, 600, 3], np.uint8)
    image = bytearray(schema.npy_header(pixels.shape) + pixels.tobytes())
    rows = spark.range(0, 40, 1, 1).withColumn("image", F.lit(image))
    made = DeepImageFeaturizer(modelName="MobileNetV2", weights="").transform(rows)
    assert made.where("features is not null").count() == 40
    sizes = [int(line) for path in tmp_path.iterdir() for line in path.read_text().split()]
    assert sum(sizes) == 40 * len(image) and max(sizes) <= 16 * 2**20
    assert f"{default_batches} = 10000 is lowered to" in caplog.text
    assert int(spark.conf.get(default_batches)) <= 16
    # What is lower already stays, and where Python is handed names alone there is nothing to lower.
    caplog.clear()
    spark.conf.set(default_batches, "2")
    DeepImageFeaturizer(modelName="MobileNetV2", weights="").transform(rows)
    assert spark.conf.get(default_batches) == "2" and not caplog.text


LARGE = """
import sys
from pyspark.sql import SparkSession, functions as F
from gan_spark.data import schema
from gan_spark.ml import DeepImageFeaturizer

shape = (1024, 1024, 3)
spark = SparkSession.builder.master("local[1]").getOrCreate()
image = bytearray(schema.npy_header(shape) + bytes(1024 * 1024 * 3))
rows = spark.range(0, 30, 1, 1).withColumn("image", F.lit(image))
features = DeepImageFeaturizer(modelName="MobileNetV2", weights="").transform(rows)
print(features.where("features is not null").count())
"""


@pytest.mark.long
def test_large_images_do_not_hang_a_session_of_sparks_own_defaults(tmp_path):
    """90 MB of images; beside the JVM's heap, where a batch of them is written, are 96 MB, and buffers grow twofold."""
    environment = {
        **os.environ,
        "SPARK_CONF_DIR": str(tmp_path),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": "--driver-java-options -XX:MaxDirectMemorySize=96m pyspark-shell",
        "PYTHONPATH": str(ROOT),
    }
    if home := job.java_home():
        environment["JAVA_HOME"] = home
    answer = subprocess.run(
        [sys.executable, "-c", LARGE], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0 and answer.stdout.split()[-1] == "30", answer.stderr[-3000:]


@pytest.mark.long
def test_a_pipeline_of_features_survives_save_and_load(spark, frame, tmp_path):
    labelled = frame.withColumn("label", (F.col("name") < "3").cast("double"))
    stages = [DeepImageFeaturizer(modelName="MobileNetV2", weights="", seed=3), LogisticRegression(maxIter=5)]
    model = Pipeline(stages=stages).fit(labelled)
    expected = {row["name"]: row["probability"] for row in model.transform(labelled).collect()}
    model.write().overwrite().save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    assert loaded.stages[0].getOrDefault("seed") == 3 and loaded.stages[0].getOrDefault("modelName") == "MobileNetV2"
    assert {row["name"]: row["probability"] for row in loaded.transform(labelled).collect()} == expected


@pytest.mark.long
@pytest.mark.parametrize("name", ["weights.h5", "new.weights.h5"])
def test_weights_from_a_file_of_either_format(frame, folder, tmp_path, name):
    path = str(tmp_path / name)
    tf.keras.utils.set_random_seed(11)
    tf.keras.applications.MobileNetV2(weights=None, include_top=False).save_weights(path)
    one = frame.where("name = '0.png'")
    made = features(DeepImageFeaturizer(modelName="MobileNetV2", weights=path).transform(one))["0.png"]
    assert same(made, by_keras("MobileNetV2", "features", folder / "0.png", path))
    # Another file under the same name is not taken for the first.
    tf.keras.utils.set_random_seed(12)
    tf.keras.applications.MobileNetV2(weights=None, include_top=False).save_weights(path)
    assert not same(features(DeepImageFeaturizer(modelName="MobileNetV2", weights=path).transform(one))["0.png"], made)


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"modelName": "InceptionV4"},
            "modelName = 'InceptionV4': expected one of EfficientNetB0, InceptionV3, MobileNetV2",
        ),
        ({"inputCol": "nothing"}, r"inputCol = 'nothing': not a column \(columns: name, image\)"),
        ({"inputCol": "name"}, "inputCol = 'name': expected binary .* or Spark's image struct; found string"),
        ({"layer": "mixed99"}, r"layer = 'mixed99': no such layer in MobileNetV2 \(there are: .*block_1_expand"),
        ({"weights": "/nowhere/w.h5"}, "/nowhere/w.h5: no such file"),
    ],
)
def test_a_wrong_stage_is_one_clear_error(frame, values, message):
    with pytest.raises(UserError, match=message):
        DeepImageFeaturizer(**{"modelName": "MobileNetV2", "weights": "", **values}).transform(frame)


def test_weights_that_do_not_fit_name_a_layer(frame, tmp_path):
    path = str(tmp_path / "vgg.h5")
    tf.keras.applications.VGG16(weights=None, include_top=False).save_weights(path)
    with pytest.raises(
        UserError, match="does not fit VGG19: its layer 'block3_conv4' has weights of .*the file has 'block4_conv1'"
    ):
        DeepImageFeaturizer(modelName="VGG19", weights=path).transform(frame)


@pytest.mark.long
def test_a_network_is_built_once_in_each_python_worker(spark, frame):
    stage = DeepImageFeaturizer(modelName="MobileNetV2", weights="", seed=21)

    def kept(frames):
        ids = [id(value) for key, value in process._cache.items() if key[0] == "carried"]
        for _ in frames:
            yield pd.DataFrame({"pid": [os.getpid()], "ids": [ids]})

    def networks() -> dict[int, set[int]]:
        # A function of frames, as the stage's own: those of RDDs have workers of their own.
        rows = spark.range(0, 4, 1, 4).mapInPandas(kept, "pid long, ids array<long>").collect()
        return {row["pid"]: set(row["ids"]) for row in rows}

    before, built = networks(), collections.defaultdict(set)
    for _ in range(3):
        stage.transform(frame.repartition(8)).select("features").collect()
        for pid, ids in networks().items():
            built[pid] |= ids - before.get(pid, set())
    assert any(built.values()) and all(len(ids) <= 1 for ids in built.values())


# --- the predictor ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def class_index(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("names") / "index.json"
    path.write_text(json.dumps({str(i): [f"n{i:08d}", f"thing {i}"] for i in range(1000)}))
    return str(path)


@pytest.fixture(scope="module")
def lively(tmp_path_factory) -> str:
    """Weights of MobileNetV2 with its classes that do not fade out on the way, as random ones do."""
    tf.keras.utils.set_random_seed(8)
    network = tf.keras.applications.MobileNetV2(weights=None)
    for layer in network.layers:
        if isinstance(layer, (tf.keras.layers.Conv2D, tf.keras.layers.DepthwiseConv2D)):
            layer.set_weights([3.0 * weight for weight in layer.get_weights()])
    path = str(tmp_path_factory.mktemp("lively") / "weights.h5")
    network.save_weights(path)
    return path


def test_the_most_probable_classes_by_name(spark, frame, folder, class_index, lively):
    made = DeepImagePredictor(modelName="MobileNetV2", weights=lively, topK=3, classIndex=class_index).transform(frame)
    row = made.where("name = '1.png'").first()["predictions"]
    expected = by_keras("MobileNetV2", "predictions", folder / "1.png", lively)
    best = np.argsort(-expected, kind="stable")[:3]
    assert (
        len(row) == 3
        and [each["description"] for each in row] == [f"thing {i}" for i in best]
        and row[0]["class"] == f"n{best[0]:08d}"
    )
    np.testing.assert_allclose([each["probability"] for each in row], expected[best], atol=1e-5)
    skipping = DeepImagePredictor(
        modelName="MobileNetV2", weights=lively, topK=3, classIndex=class_index, handleInvalid="skip"
    )
    rows = skipping.transform(with_bad_rows(spark, frame.where("name = '1.png'"))).collect()
    assert [(each["name"], each["predictions"]) for each in rows] == [("1.png", row)]
    assert expected.max() > 1.5 / 1000  # classes can be told apart: for none it would be 1 / 1000
    vectors = features(
        DeepImagePredictor(modelName="MobileNetV2", weights=lively, decodePredictions=False).transform(frame),
        "predictions",
    )
    np.testing.assert_allclose(vectors["1.png"], expected, atol=1e-5)
    assert vectors["1.png"].sum() == pytest.approx(1.0, abs=1e-4)


def test_names_of_classes_are_checked(frame, tmp_path):
    for text, message in (
        ("{", "expected JSON of the form"),
        ('{"1": ["a", "b"]}', "expected JSON of the form"),
        (None, "no such file"),
    ):
        path = tmp_path / "index.json"
        path.unlink(missing_ok=True)
        if text:
            path.write_text(text)
        with pytest.raises(UserError, match=message):
            DeepImagePredictor(modelName="MobileNetV2", weights="", classIndex=str(path)).transform(frame)


# --- models in files -------------------------------------------------------------------


def load_small(uri: str) -> np.ndarray:
    """A user's loader."""
    return np.asarray(Image.open(uri).convert("RGB").resize((8, 8)), np.float32)[None] / 255


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(path, Keras model) of a model of 8x8 RGB images."""
    tf.keras.utils.set_random_seed(2)
    model = tf.keras.Sequential(
        [
            tf.keras.Input([8, 8, 3]),
            tf.keras.layers.Conv2D(4, 3, activation="relu"),
            tf.keras.layers.GlobalAveragePooling2D(),
            tf.keras.layers.Dense(3),
        ]
    )
    path = str(tmp_path_factory.mktemp("models") / "small.keras")
    model.save(path)
    return path, model


def test_files_through_a_users_loader(spark, folder, small):
    path, model = small
    rows = [(name, str(folder / name)) for name in sorted(os.listdir(folder))] + [
        ("gone", "/nowhere.png"),
        ("null", None),
    ]
    stage = KerasImageFileTransformer(modelFile=path, imageLoader=load_small)
    made = features(stage.transform(spark.createDataFrame(rows, "name string, uri string")), "output")
    assert sorted(made) == sorted(os.listdir(folder)) and stage.rejected == 1
    np.testing.assert_allclose(made["4.png"], model(load_small(folder / "4.png"))[0], atol=1e-5)
    skipping = KerasImageFileTransformer(modelFile=path, imageLoader=load_small, handleInvalid="skip")
    left = skipping.transform(spark.createDataFrame(rows, "name string, uri string")).select("name").collect()
    assert sorted(row["name"] for row in left) == sorted(os.listdir(folder))


def test_a_loader_that_can_be_imported_is_saved_by_name(spark, small, tmp_path):
    stage = KerasImageFileTransformer(modelFile=small[0], imageLoader="PIL.Image:open")
    stage.write().overwrite().save(str(tmp_path / "stage"))
    assert KerasImageFileTransformer.load(str(tmp_path / "stage")).getOrDefault("imageLoader") == "PIL.Image:open"
    with pytest.raises(UserError, match="cannot be imported by that name"):
        KerasImageFileTransformer(modelFile=small[0], imageLoader=lambda uri: None).write()
    frame = spark.createDataFrame([("x", "y")], "name string, uri string")
    with pytest.raises(UserError, match="imageLoader = 'nothing:there': expected module:function"):
        KerasImageFileTransformer(modelFile=small[0], imageLoader="nothing:there").transform(frame)


def test_vectors_through_a_model(spark, tmp_path):
    tf.keras.utils.set_random_seed(4)
    model = tf.keras.Sequential([tf.keras.Input([5]), tf.keras.layers.Dense(7, "relu"), tf.keras.layers.Dense(2)])
    path = str(tmp_path / "dense.h5")
    model.save(path)
    given = np.random.default_rng(0).normal(size=[70, 5])
    rows = [(str(i), Vectors.dense(row), row.tolist()) for i, row in enumerate(given)] + [
        ("short", Vectors.dense([1.0]), [1.0]),
        ("null", None, None),
    ]
    frame = spark.createDataFrame(rows, ["name", "vector", "array"]).repartition(3)
    for column in ("vector", "array"):
        stage = KerasTransformer(inputCol=column, modelFile=path)
        made = features(stage.transform(frame), "output")
        np.testing.assert_allclose([made[str(i)] for i in range(70)], model(given.astype(np.float32)), atol=1e-5)
        assert len(made) == 70 and stage.rejected == 1
        assert KerasTransformer(inputCol=column, modelFile=path, handleInvalid="skip").transform(frame).count() == 70
        with pytest.raises(
            PythonException, match=rf"inputCol = '{column}': .*(it is null|1 numbers; the model takes 5)"
        ):
            KerasTransformer(inputCol=column, modelFile=path, handleInvalid="error").transform(frame).collect()
    with pytest.raises(UserError, match="inputCol = 'name': expected a vector or an array of numbers; found string"):
        KerasTransformer(inputCol="name", modelFile=path).transform(frame)
    with pytest.raises(UserError, match="no such file"):
        KerasTransformer(inputCol="array", modelFile="/nowhere.h5").transform(frame)


def test_a_model_as_an_sql_function(spark, frame, folder, small):
    path, model = small
    register_keras_image_udf(spark, "look", path)
    register_keras_image_udf(spark, "look_scaled", model, lambda pixels: images.resize(pixels, 8, 8, "stretch") / 255.0)
    frame.createOrReplaceTempView("pictures")
    row = spark.sql(
        "SELECT look(image) AS plain, look_scaled(image) AS scaled FROM pictures WHERE name = '4.png'"
    ).first()
    pixels = np.asarray(Image.open(folder / "4.png"))
    np.testing.assert_allclose(
        row["plain"],
        model(images.resize(pixels, 8, 8, "stretch", images.BILINEAR).astype(np.float32)[None])[0],
        atol=1e-3,
    )
    np.testing.assert_allclose(
        row["scaled"], model(images.resize(pixels, 8, 8, "stretch")[None] / np.float32(255))[0], atol=1e-4
    )
    vector = tf.keras.Sequential([tf.keras.Input([5]), tf.keras.layers.Dense(2)])
    with pytest.raises(UserError, match="expected a model of images, found an input of"):
        register_keras_image_udf(spark, "not_images", vector)


def test_images_of_several_sizes_through_a_model_of_any_size(spark):
    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential(
        [tf.keras.Input([None, None, 3]), tf.keras.layers.Conv2D(4, 3), tf.keras.layers.GlobalAveragePooling2D()]
    )
    register_keras_image_udf(spark, "look_any", model, lambda pixels: pixels / np.float32(255))
    given = [picture(seed, *((20, 30) if seed % 2 else (30, 20))) for seed in range(7)]
    rows = [(seed, bytearray(png(image))) for seed, image in enumerate(given)] + [
        (7, bytearray(b"no image")),
        (8, None),
    ]
    spark.createDataFrame(rows, "id int, image binary").coalesce(1).createOrReplaceTempView("several")
    made = {row["id"]: row["made"] for row in spark.sql("SELECT id, look_any(image) AS made FROM several").collect()}
    for seed, image in enumerate(given):
        np.testing.assert_allclose(made[seed], model(np.asarray(image)[None] / np.float32(255))[0], atol=1e-5)
    assert made[7] is None and made[8] is None


def test_answers_are_of_one_shape_a_batch_and_in_order():
    seen = []

    def call(batch):
        seen.append(batch.shape)
        return batch.reshape(len(batch), -1)[:, 0]

    def prepare(value):
        if value == 4:
            raise images.BadImage("four")
        return np.full([1 + (value > 5), 2], value)

    parts = list(columns.answers(iter([1, None, 2, 4, 3, 6, 7, 5]), prepare, call, 2))
    made, reasons = ([value for part in parts for value in part[side]] for side in (0, 1))
    assert made == [1, None, 2, None, 3, 6, 7, 5]
    assert reasons == [None, columns.NULL, None, "four", None, None, None, None]
    assert seen == [(2, 1, 2), (1, 1, 2), (2, 2, 2), (1, 1, 2)]


def test_columns_reads_what_pixels_there_are():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert np.array_equal(columns.pixels(schema.npy_header((3, 4, 1)) + grey.tobytes()), grey)
    assert columns.pixels(png(Image.fromarray(grey[:, :, 0]))).shape == (3, 4, 3)
