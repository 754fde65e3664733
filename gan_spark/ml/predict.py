"""Prediction of images' classes by a run's classifier, from a file, a URL or a folder."""

import urllib.error
import urllib.request

import numpy as np
from pyspark.ml.functions import vector_to_array
from pyspark.sql import functions as F

from .. import lake, progress
from ..config import Config, UserError
from ..data import batches, images
from ..data.sources import folder
from ..lake import tables
from ..runs.store import Run
from . import columns
from .classifier import ImageClassifier


def predict(spark, config: Config) -> dict:
    """Classes of `predict.input` by the run's classifier: of one image in a file or at a URL, in the result; of a
    folder's, in a table at `<lake>/predictions/<run>`, where `id` is a file's URL.
    """
    options, run = config.predict, Run.of(config)
    if not options.input:
        raise UserError("predict.input is empty: expected an image file, a folder of images, or a URL")
    stage = ImageClassifier(run=run.url, inputCol="content")
    names = stage.classes()
    if options.input.startswith(("http://", "https://")):
        return _prediction(spark, stage, names, options, _download(options.input, config.ingest.max_file_mb))
    url = lake.to_url(options.input)
    fs, path = lake.filesystem(url)
    if not fs.exists(path):
        raise UserError(f"predict.input = {options.input!r}: no such file or folder")
    if not fs.isdir(path):
        if fs.size(path) > config.ingest.max_file_mb * 2**20:
            raise UserError(
                f"{options.input}: {fs.size(path)} bytes, over the limit of {config.ingest.max_file_mb} MB"
                " (ingest.max_file_mb)"
            )
        return _prediction(spark, stage, names, options, lake.read_bytes(url))
    return _folder(
        spark, ImageClassifier(run=run.url, inputCol="id", maxFileMb=config.ingest.max_file_mb), names, config, url
    )


def _download(url: str, max_mb: int) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            data = answer.read(max_mb * 2**20 + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise UserError(f"{url}: cannot be fetched: {getattr(error, 'reason', error)}") from error
    if len(data) > max_mb * 2**20:
        raise UserError(f"{url}: over the limit of {max_mb} MB (ingest.max_file_mb)")
    return data


def _prediction(spark, stage: ImageClassifier, names: list[str], options, data: bytes) -> dict:
    try:
        columns.pixels(data)
    except images.BadImage as error:
        raise UserError(f"{options.input}: {error}") from None
    with batches.at_most(spark, batches.FILES):
        row = stage.transform(spark.createDataFrame([(bytearray(data),)], "content binary")).first()
    return {"image": options.input, "predictions": _top(names, row["probability"].toArray(), options.top)}


def _top(names: list[str], probabilities: np.ndarray, count: int) -> list[dict]:
    return [
        {"class": names[i], "probability": round(float(probabilities[i]), 4)}
        for i in np.argsort(-probabilities, kind="stable")[:count]
    ]


def _folder(spark, stage: ImageClassifier, names: list[str], config: Config, url: str) -> dict:
    files = folder.files(spark, url)
    with progress.part("listing", spark):
        found = files.persist().count()
    predictions = stage.transform(files)
    classes = F.array(*(F.lit(name) for name in names))
    table = predictions.select(
        "id",
        F.element_at(classes, F.col("prediction").cast("int") + 1).alias("class"),
        F.when(F.col("probability").isNotNull(), vector_to_array("probability")).alias("probabilities"),
    )
    target = lake.predictions_url(config)
    with progress.part("predicting", spark, found), tables.replacing(table, target, "predictions") as written:
        counts = {row["class"]: row["count"] for row in written.groupBy("class").count().collect()}
    files.unpersist()
    rejected = counts.pop(None, 0)
    return {"images": sum(counts.values()), "rejected": rejected, "classes": counts, "predictions": target}
