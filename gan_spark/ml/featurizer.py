"""Spark ML stages over the networks of `tf.keras.applications`: features for transfer learning, and ImageNet's classes.

What sparkdl's stages of these names did on Spark 2. Images are resized by Pillow's bilinear filter and scaled as
the network expects, so features are those of Keras itself on `load_img(..., interpolation="bilinear")`.
"""

import functools

import numpy as np
from pyspark import keyword_only
from pyspark.ml import Transformer
from pyspark.ml.functions import array_to_vector
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import functions as F

from .. import lake
from ..config import UserError
from . import carry, columns


class _NamedNetwork(
    columns.HandlesInvalid, Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable, DefaultParamsWritable
):
    modelName = Param(Params._dummy(), "modelName", f"one of {', '.join(carry.SIZES)}", TypeConverters.toString)
    weights = Param(
        Params._dummy(),
        "weights",
        "'imagenet', which Keras fetches on the driver; path or URL of a weights file (.h5); or empty for random ones",
        TypeConverters.toString,
    )
    seed = Param(Params._dummy(), "seed", "of random weights", TypeConverters.toInt)

    def __init__(self):
        super().__init__()
        self._setDefault(modelName="InceptionV3", inputCol="image", weights="imagenet", seed=0)

    def _with_output(self, frame, name: str, output: str):
        """`frame` with the column `name`, array<double>: the network's output for each image."""
        column = self.getInputCol()
        self._checked(frame, column)
        network_name = self.getOrDefault(self.modelName)
        network = carry.KerasNetwork(
            network_name, output, self.getOrDefault(self.weights), self.getOrDefault(self.seed)
        )
        carried = carry.carry_network(frame.sparkSession, network)
        return self._answered(frame, name, frame[column], functools.partial(_prepare, network_name), carried)


def _prepare(name: str, value: bytes | dict) -> np.ndarray:
    return carry.fitted(name, columns.pixels(value))


class DeepImageFeaturizer(_NamedNetwork):
    """Images to what a deep network makes of them, a vector an image: 2,048 numbers for InceptionV3.

    inputCol: binary (encoded images, or the `image` column of a dataset) or Spark's image struct.
    outputCol: vector.
    handleInvalid: what becomes of a row whose image is null or cannot be decoded: "keep", its output is null; "skip",
    it is left out; "error" (`rejected` counts those that cannot be decoded, the executors' log says why).
    layer: a layer by name, flattened; empty for the last convolution's output averaged over the image.
    """

    layer = Param(
        Params._dummy(),
        "layer",
        "name of the layer whose output is wanted; empty for the pooled features",
        TypeConverters.toString,
    )

    @keyword_only
    def __init__(
        self,
        *,
        modelName: str = "InceptionV3",
        inputCol: str = "image",
        outputCol: str = "features",
        weights: str = "imagenet",
        layer: str = "",
        seed: int = 0,
        handleInvalid: str = "keep",
    ):
        super().__init__()
        self._setDefault(outputCol="features", layer="")
        self._set(**self._input_kwargs)

    def _transform(self, frame):
        featurized = self._with_output(frame, "_features", self.getOrDefault(self.layer) or "features")
        vector = F.when(F.col("_features").isNotNull(), array_to_vector("_features"))
        return featurized.withColumn(self.getOutputCol(), vector).drop("_features")


class DeepImagePredictor(_NamedNetwork):
    """Images to ImageNet's classes.

    inputCol: as for DeepImageFeaturizer.
    outputCol: the `topK` most probable, array<struct<class string, description string, probability double>>; with
    `decodePredictions` false a vector of all probabilities.
    handleInvalid: as for DeepImageFeaturizer.
    classIndex: JSON file {"0": [class, description], ...} as Keras's; empty for Keras's own, which it fetches on the
    driver.
    """

    topK = Param(Params._dummy(), "topK", "how many classes are given", TypeConverters.toInt)
    decodePredictions = Param(
        Params._dummy(), "decodePredictions", "whether classes are named", TypeConverters.toBoolean
    )
    classIndex = Param(
        Params._dummy(),
        "classIndex",
        "path or URL of the names' JSON file; empty for Keras's own",
        TypeConverters.toString,
    )

    @keyword_only
    def __init__(
        self,
        *,
        modelName: str = "InceptionV3",
        inputCol: str = "image",
        outputCol: str = "predictions",
        weights: str = "imagenet",
        topK: int = 5,
        decodePredictions: bool = True,
        classIndex: str = "",
        seed: int = 0,
        handleInvalid: str = "keep",
    ):
        super().__init__()
        self._setDefault(outputCol="predictions", topK=5, decodePredictions=True, classIndex="")
        self._set(**self._input_kwargs)

    def _transform(self, frame):
        names = self.class_names() if self.getOrDefault(self.decodePredictions) else None
        predictions = self._with_output(frame, "_probabilities", "predictions")
        known = F.col("_probabilities").isNotNull()
        if names is None:
            output = array_to_vector("_probabilities")
        else:
            output = _top(names, self.getOrDefault(self.topK))("_probabilities")
        return predictions.withColumn(self.getOutputCol(), F.when(known, output)).drop("_probabilities")

    def class_names(self) -> list[list[str]]:
        """[class, description] by index."""
        path = self.getOrDefault(self.classIndex)
        if not path:
            from tensorflow.keras.applications.imagenet_utils import decode_predictions

            try:
                answers = decode_predictions(np.eye(1000, dtype=np.float32), top=1)
                return [[name, description] for ((name, description, _),) in answers]
            except Exception as error:  # Keras raises a bare Exception where it cannot fetch.
                raise UserError(
                    f"classIndex is empty, and Keras's own file of class names cannot be fetched: {error}; name a file"
                ) from error
        url = lake.to_url(path)
        try:
            table = lake.read_json(url)
            return [[str(name) for name in table[str(index)]] for index in range(len(table))]
        except FileNotFoundError:
            raise UserError(f"classIndex = {path!r}: no such file") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f'classIndex = {path!r}: expected JSON of the form {{"0": [class, description], ...}}: {error!r}'
            ) from None


def _top(names: list[list[str]], count: int):
    @F.udf("array<struct<class string, description string, probability double>>")
    def top(probabilities):
        if probabilities is None:
            return None
        if len(probabilities) != len(names):
            raise ValueError(f"classIndex names {len(names)} classes; the network has {len(probabilities)}")
        order = np.argsort(-np.array(probabilities), kind="stable")[:count]
        return [(*names[index][:2], float(probabilities[index])) for index in order]

    return top
