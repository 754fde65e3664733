"""What a request may ask of a model, of every kind that there is, and what it becomes."""

import asyncio
import base64
import json
import time

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_model

from gan_spark import check
from gan_spark.data import images
from gan_spark.serving import asking
from gan_spark.serving.functions import Answers
from gan_spark.serving.limits import Limits
from gan_spark.serving.metrics import Metrics
from gan_spark.serving.refusal import Refused
from gan_spark.serving.versions import Version

LIMITS = Limits(max_images=8)


def answers_of(name: str) -> Answers:
    model, config = make_model(name), check.small_config(name)
    takes = type(model).takes(config) if check.is_generative(name) else ()
    shape = (config.image_size, config.image_size, config.channels)
    size = config.embedding if "embedding" in takes else 0
    return Answers(model, takes, takes if "a" in takes else (), tuple("0123456789"), shape, "crop", size)


def picture(answers: Answers, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, answers.shape, np.uint8)


def text(pixels: np.ndarray) -> str:
    return base64.b64encode(images.encode_png(pixels)).decode()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cgan", "srgan", "discogan", "stackgan1", "ssgan", "wgan_gp"])
def test_a_request_becomes_the_models_images(name):
    """One image for all seeds, or one each; labels by name; embeddings as lists; the part that images are of."""
    answers = answers_of(name)
    version = Version(3, "run", 2, answers, LIMITS, 2, Metrics())
    seeds, embedding = [5, 2**62, 0], np.random.default_rng(1).normal(size=(3, max(answers.embedding, 1)))
    request, inputs = {"seeds": seeds}, {}
    if "label" in answers.takes:
        request["label"], inputs["label"] = ["7", "0", "9"], tf.constant([7, 0, 9])
    if "embedding" in answers.takes:
        request["embedding"] = embedding.tolist()
        inputs["embedding"] = tf.constant(embedding[:, None], tf.float32)
    part = answers.parts[-1] if answers.parts else ""
    if part or "image" in answers.takes:
        pixels = np.stack([picture(answers, seed) for seed in range(3)])
        request["image"] = [text(one) for one in pixels]
        inputs[part or "image"] = images.to_unit(tf.constant(pixels))
    if part:
        request["part"] = part
    asked = asking.generating(asking.parsed(json.dumps(request).encode(), tuple(request)), answers, LIMITS)
    found = asyncio.run(version.ask(asked.call, asked.rows(answers, LIMITS), time.monotonic() + 60))
    rows = tf.nest.map_structure(lambda value: tf.gather(value, [0, 1, 2, 2]), (inputs, tf.constant(seeds, tf.int64)))
    expected = images.to_pixels(tf.function(answers.model.generate)(*rows))[:3]
    assert np.array_equal(np.stack(found), expected)
    version.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lenet", "ssgan", pytest.param("classifier", marks=pytest.mark.long)])
def test_an_image_becomes_its_classes_whatever_it_is_computed_with(name):
    answers = answers_of(name)
    version = Version(1, "run", 2, answers, LIMITS, 2, Metrics())
    rows = [{"image": picture(answers, seed)} for seed in range(11)]

    async def ask(*chosen: int) -> list[np.ndarray]:
        return await version.ask("classify", [rows[one] for one in chosen], time.monotonic() + 60)

    async def both():
        return await asyncio.gather(ask(*range(11)), *(ask(one) for one in range(11)))

    together, *alone = asyncio.run(both())
    assert all(np.array_equal(one, *single) for one, single in zip(together, alone, strict=True))
    pixels = images.to_unit(tf.constant(np.stack([row["image"] for row in rows])))
    np.testing.assert_allclose(np.stack(together), answers.model.classify(pixels), atol=1e-5)
    version.close()


@pytest.mark.parametrize(
    "name, request_, message",
    [
        ("dcgan", {}, "expected either seeds"),
        ("dcgan", {"seeds": [1], "images": 1}, "expected either seeds"),
        ("dcgan", {"seeds": []}, "expected a list of whole numbers"),
        ("dcgan", {"images": 9}, "9 images asked for; at most 8"),
        ("dcgan", {"images": 1, "first_seed": 2**63}, "from 0 to 2"),
        ("dcgan", {"images": 2, "first_seed": 2**63 - 1}, "from 0 to 2"),
        ("dcgan", {"seeds": [1], "label": "3"}, "the model takes seeds alone"),
        ("cgan", {"seeds": [1, 2], "label": ["3"]}, "1 values for 2 seeds"),
        ("cgan", {"seeds": [1], "label": "ten"}, "expected the name of a class"),
        ("stackgan1", {"seeds": [1]}, "embedding is missing"),
        ("stackgan1", {"seeds": [1], "embedding": [1.0]}, "expected 8 finite numbers"),
        ("stackgan1", {"seeds": [1], "embedding": [1e300] * 8}, "expected 8 finite numbers"),
        ("discogan", {"seeds": [1], "image": "x"}, "part: expected the domain"),
        ("discogan", {"seeds": [1], "part": "c"}, "one of a, b"),
        ("srgan", {"seeds": [1], "image": "AAAA"}, "not an image in a known format"),
        ("lenet", {"seeds": [1]}, "makes none"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(name, request_, message):
    answers = answers_of(name)
    with pytest.raises(Refused, match=message):
        asking.generating(request_, answers, LIMITS).rows(answers, LIMITS)


@pytest.mark.parametrize("caption", ["", "  \n ", "x" * 10_001, 7, None, "\ud800"])
def test_a_caption_that_is_none_is_refused(caption):
    answers = Answers(make_model("dcgan"), ("caption",), (), (), (16, 16, 1), "crop", 0)
    with pytest.raises(Refused, match="caption"):
        asking.generating({"seeds": [1], "caption": caption}, answers, LIMITS)
    (row,) = asking.generating({"seeds": [1], "caption": "a red circle"}, answers, LIMITS).rows(answers, LIMITS)
    assert row == {"seed": 1, "caption": "a red circle"}
