"""Keras's own networks by name, with weights by name or from a file in the lake."""

import hashlib
import os
import tempfile

import tensorflow as tf

from . import lake
from .config import UserError


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
    model, data = make(weights=None, **options), lake.read_bytes(url)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, f"{hashlib.sha256(data).hexdigest()[:8]}.weights.h5")
        with open(path, "wb") as out:
            out.write(data)
        try:
            model.load_weights(path)
        except (ValueError, OSError, KeyError) as error:
            raise UserError(f"{url}: does not fit {name}: {error}") from error
    return model
