"""Networks from files of the lake: what they say is checked before anything of them is built, and nothing of them is executed."""

import json
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

from gan_spark import networks
from gan_spark.config import UserError


def small() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(3)
    return tf.keras.Sequential([tf.keras.Input([8, 8, 1]), tf.keras.layers.Conv2D(2, 3), tf.keras.layers.Flatten(), tf.keras.layers.Dense(3)])


def with_code() -> tf.keras.Model:
    return tf.keras.Sequential([tf.keras.Input([4]), tf.keras.layers.Lambda(lambda x: x * 2)])


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_a_saved_network_is_loaded(tmp_path, kind):
    path, network, x = str(tmp_path / f"network.{kind}"), small(), np.ones([2, 8, 8, 1], np.float32)
    network.save(path)
    np.testing.assert_allclose(networks.load_file("file://" + path)(x), network(x), rtol=1e-5)


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_one_that_carries_code_is_refused(tmp_path, kind):
    path = str(tmp_path / f"network.{kind}")
    with_code().save(path)
    with pytest.raises(UserError, match="it has Lambda layers, which are code from the lake"):
        networks.load_file("file://" + path)


def test_a_name_cannot_be_hidden_behind_escapes(tmp_path):
    plain, hidden = str(tmp_path / "plain.keras"), str(tmp_path / "hidden.keras")
    with_code().save(plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(hidden, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b'"Lambda"', b'"\\u004cambda"') if name == "config.json" else data)
    with pytest.raises(UserError, match="it has Lambda layers"):
        networks.load_file("file://" + hidden)


def test_files_that_are_not_networks_are_named(tmp_path):
    for name, data, message in (("a.keras", b"PK not a zip", "not a Keras model file"), ("a.h5", b"nothing", "not a Keras model file"), ("a.pkl", b"x", r"expected a Keras model file \(.keras or .h5\)")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            networks.load_file(f"file://{tmp_path}/{name}")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["kernel"] = np.ones(3)
    with pytest.raises(UserError, match="not a Keras model file"):
        networks.load_file(f"file://{tmp_path}/weights.h5")
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Nothing", "config": {}})
    with pytest.raises(UserError, match="cannot be loaded"):
        networks.load_file(f"file://{tmp_path}/odd.h5")


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = str(tmp_path / "vgg16.weights.h5")
    tf.keras.applications.VGG16(weights=None, include_top=False).save_weights(path)
    with pytest.raises(UserError, match="does not fit VGG19"):
        networks.load("VGG19", path, include_top=False)
    (tmp_path / "text.h5").write_bytes(b"not weights")
    with pytest.raises(UserError, match="text.h5: does not fit VGG19"):
        networks.load("VGG19", str(tmp_path / "text.h5"), include_top=False)
    with pytest.raises(UserError, match="no network 'VGG99' in Keras .*InceptionV3"):
        networks.load("VGG99", "")
