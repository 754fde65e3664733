"""A run's classifier as a stage of a Spark ML pipeline."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from pyspark import keyword_only
from pyspark.ml import Transformer
from pyspark.ml.functions import array_to_vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasPredictionCol, HasProbabilityCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import functions as F

from .. import images, lake, schema, trainer
from ..config import UserError
from ..store import Run

_ANSWER = "prediction double, probability array<double>"
_BATCH = 128


class ImageClassifier(Transformer, HasInputCol, HasPredictionCol, HasProbabilityCol, DefaultParamsReadable, DefaultParamsWritable):
    """Classes of images by the classifier of a run: a semi-supervised GAN (`ssgan`) or a `lenet`.

    inputCol: binary; encoded images of any size, or the `image` column of a dataset in the model's size.
    predictionCol: index of the class, a double. probabilityCol: vector, one value a class.
    Both are null for an image that is null or cannot be decoded.
    `checkpoint` 0 is the newest one at the time of `transform`.
    """

    run = Param(Params._dummy(), "run", "URL or path of the run, <lake>/runs/<run>", TypeConverters.toString)
    checkpoint = Param(Params._dummy(), "checkpoint", "step of the checkpoint; 0 for the newest", TypeConverters.toInt)

    @keyword_only
    def __init__(self, *, run: str = "", inputCol: str = "image", predictionCol: str = "prediction", probabilityCol: str = "probability", checkpoint: int = 0):
        super().__init__()
        self._setDefault(inputCol="image", predictionCol="prediction", probabilityCol="probability", checkpoint=0)
        self._set(**self._input_kwargs)

    def classes(self) -> list[str]:
        """Names of the classes, by index."""
        return self._run().record()["dataset"]["classes"]

    def _run(self) -> Run:
        return Run(lake.to_url(self.getOrDefault(self.run)))

    def _transform(self, frame):
        column = self.getInputCol()
        kinds = dict(frame.dtypes)
        if column not in kinds:
            raise UserError(f"inputCol = {column!r}: not a column (columns: {', '.join(kinds)})")
        if kinds[column] != "binary":
            raise UserError(f"inputCol = {column!r}: expected a binary column of images, found {kinds[column]}")
        run = self._run()
        record = run.record()
        name = record["config"]["model"]["name"]
        if not hasattr(trainer.models.find(name), "classify"):
            raise UserError(f"run {run.url}: model {name!r} is not a classifier")
        with run.checkpoint(self.getOrDefault(self.checkpoint)) as found:
            if found is None:
                raise UserError(f"run {run.url}: no whole checkpoint yet; train it with jobs/train.py")
        url, step = run.url, found[0]

        @F.pandas_udf(_ANSWER)
        def classify(columns: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
            return _classify(url, step, record, columns)

        answered = frame.withColumn("_answer", classify(F.col(column)))
        answered = answered.withColumn(self.getPredictionCol(), F.col("_answer.prediction"))
        probability = F.when(F.col("_answer.probability").isNotNull(), array_to_vector("_answer.probability"))
        return answered.withColumn(self.getProbabilityCol(), probability).drop("_answer")


def _classify(url: str, step: int, record: dict, columns: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
    model = trainer.load_model(url, step, record)
    shape = (model.config.image_size, model.config.image_size, model.config.channels)
    for column in columns:
        pixels = [_pixels(value, shape) for value in column]
        good = [i for i, each in enumerate(pixels) if each is not None]
        predictions, probabilities = [None] * len(pixels), [None] * len(pixels)
        for start in range(0, len(good), _BATCH):
            part = good[start : start + _BATCH]
            values = model.classify(images.to_unit(np.stack([pixels[i] for i in part]))).numpy().astype(float)
            for i, row in zip(part, values):
                predictions[i], probabilities[i] = float(row.argmax()), row.tolist()
        yield pd.DataFrame({"prediction": pd.Series(predictions, dtype="object"), "probability": probabilities})


def _pixels(value: bytes | None, shape: tuple[int, int, int]) -> np.ndarray | None:
    if value is None:
        return None
    header = schema.npy_header(shape)
    if value.startswith(header) and len(value) == len(header) + int(np.prod(shape)):
        return np.frombuffer(value, np.uint8, offset=len(header)).reshape(shape)
    try:
        return images.decode(value, *shape)
    except images.BadImage:
        return None
