"""Keras's own networks by name, with weights by name or from a file in the lake."""

import contextlib
import fcntl
import itertools
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator

import tensorflow as tf

from .. import lake
from ..config import NotFetched, UserError
from . import hdf5, safety

_WEIGHTS = "model.weights.h5"  # in a .keras file


def load(name: str, weights: str, **options) -> tf.keras.Model:
    """The network `tf.keras.applications.<name>`.

    `weights` is "imagenet", "" for random ones, or the URL of a weights file (.h5). Such a file
    holds arrays alone; nothing in it is executed.
    """
    make = getattr(tf.keras.applications, name, None)
    if not callable(make):
        public = dir(tf.keras.applications)
        known = sorted(public_name for public_name in public if callable(getattr(tf.keras.applications, public_name)))
        raise UserError(f"no network {name!r} in Keras (known: {', '.join(known)})")
    if weights in ("imagenet", ""):
        try:
            with _one_at_a_time():
                return make(weights=weights or None, **options)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
        except Exception as error:  # Keras raises a bare Exception where it cannot fetch.
            raise NotFetched(
                f"{name}: its {weights!r} weights cannot be fetched: {error}; name a weights file instead"
            ) from error
    url = lake.to_url(weights)
    if not lake.exists(url):
        raise UserError(f"{url}: no such file; expected 'imagenet' or a Keras weights file (.h5) of {name}")
    model = make(weights=None, **options)
    with _local(lake.read_bytes(url), "network.h5") as path:
        try:
            _check_arrays(path, ".h5", url)
            model.load_weights(_named_after_its_format(path))
        except UserError:
            raise
        except Exception as error:  # Hostile bytes raise many types.
            raise UserError(f"{url}: does not fit {name}: {_misfit(path, model) or error}") from error
    return model


@contextlib.contextmanager
def _one_at_a_time() -> Iterator[None]:
    """A lock on Keras's downloads, which two processes of a machine would spoil for each other: both write one file."""
    with open(os.path.join(tempfile.gettempdir(), f"gan_spark-keras-{os.getuid()}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _named_after_its_format(path: str) -> str:
    """The path of a weights file once it is renamed as its format asks: Keras tells its two formats apart by names.

    The older one, of its published weights, lists `layer_names`.
    """
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

    # Renamed, as it is of the newer format; or no weights file at all.
    if not os.path.exists(path) or not h5py.is_hdf5(path):
        return ""
    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            return ""
        layers = [(text(name), root[text(name)]) for name in root.attrs["layer_names"]]
        file_shapes = [
            (name, [layer[text(weight)].shape for weight in layer.attrs["weight_names"]])
            for name, layer in layers
            if len(layer.attrs["weight_names"])
        ]
    model_shapes = [
        (layer.name, [tuple(weight.shape) for weight in layer.weights]) for layer in model.layers if layer.weights
    ]
    pairs = itertools.zip_longest(model_shapes, file_shapes, fillvalue=("none", []))
    for (layer, shapes), (file_layer, in_file) in pairs:
        if shapes != in_file:
            return f"its layer {layer!r} has weights of {shapes}, where the file has {file_layer!r} with {in_file}"
    return ""


def load_file(url: str) -> tf.keras.Model:
    """A Keras model from a file in the lake, .keras or .h5.

    Its parts are Keras's own layers and plain operations on tensors; one with others (Lambda layers, or operations that
    touch files) is refused before it is built.
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
            _check_arrays(path, kind, url)
            config = _config(path, kind)
        except UserError:
            raise
        except Exception as error:  # Hostile bytes raise many types.
            raise UserError(f"{url}: not a Keras model file: {error}") from error
        if foreign := safety.foreign_part(config):
            raise UserError(
                f"{url}: expected Keras's own layers and plain operations on tensors, found {foreign}, by which a file"
                " could run code or touch other files; save the model without it"
            )
        try:
            return tf.keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:  # Keras raises many types.
            raise UserError(f"{url}: cannot be loaded: {error}") from error


def _config(path: str, kind: str) -> dict:
    """The model's architecture, parsed as Keras parses it."""
    if kind == ".keras":
        with zipfile.ZipFile(path) as archive:
            archive.getinfo(_WEIGHTS)  # Where there is none, Keras unpickles a model.weights.npz.
            config = json.loads(archive.read("config.json"))
        # Keras drops it too where it does not compile; it may name losses of the user's own.
        config.pop("compile_config", None)
        return config
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs["model_config"]
    return json.loads(text.decode() if isinstance(text, bytes) else text)


def _check_arrays(path: str, kind: str, url: str) -> None:
    """`UserError` where the arrays in a file of weights, or of a whole model, are in other files, or are far more than
    it could hold.
    """
    size = os.path.getsize(path)
    if kind == ".keras":
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())  # Keras may unpack all of it.
            if unpacked > hdf5.limit(size):
                foreign = f"{unpacked:,} bytes packed into {size:,}"
            else:
                with archive.open(_WEIGHTS) as weights:
                    foreign = hdf5.foreign_part(weights, size)
    else:
        foreign = hdf5.foreign_part(path, size)
    if foreign:
        raise UserError(f"{url}: expected a file that holds a network's arrays itself, found {foreign}; save it anew")


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
