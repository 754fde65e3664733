"""A run's classifier as a stage of a Spark ML pipeline."""

import functools
import posixpath
from collections.abc import Callable

import numpy as np
from pyspark import keyword_only
from pyspark.ml import Transformer
from pyspark.ml.functions import array_to_vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasPredictionCol, HasProbabilityCol
from pyspark.ml.util import (
    DefaultParamsReadable,
    DefaultParamsReader,
    DefaultParamsWritable,
    DefaultParamsWriter,
)
from pyspark.sql import functions as F

from .. import lake, models
from ..config import UserError
from ..data import images
from ..data.sources import folder
from ..runs import loading
from ..runs.store import Run
from . import carry, columns


class ImageClassifier(
    columns.HandlesInvalid,
    Transformer,
    HasInputCol,
    HasPredictionCol,
    HasProbabilityCol,
    DefaultParamsReadable,
    DefaultParamsWritable,
):
    """Classes of images by the classifier of a run: a fine-tuned network (`classifier`), a semi-supervised GAN
    (`ssgan`) or a `lenet`.

    inputCol: binary (encoded images of any size, or the `image` column of a dataset), Spark's image struct, or string
    (paths or URLs of image files, which tasks read; those over `maxFileMb` MB cannot be used).
    predictionCol: index of the class, a double. probabilityCol: vector, one value a class.
    handleInvalid: what becomes of a row whose image is null or cannot be decoded: "keep", both are null; "skip", it is
    left out; "error" (`rejected` counts those that cannot be decoded, the executors' log says why).
    `checkpoint` 0 is the best on split validation at the time of `transform`, or the newest where none was measured.
    """

    run = Param(Params._dummy(), "run", "URL or path of the run, <lake>/runs/<run>", TypeConverters.toString)
    checkpoint = Param(
        Params._dummy(),
        "checkpoint",
        "step of the checkpoint; 0 for the best on validation, or the newest where none was measured",
        TypeConverters.toInt,
    )

    maxFileMb = Param(
        Params._dummy(), "maxFileMb", "larger files are not read, where inputCol names files", TypeConverters.toInt
    )

    @keyword_only
    def __init__(
        self,
        *,
        run: str = "",
        inputCol: str = "image",
        predictionCol: str = "prediction",
        probabilityCol: str = "probability",
        checkpoint: int = 0,
        maxFileMb: int = 64,
        handleInvalid: str = "keep",
    ):
        super().__init__()
        self._setDefault(
            inputCol="image", predictionCol="prediction", probabilityCol="probability", checkpoint=0, maxFileMb=64
        )
        self._set(**self._input_kwargs)

    def write(self):
        return _Writer(self)

    @classmethod
    def read(cls):
        return _Reader(cls)

    def classes(self) -> list[str]:
        """Names of the classes, by index."""
        return self._run().record()["dataset"]["classes"]

    def _run(self) -> Run:
        return Run(lake.to_url(self.getOrDefault(self.run)))

    def _transform(self, frame):
        column, run, spark = self.getInputCol(), self._run(), frame.sparkSession
        self._checked(frame, column, ("image", "string"))
        record = run.record()
        model = record["config"]["model"]
        if not hasattr(models.find(model["name"]), "classify"):
            raise UserError(f"run {run.url}: model {model['name']!r} is not a classifier")
        checkpoint = loading.read_checkpoint(spark, run, run.preferred(self.getOrDefault(self.checkpoint)))
        shape = (model["image_size"], model["image_size"], model["channels"])
        carried = carry.Carried(
            checkpoint.url + checkpoint.digest, checkpoint.files, functools.partial(_classify, checkpoint)
        )
        fit = record["dataset"].get("fit", "crop")  # As what it learnt from was fitted.
        prepare = functools.partial(_fitted, shape, fit, self.getOrDefault(self.maxFileMb))
        classified = self._answered(frame, "_probability", frame[column], prepare, carried)
        index = F.expr("array_position(_probability, array_max(_probability)) - 1").cast("double")
        vector = F.when(F.col("_probability").isNotNull(), array_to_vector("_probability"))
        predictions = classified.withColumn(self.getPredictionCol(), index)
        return predictions.withColumn(self.getProbabilityCol(), vector).drop("_probability")


_FROM_HERE = "gan_spark.run"  # in a saved stage: the way from its folder to the run, where both are in one lake


class _Writer(DefaultParamsWriter):
    def saveImpl(self, path: str) -> None:
        run, stage, way = self.instance._run(), lake.to_url(path), None
        if lake.reference(run.root, stage, run.url) != run.url:
            root = lake.canonical(run.root)
            way = posixpath.relpath(run.url[len(run.root) :], lake.canonical(stage)[len(root) :])
        DefaultParamsWriter.saveMetadata(self.instance, path, self.sc, {_FROM_HERE: way} if way else None)


class _Reader(DefaultParamsReader):
    def load(self, path: str):
        stage, url = super().load(path), lake.to_url(path)
        way = DefaultParamsReader.loadMetadata(path, self.sc).get(_FROM_HERE)
        if way:
            scheme, separator, place = url.rpartition("://")
            return stage._set(run=scheme + separator + posixpath.normpath(posixpath.join(place, way)))
        return stage._set(run=_moved(stage._run(), url).url)


def _moved(run: Run, stage: str) -> Run:
    """The run of a stage that a former version saved; where its lake was moved with the stage, the run in it."""
    if not lake.exists(run.path("config.json")):
        folder = stage
        while (folder := folder.rpartition("/")[0]).count("/") > 2:
            candidate = Run(lake.join(folder, *run.url.rsplit("/", 2)[1:]))
            if run.url in candidate.names():  # as its record tells where it was
                return candidate
    return run


def _classify(checkpoint: loading.Checkpoint, _) -> Callable[[np.ndarray], np.ndarray]:
    import tensorflow as tf

    apply = tf.function(loading.carried_model(checkpoint).classify, reduce_retracing=True)
    return lambda pixels: apply(tf.constant(images.to_unit(pixels))).numpy()


def _fitted(shape: tuple[int, int, int], fit: str, max_file_mb: int, value: bytes | dict | str) -> np.ndarray:
    if isinstance(value, str):
        value = folder.read(lake.to_url(value), max_file_mb)
    pixels = images.convert(columns.pixels(value), shape[2])
    return images.resize(pixels, *shape[:2], fit)
