"""Keras's own networks by name, with weights by name or from a file in the lake."""

import contextlib
import functools
import inspect
import itertools
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator

import tensorflow as tf

from . import lake
from .config import UserError

# Where Keras's public functions and classes are; those that `_known` takes compute on arrays alone.
_FUNCTIONS = ("keras.activations", "keras.losses", "keras.metrics", "keras.regularizers")
_CLASSES = tuple(
    f"keras.{name}" for name in "constraints initializers layers layers.experimental mixed_precision models optimizers optimizers.legacy optimizers.schedules".split()
)
# What files name besides: values that are written as classes, what is Keras's own but not public, and TensorFlow's initializers, of which EfficientNetV2 has one.
_OWN = ("TensorShape", "__bytes__", "__ellipsis__", "__numpy__", "__tensor__", "__tuple__", "Functional", "CustomScaleLayer", "Custom>CustomScaleLayer")
_OWN_FUNCTIONS = ("leaky_relu", "log_softmax", "relu6", "silu")
_OWN_MODULES = (
    "keras",
    "keras.src.applications.inception_resnet_v2",
    "keras.src.engine.functional",
    "keras.src.layers.core.tf_op_layer",
    "tensorflow.python.ops.init_ops_v2",
)
# TensorFlow's functions of tensors alone, by the names that Keras writes. So are all of `math.` and `__operators__.`, but not of `nn.`, where a candidate sampler reads files.
_OPERATIONS = frozenset(
    """
    argsort batch_gather batch_to_space boolean_mask broadcast_to cast clip_by_norm clip_by_value complex concat convert_to_tensor einsum ensure_shape expand_dims eye fill
    floor_div gather gather_nd identity linspace meshgrid norm one_hot ones ones_like pad range rank realdiv repeat reshape reverse roll saturate_cast scatter_nd sequence_mask shape size slice
    sort space_to_batch split squeeze stack stop_gradient strided_slice tensordot tile transpose unstack where zeros zeros_like
    image.adjust_brightness image.adjust_contrast image.adjust_gamma image.adjust_hue image.adjust_saturation image.central_crop image.convert_image_dtype image.crop_and_resize
    image.crop_to_bounding_box image.extract_patches image.flip_left_right image.flip_up_down image.grayscale_to_rgb image.hsv_to_rgb image.pad_to_bounding_box
    image.per_image_standardization image.resize image.resize_area image.resize_bicubic image.resize_bilinear image.resize_nearest_neighbor image.resize_with_crop_or_pad
    image.resize_with_pad image.rgb_to_grayscale image.rgb_to_hsv image.rgb_to_yiq image.rgb_to_yuv image.rot90 image.transpose image.yiq_to_rgb image.yuv_to_rgb
    linalg.band_part linalg.diag linalg.diag_part linalg.matmul linalg.matrix_transpose linalg.matvec linalg.trace
    nn.atrous_conv2d nn.avg_pool nn.avg_pool1d nn.avg_pool2d nn.avg_pool3d nn.batch_normalization nn.bias_add nn.conv1d nn.conv1d_transpose nn.conv2d nn.conv2d_transpose nn.conv3d
    nn.conv3d_transpose nn.convolution nn.crelu nn.depth_to_space nn.depthwise_conv2d nn.dropout nn.elu nn.gelu nn.l2_normalize nn.leaky_relu nn.local_response_normalization
    nn.log_softmax nn.max_pool nn.max_pool1d nn.max_pool2d nn.max_pool3d nn.moments nn.relu nn.relu6 nn.selu nn.separable_conv2d nn.sigmoid nn.silu nn.softmax nn.softplus
    nn.softsign nn.space_to_depth nn.swish nn.tanh nn.top_k nn.weighted_moments
    random.normal random.truncated_normal random.uniform
    """.split()
)


def load(name: str, weights: str, **options) -> tf.keras.Model:
    """`tf.keras.applications.<name>`; `weights` is "imagenet", "" for random ones, or the URL of a weights file (.h5).

    A weights file holds arrays alone; nothing in it is executed.
    """
    make = getattr(tf.keras.applications, name, None)
    if not callable(make):
        known = sorted(each for each in dir(tf.keras.applications) if callable(getattr(tf.keras.applications, each)))
        raise UserError(f"no network {name!r} in Keras (known: {', '.join(known)})")
    if weights in ("imagenet", ""):
        try:
            return make(weights=weights or None, **options)
        except Exception as error:  # Keras raises a bare Exception where it cannot fetch.
            raise UserError(f"{name}: its {weights!r} weights cannot be fetched: {error}; name a weights file instead") from error
    url = lake.to_url(weights)
    if not lake.exists(url):
        raise UserError(f"{url}: no such file; expected 'imagenet' or a Keras weights file (.h5) of {name}")
    model = make(weights=None, **options)
    with _local(lake.read_bytes(url), "network.h5") as path:
        try:
            model.load_weights(_named_after_its_format(path))
        except (ValueError, OSError, KeyError) as error:
            raise UserError(f"{url}: does not fit {name}: {_misfit(path, model) or error}") from error
    return model


def _named_after_its_format(path: str) -> str:
    """Keras tells its two formats of weights files apart by their names; the older one, its published weights', lists `layer_names`."""
    import h5py

    with h5py.File(path, "r") as file:
        if "layer_names" in file.attrs or "model_weights" in file:
            return path
    os.rename(path, path.removesuffix(".h5") + ".weights.h5")
    return path.removesuffix(".h5") + ".weights.h5"


def _misfit(path: str, model: tf.keras.Model) -> str:
    """The first layer whose weights are not the file's; "" where the file does not list its layers."""
    import h5py

    def text(name) -> str:
        return name.decode() if isinstance(name, bytes) else name

    if not os.path.exists(path) or not h5py.is_hdf5(path):  # renamed, as it is of the newer format; or no weights file at all
        return ""
    with h5py.File(path, "r") as file:
        root = file["model_weights"] if "model_weights" in file else file
        if "layer_names" not in root.attrs:
            return ""
        layers = [(text(name), root[text(name)]) for name in root.attrs["layer_names"]]
        found = [(name, [layer[text(weight)].shape for weight in layer.attrs["weight_names"]]) for name, layer in layers if len(layer.attrs["weight_names"])]
    wanted = [(layer.name, [tuple(weight.shape) for weight in layer.weights]) for layer in model.layers if layer.weights]
    for (layer, shapes), (other, others) in itertools.zip_longest(wanted, found, fillvalue=("none", [])):
        if shapes != others:
            return f"its layer {layer!r} has weights of {shapes}, where the file has {other!r} with {others}"
    return ""


def load_file(url: str) -> tf.keras.Model:
    """A Keras model from a file in the lake, .keras or .h5.

    Its parts are Keras's own layers and plain operations on tensors; one with others (Lambda layers, or operations that touch files) is refused before it is built.
    """
    return from_bytes(read_file(url), url)


def read_file(url: str) -> bytes:
    if os.path.splitext(url)[1] not in (".keras", ".h5"):
        raise UserError(f"{url}: expected a Keras model file (.keras or .h5)")
    if not lake.exists(url):
        raise UserError(f"{url}: no such file")
    return lake.read_bytes(url)


def from_bytes(data: bytes, url: str) -> tf.keras.Model:
    """The model in a file's bytes; `url` says its kind, and is named in errors. `UserError` as of `load_file`."""
    kind = os.path.splitext(url)[1]
    with _local(data, f"network{kind}") as path:
        try:
            config = _config(path, kind)
        except Exception as error:  # Hostile bytes raise many types.
            raise UserError(f"{url}: not a Keras model file: {error}") from error
        if found := next(filter(None, map(_foreign, _parts(config))), ""):
            raise UserError(f"{url}: expected Keras's own layers and plain operations on tensors, found {found}, by which a file could run code or touch other files; save the model without it")
        try:
            return tf.keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # Keras raises many types.
            raise UserError(f"{url}: cannot be loaded: {error}") from error


def _config(path: str, kind: str) -> dict:
    """The model's architecture, parsed as Keras parses it."""
    if kind == ".keras":
        with zipfile.ZipFile(path) as archive:
            archive.getinfo("model.weights.h5")  # Where there is none, Keras unpickles a model.weights.npz.
            config = json.loads(archive.read("config.json"))
        config.pop("compile_config", None)  # Keras drops it too where it does not compile; it may name losses of the user's own.
        return config
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs["model_config"]
    return json.loads(text.decode() if isinstance(text, bytes) else text)


def _parts(config) -> Iterator[dict]:
    """Every JSON object in `config`, itself included."""
    held = [config]
    while held:
        part = held.pop()
        if isinstance(part, dict):
            yield part
            held.extend(part.values())
        elif isinstance(part, list):
            held.extend(part)


def _foreign(part: dict) -> str:
    """What in one object of a model's config could make Keras run code that is not its own, or touch files; "" where nothing could."""
    classes, functions, modules = _known()
    for key, value in part.items():
        if key.endswith("activation") and isinstance(value, str) and value not in functions + classes:
            return f"{key} {value!r}"
        if key == "vocabulary" and isinstance(value, str):
            return f"vocabulary file {value!r}"
    if "class_name" not in part:
        return ""
    kind, config, module = part["class_name"], part.get("config"), part.get("module")
    inner = config if isinstance(config, dict) else {}
    name, of, registered = part.get("name") or inner.get("name"), module, (None, kind, f"Custom>{kind}")
    if kind == "function":
        known, name, registered = config in functions, config, (None, config)
    elif kind in ("TFOpLambda", "SlicingOpLambda"):
        of = inner.get("function")
        plain = str(of).removeprefix("compat.v1.")
        known = plain in _OPERATIONS or plain.startswith(("math.", "__operators__."))
    else:
        known = kind in classes
    if known and module in modules and part.get("registered_name") in registered:
        return ""
    return str(kind) + (f" {name!r}" if name else "") + (f" of {of!r}" if of else "")


@functools.cache
def _known() -> tuple[tuple, tuple, tuple]:
    """(The classes that a file may name, the functions, the modules that it may say they are in)."""

    def public(among) -> Iterator[tuple[str, object]]:
        for path in among:
            module = functools.reduce(getattr, path.split("."), tf)
            yield from ((name, getattr(module, name)) for name in dir(module) if not name.startswith("_"))

    classes = {name: each for name, each in public(_FUNCTIONS + _CLASSES) if inspect.isclass(each)}
    del classes["Lambda"], classes["DenseFeatures"]  # The former holds code, the latter columns that may read files.
    functions = {name for name, each in public(_FUNCTIONS) if inspect.isfunction(each)} - {"deserialize", "get", "serialize"}
    modules = {each.__module__ for each in classes.values()}
    return (*classes, *_OWN), (*functions, *_OWN_FUNCTIONS), (None, "builtins", *_FUNCTIONS, *_CLASSES, *modules, *_OWN_MODULES)


@contextlib.contextmanager
def _local(data: bytes, name: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, name)
        with open(path, "wb") as out:
            out.write(data)
        yield path


def preprocess(name: str):
    """The function from RGB in [0, 255] to what the Keras network `name` expects."""
    return sys.modules[getattr(tf.keras.applications, name).__module__].preprocess_input
