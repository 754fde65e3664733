"""Transfer learning's model: its two phases, its augmentations, its weights."""

import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_batch, make_model

from gan_spark import models
from gan_spark.config import UserError
from gan_spark.models.classifier import transformed

pytestmark = pytest.mark.slow


def identity(count: int = 1) -> dict:
    zero, one = tf.zeros([count]), tf.ones([count])
    return {"angle": zero, "shear": zero, "zoom": one, "right": zero, "down": zero, "mirror": one}


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, [1, 9, 9, 3]).astype(np.float32)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, lambda x: x),
        ({"angle": math.pi / 2}, lambda x: np.rot90(x, -1, (1, 2))),
        ({"angle": -math.pi / 2}, lambda x: np.rot90(x, 1, (1, 2))),
        ({"mirror": -1.0}, lambda x: x[:, :, ::-1]),
        ({"right": 2.0}, lambda x: np.pad(x, [(0, 0), (0, 0), (2, 0), (0, 0)], "edge")[:, :, :9]),
        ({"down": -3.0}, lambda x: np.pad(x, [(0, 0), (0, 3), (0, 0), (0, 0)], "edge")[:, 3:]),
    ],
)
def test_maps_are_about_the_middle_and_repeat_the_edge(picture, change, expected):
    made = transformed(picture, **{**identity(), **{name: tf.constant([value]) for name, value in change.items()}})
    np.testing.assert_allclose(made, expected(picture), atol=1e-4)


def test_zoom_enlarges(picture):
    ramp = np.tile(np.arange(9, dtype=np.float32)[None, None, :, None], [1, 9, 1, 1])
    made = transformed(ramp, **{**identity(), "zoom": tf.constant([2.0])})
    np.testing.assert_allclose(made[0, 4, :, 0], 4 + (np.arange(9) - 4) / 2, atol=1e-5)


def test_augmented_images_differ_and_without_any_are_the_same():
    batch = make_batch("classifier")["image"]
    still = make_model("classifier", rotation=0.0, shift=0.0, shear=0.0, zoom=0.0, flip=False)
    np.testing.assert_allclose(still.augmented(batch), batch, atol=1e-5)
    moved = make_model("classifier").augmented(tf.repeat(batch[:1], 4, 0)).numpy()
    assert min(np.abs(moved[i] - moved[j]).max() for i in range(4) for j in range(i)) > 0.1


def test_the_head_learns_alone_and_then_the_last_layers_with_it():
    model = make_model("classifier", head_steps=1)
    step = tf.function(model.train_step)

    def weights():
        return [
            [v.numpy() for v in part]
            for part in (model.head.variables, model.network.trainable_variables, model.network.non_trainable_variables)
        ]

    def moved(before, after):
        return [
            any(not np.array_equal(a, b) for a, b in zip(*pair, strict=True))
            for pair in zip(before, after, strict=True)
        ]

    first = weights()
    step([make_batch("classifier")])
    model.step.assign_add(1)
    second = weights()
    assert moved(first, second) == [True, False, False]  # not even the moving statistics
    step([make_batch("classifier")])
    third = weights()
    assert moved(second, third)[:2] == [True, True]
    early = {id(v) for layer in model.network.layers[:-3] for v in layer.trainable_variables}
    assert not early & {id(v) for v in model.groups["all"]}


def test_frozen_batch_norm_keeps_its_statistics():
    model = make_model("classifier", batch_norm="frozen")
    before = [v.numpy() for v in model.network.non_trainable_variables]
    model.train_step([make_batch("classifier")])
    assert all(np.array_equal(a, v.numpy()) for a, v in zip(before, model.network.non_trainable_variables, strict=True))


def test_class_weights_scale_the_loss():
    batch = {**make_batch("classifier"), "label": tf.fill([8], 3)}
    losses = [
        float(make_model("classifier", class_weights=weights).train_step([batch])["loss"])
        for weights in ((), (0.0,) * 3 + (2.0,) + (0.0,) * 6, (1.0,) * 3 + (0.0,) + (1.0,) * 6)
    ]
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-5) and losses[2] == 0


def test_it_begins_from_a_weights_file_and_says_which_layer_does_not_fit(tmp_path):
    source = tf.keras.applications.MobileNetV2(weights=None, include_top=False, pooling="avg", input_shape=(32, 32, 3))
    source.save_weights(tmp_path / "weights.h5")
    model = make_model("classifier", weights=str(tmp_path / "weights.h5"))
    model.begin()
    assert all(np.array_equal(a, b) for a, b in zip(source.get_weights(), model.network.get_weights(), strict=True))
    other = tf.keras.applications.VGG16(weights=None, include_top=False, input_shape=(32, 32, 3))
    other.save_weights(tmp_path / "other.h5")
    with pytest.raises(UserError, match="does not fit MobileNetV2: its layer 'Conv1'"):
        make_model("classifier", weights=str(tmp_path / "other.h5")).begin()


def test_wrong_settings_are_clear_errors():
    with pytest.raises(UserError, match="class_weights has 2 values for 10 classes"):
        make_model("classifier", class_weights=(1.0, 1.0))
    with pytest.raises(UserError, match="last_layers = 999: MobileNetV2 has"):
        make_model("classifier", last_layers=999)
    with pytest.raises(UserError, match="no network 'MobileNetV9' in Keras"):
        models.find("classifier")(models.find("classifier").Config(network="MobileNetV9", weights=""))
