"""Safety of Keras models in files: the parts of a model's config that are not Keras's own.

Keras builds whatever a file names, and so could be made to run code.
"""

import functools
import inspect
from collections.abc import Iterator

import tensorflow as tf

# Where Keras's public functions and classes are; those that `_known` takes compute on arrays alone.
_FUNCTIONS = ("keras.activations", "keras.losses", "keras.metrics", "keras.regularizers")
_CLASSES = (
    "keras.constraints",
    "keras.initializers",
    "keras.layers",
    "keras.layers.experimental",
    "keras.mixed_precision",
    "keras.models",
    "keras.optimizers",
    "keras.optimizers.legacy",
    "keras.optimizers.schedules",
)
# What files name besides: values that are written as classes, what is Keras's own but not public, and TensorFlow's
# initializers, of which EfficientNetV2 has one.
_OWN = (
    "TensorShape",
    "__bytes__",
    "__ellipsis__",
    "__numpy__",
    "__tensor__",
    "__tuple__",
    "Functional",
    "CustomScaleLayer",
    "Custom>CustomScaleLayer",
)
_OWN_FUNCTIONS = ("leaky_relu", "log_softmax", "relu6", "silu")
_OWN_MODULES = (
    "keras",
    "keras.src.applications.inception_resnet_v2",
    "keras.src.engine.functional",
    "keras.src.layers.core.tf_op_layer",
    "tensorflow.python.ops.init_ops_v2",
)
# TensorFlow's functions of tensors alone, by the names that Keras writes. So are all of `math.` and `__operators__.`,
# but not of `nn.`, where a candidate sampler reads files.
_OPERATIONS = frozenset(
    """
    argsort batch_gather batch_to_space boolean_mask broadcast_to cast clip_by_norm clip_by_value complex concat
    convert_to_tensor einsum ensure_shape expand_dims eye fill floor_div gather gather_nd identity linspace meshgrid
    norm one_hot ones ones_like pad range rank realdiv repeat reshape reverse roll saturate_cast scatter_nd
    sequence_mask shape size slice sort space_to_batch split squeeze stack stop_gradient strided_slice tensordot tile
    transpose unstack where zeros zeros_like image.adjust_brightness image.adjust_contrast image.adjust_gamma
    image.adjust_hue image.adjust_saturation image.central_crop image.convert_image_dtype image.crop_and_resize
    image.crop_to_bounding_box image.extract_patches image.flip_left_right image.flip_up_down image.grayscale_to_rgb
    image.hsv_to_rgb image.pad_to_bounding_box image.per_image_standardization image.resize image.resize_area
    image.resize_bicubic image.resize_bilinear image.resize_nearest_neighbor image.resize_with_crop_or_pad
    image.resize_with_pad image.rgb_to_grayscale image.rgb_to_hsv image.rgb_to_yiq image.rgb_to_yuv image.rot90
    image.transpose image.yiq_to_rgb image.yuv_to_rgb linalg.band_part linalg.diag linalg.diag_part linalg.matmul
    linalg.matrix_transpose linalg.matvec linalg.trace nn.atrous_conv2d nn.avg_pool nn.avg_pool1d nn.avg_pool2d
    nn.avg_pool3d nn.batch_normalization nn.bias_add nn.conv1d nn.conv1d_transpose nn.conv2d nn.conv2d_transpose
    nn.conv3d nn.conv3d_transpose nn.convolution nn.crelu nn.depth_to_space nn.depthwise_conv2d nn.dropout nn.elu
    nn.gelu nn.l2_normalize nn.leaky_relu nn.local_response_normalization nn.log_softmax nn.max_pool nn.max_pool1d
    nn.max_pool2d nn.max_pool3d nn.moments nn.relu nn.relu6 nn.selu nn.separable_conv2d nn.sigmoid nn.silu nn.softmax
    nn.softplus nn.softsign nn.space_to_depth nn.swish nn.tanh nn.top_k nn.weighted_moments random.normal
    random.truncated_normal random.uniform
    """.split()  # noqa: SIM905 (a list of one a line would be a page)
)


def foreign_part(config: dict) -> str:
    """The first part of a model's parsed config that could run code that is not Keras's, or touch files; else ""."""
    return next(filter(None, map(_foreign, _parts(config))), "")


def _parts(config) -> Iterator[dict]:
    """Every JSON object in `config`, itself included."""
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _foreign(part: dict) -> str:
    """What in one object of a model's config could make Keras run code that is not its own, or touch files; else ""."""
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
    name, origin, registered = part.get("name") or inner.get("name"), module, (None, kind, f"Custom>{kind}")
    if kind == "function":
        known, name, registered = config in functions, config, (None, config)
    elif kind in ("TFOpLambda", "SlicingOpLambda"):
        origin = inner.get("function")
        plain = str(origin).removeprefix("compat.v1.")
        known = plain in _OPERATIONS or plain.startswith(("math.", "__operators__."))
    else:
        known = kind in classes
    if known and module in modules and part.get("registered_name") in registered:
        return ""
    return str(kind) + (f" {name!r}" if name else "") + (f" of {origin!r}" if origin else "")


@functools.cache
def _known() -> tuple[tuple, tuple, tuple]:
    """(The classes that a file may name, the functions, the modules that it may say they are in)."""

    def public(paths) -> Iterator[tuple[str, object]]:
        for path in paths:
            module = functools.reduce(getattr, path.split("."), tf)
            yield from ((name, getattr(module, name)) for name in dir(module) if not name.startswith("_"))

    classes = {name: value for name, value in public(_FUNCTIONS + _CLASSES) if inspect.isclass(value)}
    del classes["Lambda"], classes["DenseFeatures"]  # The former holds code, the latter columns that may read files.
    functions = {name for name, value in public(_FUNCTIONS) if inspect.isfunction(value)} - {
        "deserialize",
        "get",
        "serialize",
    }
    modules = {kind.__module__ for kind in classes.values()}
    return (
        (*classes, *_OWN),
        (*functions, *_OWN_FUNCTIONS),
        (None, "builtins", *_FUNCTIONS, *_CLASSES, *modules, *_OWN_MODULES),
    )
