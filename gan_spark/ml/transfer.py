"""Transfer learning as jobs: features and a linear classifier on top, fine-tuning, and prediction with what came of it."""

import logging
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.functions import vector_to_array
from pyspark.sql import functions as F

from .. import dataset, images, lake, loading, schema, tables, trainer
from ..config import Config, UserError, replaced
from ..sources import folder
from ..store import Run
from . import columns
from .classifier import ImageClassifier
from .featurizer import DeepImageFeaturizer

log = logging.getLogger(__name__)


def featurize(spark, config: Config) -> dict:
    """A pipeline of a network's features and logistic regression: fitted on split train, measured on split test, saved at `<lake>/pipelines/<run>`, loaded and measured again."""
    options, url = config.featurize, lake.dataset_url(config)
    manifest = _labelled(url)
    featurizer = DeepImageFeaturizer(modelName=options.network, weights=options.weights, inputCol="image", outputCol="features")
    classifier = LogisticRegression(maxIter=options.iterations, regParam=options.regularisation, elasticNetParam=options.elastic_net)
    target = lake.join(lake.to_url(config.lake), "pipelines", config.run)
    # Kept, since fitting goes over its rows more than once.
    features = featurizer.transform(_split(spark, url, "train")).select("features", "label").persist()
    PipelineModel([featurizer, classifier.fit(features)]).write().overwrite().save(target)
    features.unpersist()
    test = _split(spark, url, "test")
    return {"pipeline": target, "network": options.network, "weights": options.weights, "trained_on": manifest.rows["train"], **agreement(PipelineModel.load(target).transform(test), manifest.classes)}


def finetune(spark, config: Config) -> dict:
    """Trains the model `classifier` (with `finetune.balance`, every class counts the same), and measures its best checkpoint on split test.

    The network's weights at that checkpoint are written to `<run>/network.h5`, for a featurizer or another run to begin from.
    """
    url = lake.dataset_url(config)
    manifest = _labelled(url)
    if config.model is None or config.model.name != "classifier":
        raise UserError(f"model.name = {config.model and config.model.name!r}: expected 'classifier'")
    if config.finetune.balance:
        config = replaced(config, model={"class_weights": balanced(_split(spark, url, "train"), len(manifest.classes))})
    trained = trainer.train(spark, config)
    run = Run.of(config)
    found = ImageClassifier(run=run.url).transform(_split(spark, url, "test"))
    return {**trained, "weights": export(run), **agreement(found, manifest.classes)}


def _labelled(url: str) -> schema.Manifest:
    manifest = schema.read_manifest(url)
    if not manifest.classes or manifest.parts:
        raise UserError(f"dataset {url}: expected images with labels and without parts")
    for split in ("train", "test"):
        if not manifest.rows.get(split):
            raise UserError(f"dataset {url}: its split {split!r} has no images")
    return manifest


def _split(spark, url: str, split: str):
    return spark.read.parquet(*dataset.files(url, split)).select("id", "image", "label")


def balanced(frame, classes: int) -> tuple[float, ...]:
    """Weights inverse to how many images a class has, 1 on average over the images; 0 for a class without any."""
    counts = {row["label"]: row["count"] for row in frame.groupBy("label").count().collect()}
    return tuple(round(sum(counts.values()) / (len(counts) * counts[label]), 6) if label in counts else 0.0 for label in range(classes))


def agreement(frame, classes: tuple[str, ...]) -> dict:
    """Of rows with `label` and `prediction`: {"images", "accuracy", "confusion": {class: {class it was given: how many}}}."""
    counts = {(int(row["label"]), int(row["prediction"])): row["count"] for row in frame.where("prediction is not null").groupBy("label", "prediction").count().collect()}
    total = sum(counts.values())
    confusion = {name: {other: counts.get((i, j), 0) for j, other in enumerate(classes)} for i, name in enumerate(classes)}
    return {"images": total, "accuracy": sum(count for (label, found), count in counts.items() if label == found) / total, "confusion": confusion}


def export(run: Run) -> str:
    """Writes the network's weights, without the head, to `<run>/network.h5`; its URL."""
    record, step = run.record(), run.preferred()
    network = loading.load_model(run.url, step, record).network
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "network.h5")
        network.save_weights(path)
        with open(path, "rb") as stream:
            lake.write_bytes(run.path("network.h5"), stream.read())
    return run.path("network.h5")


# --- prediction ------------------------------------------------------------------------


def predict(spark, config: Config) -> dict:
    """Classes of `predict.input` by the run's classifier: of one image in a file or at a URL, in the result; of a folder's, in a table at `<lake>/predictions/<run>`, where `id` is a file's URL."""
    options, run = config.predict, Run.of(config)
    if not options.input:
        raise UserError("predict.input is empty: expected an image file, a folder of images, or a URL")
    stage = ImageClassifier(run=run.url, inputCol="content")
    names = stage.classes()
    if options.input.startswith(("http://", "https://")):
        return _one(spark, stage, names, options, _fetched(options.input, config.ingest.max_file_mb))
    url = lake.to_url(options.input)
    fs, path = lake.filesystem(url)
    if not fs.exists(path):
        raise UserError(f"predict.input = {options.input!r}: no such file or folder")
    if not fs.isdir(path):
        if fs.size(path) > config.ingest.max_file_mb * 2**20:
            raise UserError(f"{options.input}: {fs.size(path)} bytes, over the limit of {config.ingest.max_file_mb} MB (ingest.max_file_mb)")
        return _one(spark, stage, names, options, lake.read_bytes(url))
    return _folder(spark, ImageClassifier(run=run.url, inputCol="id", maxFileMb=config.ingest.max_file_mb), names, config, url)


def _fetched(url: str, max_mb: int) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            data = answer.read(max_mb * 2**20 + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise UserError(f"{url}: cannot be fetched: {getattr(error, 'reason', error)}") from error
    if len(data) > max_mb * 2**20:
        raise UserError(f"{url}: over the limit of {max_mb} MB (ingest.max_file_mb)")
    return data


def _one(spark, stage: ImageClassifier, names: list[str], options, data: bytes) -> dict:
    try:
        columns.pixels(data)
    except images.BadImage as error:
        raise UserError(f"{options.input}: {error}") from None
    row = stage.transform(spark.createDataFrame([(bytearray(data),)], "content binary")).first()
    return {"image": options.input, "predictions": _top(names, row["probability"].toArray(), options.top)}


def _top(names: list[str], probabilities: np.ndarray, count: int) -> list[dict]:
    return [{"class": names[i], "probability": round(float(probabilities[i]), 4)} for i in np.argsort(-probabilities, kind="stable")[:count]]


def _files(url: str) -> Iterator[tuple[str]]:
    """URLs of the files in the folder, at any depth, and of folders that cannot be listed."""
    fs, base = lake.filesystem(url)
    for entry, problem in folder.walk(fs, base):
        if problem is not None and entry["name"] == base:
            raise OSError(f"{url}: the folder cannot be listed: {problem}")
        if problem is not None or entry["type"] != "directory":
            yield (lake.join(url, entry["name"].removeprefix(base.rstrip("/") + "/")),)


def _folder(spark, stage: ImageClassifier, names: list[str], config: Config, url: str) -> dict:
    context = spark.sparkContext
    # Not Spark's own listing of files, which passes over names that begin with _ or a dot.
    files = context.parallelize([url], 1).flatMap(_files).repartition(context.defaultParallelism).toDF("id string")
    found = stage.transform(files)
    classes = F.array(*(F.lit(name) for name in names))
    table = found.select(
        "id",
        F.element_at(classes, F.col("prediction").cast("int") + 1).alias("class"),
        F.when(F.col("probability").isNotNull(), vector_to_array("probability")).alias("probabilities"),
    )
    target = lake.join(lake.to_url(config.lake), "predictions", config.run)
    with tables.replacing(table, target) as written:
        counts = {row["class"]: row["count"] for row in written.groupBy("class").count().collect()}
    rejected = counts.pop(None, 0)
    return {"images": sum(counts.values()), "rejected": rejected, "classes": counts, "predictions": target}
