"""Walks through latent space."""

import dataclasses

import numpy as np
import pytest
from conftest import make_config

from gan_spark import lake as lakes
from gan_spark.config import UserError
from gan_spark.data import images
from gan_spark.runs import loading
from gan_spark.sampling import latent
from gan_spark.training import driver

pytestmark = pytest.mark.slow


def test_a_path_goes_round_and_not_through():
    path = latent.between(np.array([2.0, 0.0]), np.array([0.0, 4.0]), 3)
    np.testing.assert_allclose(path, [[2, 0], [3 / np.sqrt(2), 3 / np.sqrt(2)], [0, 4]], atol=1e-6)
    np.testing.assert_allclose(latent.between(np.ones(3), np.ones(3), 4), np.ones([4, 3]), atol=1e-6)


@pytest.mark.parametrize("model", ["dcgan", "vae"])
def test_paths_begin_and_end_at_the_images_of_their_seeds(spark, lake, digits, model):
    config = make_config(lake, model, run=f"walks-{model}", train={"steps": 2}, generate={"first_seed": 5})
    config = dataclasses.replace(config, latent=dataclasses.replace(config.latent, paths=2, steps=4))
    driver.train(spark, config)
    result = latent.latent(spark, config)
    sheet = images.decode_png(lakes.read_bytes(result["paths"]))
    assert sheet.shape == (2 * 18 + 2, 4 * 18 + 2, 1)
    built = loading.load_model(result["run"], result["step"], latent.Run(result["run"]).record())
    ends = images.to_pixels(built.generate({}, np.arange(5, 9)))
    for place, expected in zip(((2, 2), (2, 56), (20, 2), (20, 56)), ends, strict=True):
        np.testing.assert_allclose(
            sheet[place[0] : place[0] + 16, place[1] : place[1] + 16].astype(int), expected.astype(int), atol=1
        )


def test_arithmetic_names_the_seeds_and_refuses_other_classes(spark, lake, digits):
    config = make_config(
        lake, run="walks-arithmetic", train={"steps": 2}, evaluate={"classifier_steps": 3, "classifier_batch": 16}
    )
    driver.train(spark, config)
    asked = dataclasses.replace(config, latent=dataclasses.replace(config.latent, arithmetic=("8", "3", "1")))
    result = latent.latent(spark, asked)
    assert set(result["seeds"]) == {"8", "3", "1"} and all(len(each) == 3 for each in result["seeds"].values())
    assert images.decode_png(lakes.read_bytes(result["arithmetic"])).shape == (4 * 18 + 2, 4 * 18 + 2, 1)
    with pytest.raises(UserError, match="expected three of 0, 1"):
        latent.latent(
            spark, dataclasses.replace(config, latent=dataclasses.replace(config.latent, arithmetic=("8", "x", "1")))
        )


def test_a_model_without_latents_says_which_have_them(spark, lake, digits):
    config = make_config(lake, "cgan", run="walks-not", train={"steps": 1})
    driver.train(spark, config)
    with pytest.raises(
        UserError, match=r"model 'cgan' has no latent space to walk through \(those that have: dcgan, vae, wgan_gp\)"
    ):
        latent.latent(spark, config)
