"""Networks from files of the lake: what they say is checked before anything of them is built, and nothing of them is
executed.
"""

import io
import json
import os
import zipfile

import h5py
import numpy as np
import pytest
import tensorflow as tf

from gan_spark import networks
from gan_spark.config import UserError


def small() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(3)
    return tf.keras.Sequential(
        [tf.keras.Input([8, 8, 1]), tf.keras.layers.Conv2D(2, 3), tf.keras.layers.Flatten(), tf.keras.layers.Dense(3)]
    )


def with_code() -> tf.keras.Model:
    return tf.keras.Sequential([tf.keras.Input([4]), tf.keras.layers.Lambda(lambda x: x * 2)])


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_a_saved_network_is_loaded(tmp_path, kind):
    path, network, x = str(tmp_path / f"network.{kind}"), small(), np.ones([2, 8, 8, 1], np.float32)
    network.save(path)
    np.testing.assert_allclose(networks.load_file("file://" + path)(x), network(x), rtol=1e-5)


@pytest.mark.fault(
    "data",
    "a Keras file with code",
    "refused before it is built; the error names the layer",
)
@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_one_that_carries_code_is_refused(tmp_path, kind):
    path = str(tmp_path / f"network.{kind}")
    for network in (with_code(), tf.keras.Sequential([tf.keras.Input([4]), tf.keras.layers.Dense(4), with_code()])):
        network.save(path)
        with pytest.raises(
            UserError,
            match=(
                f"network.{kind}: expected Keras's own layers and plain operations on tensors, found Lambda"
                " 'lambda.*'.* save the model without it"
            ),
        ):
            networks.load_file("file://" + path)


def test_a_name_cannot_be_hidden_behind_escapes(tmp_path):
    plain, hidden = str(tmp_path / "plain.keras"), str(tmp_path / "hidden.keras")
    with_code().save(plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(hidden, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b'"Lambda"', b'"\\u004cambda"') if name == "config.json" else data)
    with pytest.raises(UserError, match="found Lambda"):
        networks.load_file("file://" + hidden)


def changed(path: str, change) -> None:
    """`change(config)` in place on what a model's file says of its architecture."""
    if path.endswith(".h5"):
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["model_config"])
            change(config)
            file.attrs["model_config"] = json.dumps(config)
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(parts["config.json"])
    change(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (parts | {"config.json": json.dumps(config)}).items():
            archive.writestr(name, data)


def functional(inner: tf.keras.Model | None = None) -> tf.keras.Model:
    x = tf.keras.Input([4])
    return tf.keras.Model(x, (inner or tf.keras.layers.Dense(3, name="dense"))(x))


@pytest.mark.fault(
    "data",
    "a Keras file with operations that read or write files",
    "refused before it is built; nothing is written",
)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        "io.write_file",
        "compat.v1.write_file",
        "raw_ops.WriteFile",
        "load_op_library",
        "nn.fixed_unigram_candidate_sampler",
        "py_function",
        None,
    ],
)
@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_operations_that_touch_files_are_refused(tmp_path, kind, function, nested):
    path, written = str(tmp_path / f"network.{kind}"), tmp_path / "written"
    functional(functional() if nested else None).save(path)
    call = {"contents": "code"} if function and "rite" in function else {}
    layer = {
        "class_name": "TFOpLambda",
        "name": "op",
        "config": {"name": "op", "function": function},
        "inbound_nodes": [["_CONSTANT_VALUE", -1, str(written), call]],
    }

    def change(config):
        layers = config["config"]["layers"]
        (layers[1]["config"]["layers"] if nested else layers).append(layer)

    changed(path, change)
    with pytest.raises(UserError, match=r"found TFOpLambda 'op'.* save the model without it"):
        networks.load_file("file://" + path)
    assert not written.exists()


@pytest.mark.parametrize(
    "wrong, found",
    [
        (
            {"class_name": "SlicingOpLambda", "config": {"function": "io.read_file"}},
            "SlicingOpLambda 'dense' of 'io.read_file'",
        ),
        (
            {"class_name": "ClassMethod", "config": {"cls_symbol": "io.TFRecordWriter", "method_name": "write"}},
            "ClassMethod",
        ),
        ({"class_name": "InstanceMethod", "config": {"attr_name": "numpy"}}, "InstanceMethod"),
        ({"class_name": "TensorFlowOpLayer", "config": {"node_def": {"op": "WriteFile"}}}, "TensorFlowOpLayer"),
        ({"class_name": "ResidualWrapper", "config": {"residual_fn_type": "lambda"}}, "ResidualWrapper"),
        ({"class_name": "Popen", "module": "subprocess", "registered_name": "Popen"}, "Popen 'dense' of 'subprocess'"),
        ({"class_name": "Dense", "module": "evil.layers"}, "Dense 'dense' of 'evil.layers'"),
        ({"class_name": "Dense", "registered_name": "evil"}, "Dense"),
        ({"class_name": {"class_name": "__bytes__", "value": "Lambda"}}, "{'class_name': '__bytes__'"),
        ({"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}, "vocabulary file '/etc/passwd'"),
        ({"config": {"activation": "deserialize"}}, "activation 'deserialize'"),
        (
            {
                "config": {
                    "activation": {
                        "class_name": "function",
                        "module": "os",
                        "config": "system",
                        "registered_name": "system",
                    }
                }
            },
            "function 'system' of 'os'",
        ),
        (
            {
                "config": {
                    "activation": {
                        "class_name": "function",
                        "module": "builtins",
                        "config": "eval",
                        "registered_name": "eval",
                    }
                }
            },
            "function 'eval' of 'builtins'",
        ),
        (
            {"config": {"kernel_initializer": {"class_name": "__lambda__", "config": {"value": ["4wAA", None, None]}}}},
            "__lambda__",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_parts_that_are_not_keras_own_are_refused(tmp_path, kind, wrong, found):
    path = str(tmp_path / f"network.{kind}")
    functional().save(path)

    def change(config):
        layer = config["config"]["layers"][1]
        layer["config"].update(wrong.get("config", {}))
        layer.update({key: value for key, value in wrong.items() if key != "config"})

    changed(path, change)
    with pytest.raises(UserError, match=f"expected Keras's own layers and plain operations on tensors, found {found}"):
        networks.load_file("file://" + path)


class Unpickled:
    """Makes a folder as it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.fault(
    "data",
    "a Keras file whose weights are a pickle",
    "refused; nothing is unpickled",
)
def test_weights_are_not_unpickled(tmp_path):
    path, written = str(tmp_path / "network.keras"), tmp_path / "written"
    functional().save(path)
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
    stream = io.BytesIO()
    np.save(stream, np.array([Unpickled(str(written))], object))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.npz", stream.getvalue())
    with pytest.raises(UserError, match="not a Keras model file: .*model.weights.h5"):
        networks.load_file("file://" + path)
    assert not written.exists()


def with_operations() -> tf.keras.Model:
    x = tf.keras.Input([8, 8, 3])
    y = tf.nn.relu(x * 2.0 + 1)
    y = tf.image.resize(tf.pad(y[:, 1:], [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT"), [4, 4]) - tf.reduce_mean(
        x, [1, 2], keepdims=True
    )
    y = tf.where(y > 0, y, tf.transpose(y, [0, 2, 1, 3]) / 2)
    return tf.keras.Model(
        x, tf.reshape(tf.concat([y, tf.cast(tf.nn.softmax(y), tf.float32)], -1), [tf.shape(y)[0], -1])
    )


def of_many_parts() -> tf.keras.Model:
    """Layers within layers, a compiled network within one that is compiled with a loss of the user's own, objects and
    functions by name.
    """
    layers, regularizers = tf.keras.layers, tf.keras.regularizers
    cell = layers.StackedRNNCells([layers.LSTMCell(3), layers.GRUCell(2)])
    inner = tf.keras.Sequential(
        [
            tf.keras.Input([8, 9]),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
            layers.RNN(cell),
            layers.Dense(4, tf.nn.leaky_relu),
        ]
    )
    inner.compile(
        tf.keras.optimizers.Adam(tf.keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)),
        tf.keras.losses.MeanSquaredError(),
        [tf.keras.metrics.AUC(), "mae"],
    )
    x = tf.keras.Input([8, 8, 3])
    y = layers.Rescaling(1 / 255)(layers.RandomFlip("horizontal")(x))
    y = layers.Conv2D(
        3,
        3,
        activation="swish",
        padding="same",
        kernel_regularizer=regularizers.L2(0.1),
        kernel_constraint="max_norm",
        kernel_initializer=tf.constant_initializer(0.1),
    )(y)
    y = layers.TimeDistributed(layers.Dense(3, layers.LeakyReLU()))(layers.Add()([x, layers.BatchNormalization()(y)]))
    y = layers.Activation(tf.keras.activations.gelu)(
        layers.Resizing(8, 3, dtype=tf.keras.mixed_precision.Policy("float32"))(y)
    )
    model = tf.keras.Model(x, inner(layers.Reshape([8, 9])(y)))
    model.compile("sgd", lambda wanted, made: tf.reduce_mean(wanted - made))
    return model


@pytest.mark.parametrize("make", [with_operations, of_many_parts])
@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_plain_layers_and_operations_compute_the_same(tmp_path, kind, make):
    path, x = str(tmp_path / f"network.{kind}"), np.random.default_rng(0).normal(size=[2, 8, 8, 3]).astype(np.float32)
    tf.keras.utils.set_random_seed(3)
    network = make()
    network.save(path)
    np.testing.assert_allclose(networks.load_file("file://" + path)(x), network(x), rtol=1e-5, atol=1e-6)


def test_files_that_are_not_networks_are_named(tmp_path):
    for name, data, message in (
        ("a.keras", b"PK not a zip", "not a Keras model file"),
        ("a.h5", b"nothing", "not a Keras model file"),
        ("a.pkl", b"x", r"expected a Keras model file \(.keras or .h5\)"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=message):
            networks.load_file(f"file://{tmp_path}/{name}")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file["kernel"] = np.ones(3)
    with pytest.raises(UserError, match="not a Keras model file"):
        networks.load_file(f"file://{tmp_path}/weights.h5")
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Nothing", "config": {}})
    with pytest.raises(UserError, match="odd.h5: expected Keras's own layers .* found Nothing"):
        networks.load_file(f"file://{tmp_path}/odd.h5")
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {"units": -1}}]}}
        )
    with pytest.raises(UserError, match="odd.h5: cannot be loaded"):
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


def test_a_size_that_keras_refuses_is_no_failed_download():
    with pytest.raises(UserError, match="^InceptionV3: Input size must be at least 75x75"):
        networks.load("InceptionV3", "", include_top=False, input_shape=(64, 64, 3))
