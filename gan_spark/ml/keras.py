"""Spark ML stages and SQL functions over Keras models in files."""

import functools
import importlib
import os
import tempfile
from collections.abc import Callable

import numpy as np
from pyspark import keyword_only
from pyspark.ml import Transformer
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import functions as F

from .. import lake, networks
from ..config import UserError
from ..data import batches, images
from . import carry, columns


class _ModelFile(
    columns.HandlesInvalid, Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable, DefaultParamsWritable
):
    modelFile = Param(
        Params._dummy(),
        "modelFile",
        "path or URL of a Keras model, .keras or .h5, with one input and one output",
        TypeConverters.toString,
    )

    def _applied(self, frame, column, prepare: Callable[[tuple], Callable]):
        """`frame` with outputCol: the model's output, flattened, a vector. `prepare` is given the shape of the model's
        input.
        """
        url = lake.to_url(self.getOrDefault(self.modelFile))
        carried, shape = carry.model_file(frame.sparkSession, networks.read_file(url), url)
        answered = self._answered(frame, "_output", column, prepare(shape), carried)
        vector = F.when(F.col("_output").isNotNull(), array_to_vector("_output"))
        return answered.withColumn(self.getOutputCol(), vector).drop("_output")


class KerasTransformer(_ModelFile):
    """Vectors through a Keras model.

    inputCol: vector, or array of numbers, as many as the model's input holds. outputCol: vector.
    handleInvalid: what becomes of a row whose input is null or of another size: "keep", its output is null; "skip", it
    is left out; "error".
    """

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "features",
        outputCol: str = "output",
        modelFile: str = "",
        handleInvalid: str = "keep",
    ):
        super().__init__()
        self._setDefault(inputCol="features", outputCol="output")
        self._set(**self._input_kwargs)

    def _transform(self, frame):
        name = self.getInputCol()
        self._checked(frame, name, ("numbers",))
        column = (
            F.when(frame[name].isNotNull(), vector_to_array(frame[name]))
            if dict(frame.dtypes)[name] == "vector"
            else frame[name].cast("array<double>")
        )
        return self._applied(frame, column, lambda shape: functools.partial(_shaped, shape))


def _shaped(shape: tuple, value) -> np.ndarray:
    array = np.asarray(value, np.float32)
    if array.size != int(np.prod(shape)):
        raise images.BadImage(f"{array.size} numbers; the model takes {int(np.prod(shape))}")
    return array.reshape(shape)


class KerasImageFileTransformer(_ModelFile):
    """Files, named by a column of URIs, through a loader of yours and a Keras model.

    inputCol: string. outputCol: vector.
    handleInvalid: what becomes of a row whose URI is null, or where the loader raises: "keep", its output is null;
    "skip", it is left out; "error".
    imageLoader: URI -> array of the model's input, [h, w, c] or [1, h, w, c], scaled as the model wants it. A function,
    or "module:function"; one that cannot be imported by name on another machine (a lambda, a function of a notebook)
    works, but cannot be saved.
    """

    imageLoader = Param(
        Params._dummy(), "imageLoader", "module:function that makes an array of a URI", TypeConverters.toString
    )

    @keyword_only
    def __init__(
        self,
        *,
        inputCol: str = "uri",
        outputCol: str = "output",
        modelFile: str = "",
        imageLoader: str | Callable = "",
        handleInvalid: str = "keep",
    ):
        super().__init__()
        self._setDefault(inputCol="uri", outputCol="output")
        values = dict(self._input_kwargs)
        loader = values.pop("imageLoader", "")
        self._set(**values)
        self.setImageLoader(loader)

    def setImageLoader(self, loader: str | Callable) -> "KerasImageFileTransformer":
        self._loader = None if isinstance(loader, str) else loader
        return self._set(
            imageLoader=loader if isinstance(loader, str) else f"{loader.__module__}:{loader.__qualname__}"
        )

    def _transform(self, frame):
        self._checked(frame, self.getInputCol(), ("string",))
        loader = self._loader or _named(self.getOrDefault(self.imageLoader))
        return self._applied(frame, frame[self.getInputCol()], lambda shape: functools.partial(_loaded, loader, shape))

    def write(self):
        name = self.getOrDefault(self.imageLoader)
        if self._loader is not None and (name.startswith("__main__:") or _named(name, quiet=True) is not self._loader):
            raise UserError(
                f"imageLoader = {name!r}: it cannot be imported by that name where the stage is loaded; put it in a"
                " module that is there"
            )
        return super().write()


def _named(name: str, quiet: bool = False) -> Callable | None:
    module, _, function = name.partition(":")
    try:
        return functools.reduce(getattr, function.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        if quiet:
            return None
        raise UserError(f"imageLoader = {name!r}: expected module:function that can be imported: {error}") from error


def _loaded(loader: Callable, shape: tuple, uri: str) -> np.ndarray:
    try:
        array = np.asarray(loader(uri), np.float32)
    except Exception as error:  # It is the user's, and may raise anything.
        raise images.BadImage(f"the loader raised {type(error).__name__}: {error}") from None
    array = array[0] if array.ndim == len(shape) + 1 and array.shape[0] == 1 else array
    if array.ndim != len(shape) or any(
        expected not in (None, side) for expected, side in zip(shape, array.shape, strict=True)
    ):
        raise images.BadImage(f"the loader gave an array of {array.shape}; the model takes {shape}")
    return array


def register_keras_image_udf(
    spark, name: str, model, preprocessor: Callable[[np.ndarray], np.ndarray] | None = None
) -> None:
    """Makes `name(image)` an SQL function: image column to array<double>, the model's output, null where an image
    cannot be used.

    `model` is a Keras model, or the path or URL of one in a file. `preprocessor` makes its input of uint8 pixels
    [h, w, 1 or 3]; where none is given, images are resized to the model's input, and keep values from 0 to 255.
    Jobs of the session hand Python few rows at once from now on (`batches.lower`).
    """
    if isinstance(model, str):
        url = lake.to_url(model)
        data = networks.read_file(url)
    else:
        url = f"{model.name}.keras"
        with tempfile.TemporaryDirectory() as folder:
            model.save(os.path.join(folder, url))
            with open(os.path.join(folder, url), "rb") as stream:
                data = stream.read()
    carried, shape = carry.model_file(spark, data, url)
    if len(shape) != 3:
        raise UserError(f"{url}: expected a model of images, found an input of {shape}")
    if preprocessor is None and None in shape:
        raise UserError(f"{url}: its input is {shape}; a model for images of any size needs a preprocessor")
    prepare = functools.partial(_prepared, preprocessor or functools.partial(_resized, shape), shape)
    batches.lower(spark, batches.FILES)
    spark.udf.register(name, columns.udf(prepare, carried, spark.sparkContext.accumulator(0)))


def _resized(shape: tuple, pixels: np.ndarray) -> np.ndarray:
    return images.resize(images.convert(pixels, shape[2]), shape[0], shape[1], "stretch", images.BILINEAR)


def _prepared(preprocessor: Callable, shape: tuple, value: bytes | dict) -> np.ndarray:
    return _loaded(preprocessor, shape, columns.pixels(value))
