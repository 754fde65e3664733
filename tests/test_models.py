"""What every model promises, over the registry, and what each family adds."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_batch, make_model

from gan_spark import check, models
from gan_spark.config import UserError
from gan_spark.models import losses
from gan_spark.models.blocks import BatchNorm, pyramid

GENERATIVE = [name for name in models.MODELS if check.is_generative(name)]


build = make_model


def test_every_model_has_a_test_config():
    assert set(check.MODEL_CONFIGS) == set(models.MODELS)


def duration(title: str, name: str) -> list:
    if "bfloat16" in title and name not in ("dcgan", "diffusion", "vae"):
        return [pytest.mark.long]
    return [pytest.mark.slow] * any(word in title for word in ("bfloat16", "restored", "gradient"))


@pytest.mark.parametrize(
    "title, name",
    [
        pytest.param(title, name, marks=duration(title, name), id=f"{title}-{name}")
        for title in check.MODEL_CHECKS
        for name in models.MODELS
    ],
)
def test_every_model_passes(title, name):
    check.MODEL_CHECKS[title](name)


@pytest.mark.parametrize("name", GENERATIVE)
@pytest.mark.parametrize("title", check.IMAGE_CHECKS)
def test_every_model_of_images_passes(title, name):
    check.IMAGE_CHECKS[title](name)


def test_spectral_norm_projects_float32_kernels_in_bfloat16():
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = make_model("dcgan", spectral_norm=True, normalisation="none", discriminator_rate=0.0)
        model.train_step([make_batch("dcgan")])
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    kernels = [variable for variable in model.discriminator.trainable_variables if "kernel" in variable.name]
    assert {variable.dtype for variable in kernels} == {tf.float32}
    # Were they rounded to bfloat16 on the way, the last 16 bits of each would be 0.
    assert all((np.asarray(variable).view(np.uint32) & 0xFFFF).any() for variable in kernels)


@pytest.mark.parametrize("name", ["dcgan", "discogan", "stackgan1", "cyclegan"])
def test_sizes_that_a_network_cannot_make_are_refused(name):
    with pytest.raises(
        UserError, match="model.image_size = 33: expected (an even number of pixels, at least 8|a multiple of 4)"
    ):
        make_model(name, image_size=33)


@pytest.mark.parametrize(
    "name, value", [("wgan_gp", "critic_estimate"), ("vae", "negative_elbo"), ("diffusion", "noise_error")]
)
def test_values_of_held_out_images_do_not_depend_on_how_they_are_batched(name, value):
    model, images = build(name), make_batch(name, 6)["image"]
    whole = model.held_out({"image": images})[value].numpy()
    parts = [model.held_out({"image": part})[value].numpy() for part in (images[:1], images[1:])]
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-3, atol=1e-4)
    assert len(set(model.held_out_latents(images, 4).numpy()[:, 0])) == 6


@pytest.mark.parametrize("name", ["cyclegan", "discogan"])
def test_a_preview_shows_a_translation_beside_its_source(name):
    model, batch = build(name), make_batch(name, 6)
    a, to_b, b, to_a = np.split(model.preview(batch, tf.range(64, dtype=tf.int64)).numpy(), 4, axis=2)
    np.testing.assert_array_equal(a, batch["a"]["image"])
    np.testing.assert_array_equal(b, batch["b"]["image"])
    np.testing.assert_allclose(to_b, model.generate({"a": batch["a"]["image"]}, None), atol=1e-6)
    np.testing.assert_allclose(to_a, model.generate({"b": batch["b"]["image"]}, None), atol=1e-6)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'dcgan'"):
        models.find("dcgann")


@pytest.mark.parametrize("size, expected", [(28, (7, 2)), (32, (4, 3)), (64, (4, 4)), (48, (6, 3)), (16, (4, 2))])
def test_depth_follows_from_the_image_size(size, expected):
    assert pyramid(size) == expected


@pytest.mark.parametrize("size", [28, 32, 64])
def test_dcgan_reaches_any_size(size):
    model = build("dcgan", image_size=size, channels=3)
    assert model.generate({}, tf.range(2, dtype=tf.int64)).shape == (2, size, size, 3)
    assert model.discriminator(tf.zeros([2, size, size, 3]))[0].shape == (2, 1)


def test_dcgan_has_no_batch_norm_at_the_generators_output_or_the_discriminators_input():
    model = build("dcgan", image_size=32)
    kinds = lambda network: [type(layer).__name__ for layer in network.layers]
    assert kinds(model.discriminator).index("BatchNorm") > kinds(model.discriminator).index("LeakyReLU")
    assert kinds(model.generator)[-2:] == ["Conv2DTranspose", "Activation"]


def test_the_average_follows_the_generator_at_its_rate():
    model = build("dcgan", average=0.9)
    weight, average = model.generator.trainable_variables[0], model.sampler.variables[0]
    np.testing.assert_array_equal(weight, average)
    start = weight.numpy()
    weight.assign_add(tf.ones_like(weight))
    model.update_averages(0.9)  # step 0: d = min(0.9, 1 / 10)
    np.testing.assert_allclose(average, start + 0.9, atol=1e-6)
    model.step.assign(1000)  # d = 0.9
    model.update_averages(0.9)
    np.testing.assert_allclose(average, start + 0.91, atol=1e-6)


@pytest.mark.parametrize("name", GENERATIVE)
def test_images_by_the_newest_weights_are_those_of_the_network_that_is_trained(name):
    model, seeds, inputs = build(name), tf.range(3, dtype=tf.int64), check.make_inputs(name, 3)
    if inputs.keys() & {"image", "a", "b"}:
        inputs = {key: make_batch("dcgan", 3)["image"] for key in inputs}
    # A model that keeps averages says so in its config, by which `generate.weights` is refused or not.
    assert bool(model._averages) == hasattr(model.config, "average")
    for _, network in model._averages:
        for number, variable in enumerate(network.trainable_variables):
            variable.assign_add(0.3 * tf.random.stateless_normal(variable.shape, [number, 0]))
    averaged = model.generate(inputs, seeds).numpy()
    model.use_newest_weights()
    newest = model.generate(inputs, seeds).numpy()
    assert np.array_equal(averaged, newest) != bool(model._averages)
    for copy, network in model._averages:
        for average, weight in zip(copy.variables, network.variables, strict=True):
            np.testing.assert_array_equal(average, weight)


def test_batch_norm_normalises_and_remembers():
    layer = BatchNorm()
    inputs = tf.constant(np.random.default_rng(0).normal(3.0, 2.0, [64, 4, 4, 5]), tf.float32)
    outputs = layer(inputs, training=True).numpy()
    normalised = (outputs - layer.beta.numpy()) / layer.gamma.numpy()
    np.testing.assert_allclose(normalised.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(normalised.std((0, 1, 2)), 1, atol=1e-3)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * inputs.numpy().mean((0, 1, 2)), atol=1e-4)
    for _ in range(200):
        layer(inputs, training=True)
    np.testing.assert_allclose(layer(inputs, training=False), outputs, atol=2e-2)


def test_synchronised_batch_norm_uses_the_reduced_moments():
    """A reduce that answers for another half of the batch gives what the whole batch gives."""
    whole = tf.constant(np.random.default_rng(0).normal(size=[8, 2, 2, 3]), tf.float32)
    first, second = whole[:4], whole[4:]
    moments = lambda x: [tf.reduce_mean(x, [0, 1, 2]), tf.reduce_mean(tf.square(x), [0, 1, 2])]
    layer = BatchNorm(reduce=lambda mine: [(a + b) / 2 for a, b in zip(mine, moments(second), strict=True)])
    alone = BatchNorm(reduce=list)
    alone(whole), layer(whole)  # builds them
    alone.set_weights(layer.get_weights())
    np.testing.assert_allclose(layer(first, training=True), alone(whole, training=True)[:4], atol=1e-5)
    assert not np.allclose(layer(first, training=True), BatchNorm(reduce=list)(first, training=True), atol=1e-3)


@pytest.mark.slow
def test_vae_bound_is_an_upper_bound_that_training_lowers():
    model = build("vae")
    images = tf.constant(np.where(np.random.default_rng(0).uniform(size=[64, 16, 16, 1]) < 0.1, 1.0, -1.0), tf.float32)
    first = float(tf.reduce_mean(model.held_out({"image": images})["negative_elbo"]))
    assert first == pytest.approx(256 * np.log(2), rel=0.2)  # an untrained decoder says 1/2 for every pixel
    for _ in range(60):
        model.train_step([{"image": images}])
        model.step.assign_add(1)
    last = float(tf.reduce_mean(model.held_out({"image": images})["negative_elbo"]))
    entropy = 256 * -(0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    assert entropy * 0.9 < last < first * 0.7


@pytest.mark.slow
def test_vae_importance_weighted_bound_tightens_and_is_the_elbo_for_one_sample():
    model = build("vae")
    images = tf.constant(np.random.default_rng(0).uniform(-1, 1, [16, 16, 16, 1]), tf.float32)
    elbos = [sum(model.negative_elbo(images, tf.random.stateless_normal([16, 4], [k, 1]))) for k in range(200)]
    bounds = [float(tf.reduce_mean(model.importance_weighted(images, k))) for k in (1, 20, 200)]
    assert bounds[0] > bounds[1] > bounds[2]
    # With one sample the estimate differs from the closed-form KL's by noise of mean 0.
    singles = []
    for k in range(50):
        mean, log_variance = tf.split(model.encoder(images), 2, axis=1)
        noise = tf.random.stateless_normal([16, 4], [k, 1])
        z = mean + tf.exp(0.5 * log_variance) * noise
        density = lambda x, m, v: -0.5 * tf.reduce_sum(np.log(2 * np.pi) + v + tf.square(x - m) / tf.exp(v), 1)
        singles.append(
            losses.bernoulli_nll(0.5 * (images + 1), model.decoder(z))
            - density(z, 0.0, tf.zeros_like(z))
            + density(z, mean, log_variance)
        )
    np.testing.assert_allclose(
        np.log(50) - np.logaddexp.reduce(-np.stack(singles), 0), model.importance_weighted(images, 50), rtol=1e-4
    )
    assert float(np.mean(singles)) == pytest.approx(float(np.mean(elbos)), rel=0.01)


def test_noise_is_a_function_of_seed_step_and_stream():
    a, b = build("vae"), build("vae")
    b.seed = 1
    first = a.normal([3])
    np.testing.assert_array_equal(first, a.normal([3]))
    assert not np.allclose(first, b.normal([3])) and not np.allclose(first, a.normal([3], stream=1))
    a.step.assign_add(1)
    assert not np.allclose(first, a.normal([3]))


def test_wgan_steps_the_critic_n_times_for_one_generator_step():
    model = build("wgan_gp", n_critic=3)
    assert model.batches_per_step == 3
    model.train_step([make_batch("wgan_gp", seed=i) for i in range(3)])
    assert int(model.optimizers["d"].iterations) == 3 and int(model.optimizers["g"].iterations) == 1


def test_wgan_critic_has_no_batch_norm():
    kinds = {type(layer).__name__ for layer in build("wgan_gp").critic.layers}
    assert "BatchNorm" not in kinds and "Conv2D" in kinds


def test_began_carries_a_k_that_comes_from_all_ranks():
    """A reduce that doubles stands for other ranks with other losses."""
    alone, together = (
        build("began", lambda_k=0.5),
        build("began", reduce=lambda tensors: [2 * tensor for tensor in tensors], lambda_k=0.5),
    )
    for model in (alone, together):
        model.train_step([make_batch("began")])
    assert float(alone.k) > 0 and float(together.k) == pytest.approx(2 * float(alone.k), rel=1e-3)
    assert any(variable is alone.k for variable in alone.state())


def test_began_halves_its_rate_where_m_stalls():
    """Means of windows: 3, then 2.985 (not 1% less: halved), 2.9 (less), 4 (halved), 2.9 (no less than 2.9: halved)."""
    from gan_spark.models.began import Stall

    stall, halvings = Stall(2), []
    for mean in (3.0, 2.985, 2.9, 4.0, 2.9):
        for measure in (mean - 1.0, mean + 1.0):
            stall.update(tf.constant(measure))
        halvings.append(int(stall.halvings))
    assert halvings == [0, 1, 1, 2, 3]

    model = build("began", stall_steps=2, rate=0.0, lambda_k=0.0)  # nothing learns, so M stays what its noise makes it
    rates = [float(model.train_step([make_batch("began")])["rate"]) for _ in range(2)]
    assert rates == [0.0, 0.0]
    model = build("began", stall_steps=1, rate=1e-3)
    model.stall.best.assign(1e-6)  # no M is below this
    rates = [float(model.train_step([make_batch("began")])["rate"]) for _ in range(3)]
    np.testing.assert_allclose(rates, [1e-3, 5e-4, 2.5e-4], rtol=1e-6)
    np.testing.assert_allclose(model.optimizers["d"].learning_rate, 2.5e-4, rtol=1e-6)


def test_began_stalls_by_what_all_ranks_share_and_goes_on_from_a_checkpoint(tmp_path):
    """A reduce that triples stands for other ranks with other losses."""
    alone = build("began", stall_steps=9, rate=0.0)
    together = build("began", reduce=lambda tensors: [3 * tensor for tensor in tensors], stall_steps=9, rate=0.0)
    for model in (alone, together):
        model.train_step([make_batch("began")])
    assert float(together.stall.sum) == pytest.approx(3 * float(alone.stall.sum), rel=1e-3)
    alone.stall.halvings.assign(2)
    tf.train.Checkpoint(model=alone).write(str(tmp_path / "checkpoint"))
    resumed = build("began", stall_steps=9, rate=1e-3)
    tf.train.Checkpoint(model=resumed).read(str(tmp_path / "checkpoint")).assert_existing_objects_matched()
    assert float(resumed.stall.sum) == float(alone.stall.sum) > 0 and int(resumed.stall.count) == 1
    assert float(resumed.train_step([make_batch("began")])["rate"]) == pytest.approx(2.5e-4)


def test_began_without_the_rule_carries_what_it_carried_before():
    names = [variable.name for variable in build("began", stall_steps=0).state() if "/" not in variable.name]
    assert not {"sum:0", "best:0", "halvings:0", "current_learning_rate:0"} & set(names)


def test_began_steps_its_auto_encoder_at_a_rate_of_its_own():
    model = build("began", rate=1e-3, discriminator_rate=2e-4, stall_steps=1)
    model.stall.halvings.assign(1)
    model.train_step([make_batch("began")])
    rates = [float(model.optimizers[name].learning_rate) for name in "gd"]
    np.testing.assert_allclose(rates, [5e-4, 1e-4], rtol=1e-6)
    assert float(build("began", rate=1e-3, stall_steps=0).optimizers["d"].learning_rate) == pytest.approx(1e-3)


def test_began_gives_each_network_z_of_its_own():
    model, drawn = build("began"), []
    network = model.generator
    model.generator = lambda z: drawn.append(z.numpy()) or network(z)
    model.train_step([make_batch("began")])
    assert len(drawn) == 2 and not np.isin(*drawn).any()


def test_began_has_the_papers_optimizer_and_no_batch_norm():
    model = build("began")
    assert (model.config.rate, model.config.beta1, model.config.lambda_k) == (1e-4, 0.9, 1e-3)
    kinds = {type(layer).__name__ for layer in [*model.generator.layers, *model.encoder.layers, *model.decoder.layers]}
    assert not [kind for kind in kinds if "Norm" in kind]


def test_began_with_skips_has_z_beside_every_enlarged_map():
    generator = build("began", skips=True).generator
    joined = [layer for layer in generator.layers if isinstance(layer, tf.keras.layers.Concatenate)]
    assert [tuple(layer.output_shape[1:]) for layer in joined] == [(16, 16, 8)]
    assert generator.output_shape == (None, 16, 16, 1)


def test_cgan_makes_the_class_that_is_asked_for_an_input():
    for network in ("perceptron", "convolutional"):
        model = build("cgan", network=network)
        seeds = tf.zeros([2], tf.int64)
        images = model.generate({"label": tf.constant([1, 2])}, seeds).numpy()
        assert not np.allclose(images[0], images[1])


def test_maxout_is_the_largest_piece():
    from gan_spark.models.cgan import Maxout

    layer = Maxout(1, 2)
    layer(tf.zeros([1, 1]))
    layer.dense.set_weights([np.array([[1.0, -1.0]], np.float32), np.zeros(2, np.float32)])
    np.testing.assert_allclose(layer(tf.constant([[3.0], [-2.0]])), [[3.0], [2.0]])  # |x|


def test_ssgan_alone_leaves_the_generator_and_the_unlabelled_images_out():
    model = build("ssgan", adversarial=False)
    before = model.generator.get_weights()
    first = model.train_step([make_batch("ssgan")])
    assert set(first) == {"supervised", "labelled_accuracy"} and "g" not in model.optimizers
    assert all(np.array_equal(a, b) for a, b in zip(before, model.generator.get_weights(), strict=True))


def test_ssgan_discriminator_is_the_n_plus_1_class_softmax_with_the_last_logit_at_0():
    logits = tf.constant([[1.0, 2.0, 0.5]])
    real = tf.sigmoid(tf.reduce_logsumexp(logits, 1))
    np.testing.assert_allclose(real, 1.0 - tf.nn.softmax(tf.concat([logits, [[0.0]]], 1))[:, 3], rtol=1e-6)


def test_cyclegan_logs_the_cycle_of_its_generators():
    model, batch = build("cyclegan"), make_batch("cyclegan")
    a, b = batch["a"]["image"], batch["b"]["image"]
    cycle = tf.reduce_mean(tf.abs(a - model.to_a(model.to_b(a)))) + tf.reduce_mean(
        tf.abs(b - model.to_b(model.to_a(b)))
    )
    assert float(model.train_step([batch])["cycle"]) == pytest.approx(float(cycle), rel=1e-4)


def test_cyclegan_flips_and_crops_each_image_of_training_apart():
    images = tf.tile(tf.reshape(tf.range(256.0) / 128.0 - 1.0, [1, 16, 16, 1]), [64, 1, 1, 1])
    flipped = build("cyclegan", flip=True).augmented(images, 0).numpy()
    mirrored = np.isclose(flipped, images[:, :, ::-1]).all((1, 2, 3))
    assert np.isclose(flipped, images).all((1, 2, 3)).sum() == 64 - mirrored.sum() and 10 < mirrored.sum() < 54
    np.testing.assert_array_equal(build("cyclegan").augmented(images, 0), images)
    model = build("cyclegan", enlarge=20)
    whole = tf.image.resize(images[:1], [20, 20], "bicubic").numpy()[0]
    crops = model.augmented(images, 0).numpy()
    places = [
        [(top, left) for top in range(5) for left in range(5) if np.allclose(crop, window(whole, top, left), atol=1e-5)]
        for crop in crops
    ]
    assert all(len(found) == 1 for found in places) and len({found[0] for found in places}) > 10
    assert not np.allclose(crops, model.augmented(images, 1))  # of the other domain
    with pytest.raises(UserError, match="model.enlarge = 12: expected 0, or no less than model.image_size = 16"):
        build("cyclegan", enlarge=12)


def window(whole, top, left):
    return np.clip(whole[top : top + 16, left : left + 16], -1.0, 1.0)


def test_cyclegans_discriminators_are_shown_former_images_that_are_alike_on_all_ranks():
    """Two ranks in lock step, `reduce` answering the second one with what the first sends, halved with its zeros."""
    first, second = build("cyclegan", pool=2), build("cyclegan", pool=2)
    second.seed = 1
    sent, drawn = [], 0
    first.reduce = lambda tensors: sent.append([tensor / 2 for tensor in tensors]) or sent[-1]
    second.reduce = lambda tensors: [mean + tensor / 2 for mean, tensor in zip(sent[-1], tensors, strict=True)]
    for step in range(6):
        for rank, model in enumerate((first, second)):
            model.step.assign(step)
            fakes = [tf.fill([4, 16, 16, 1], 10.0 * step + rank + 0.5 * part) for part in range(2)]
            former = [set(np.unique(pool.images[: int(pool.count)])) for pool in model.pools]
            for shown, of_pool, made in zip(model.shown(fakes), former, fakes, strict=True):
                values = set(np.unique(shown))
                assert values <= of_pool | set(np.unique(made))
                drawn += len(values & of_pool)
        for one, other in zip(first.pools, second.pools, strict=True):
            np.testing.assert_array_equal(one.images, other.images)
            assert int(one.count) == int(other.count) == min(step + 1, 2)
            assert set(np.unique(one.images[: int(one.count)]) % 10) <= {0.0, 0.5}  # of rank 0
    assert drawn > 10


@pytest.mark.slow
def test_cyclegans_pool_is_what_its_discriminators_learn_from():
    """The first step finds the pool empty, and the second one image in it."""
    batch, same = make_batch("cyclegan"), []
    models_of = [build("cyclegan", pool=pool) for pool in (0, 3)]
    for _ in range(2):
        for model in models_of:
            model.train_step([batch])
            model.step.assign_add(1)
        same.append(all(map(np.array_equal, *(model.critic_b.get_weights() for model in models_of))))
    assert same == [True, False]


@pytest.mark.parametrize("size, depth", [(16, 1), (32, 1), (64, 1), (128, 2), (256, 3), (512, 4)])
def test_cyclegans_discriminator_is_as_deep_as_its_images_are_large(size, depth):
    from gan_spark.models.cyclegan import Config, discriminator

    network = discriminator(Config(image_size=size, channels=1, width=2, layers=0), "critic")
    strides = [layer.strides[0] for layer in network.layers if isinstance(layer, tf.keras.layers.Conv2D)]
    assert strides == [2] * depth + [1, 1]


@pytest.mark.slow
def test_discogan_weighs_reconstruction_more_after_its_start():
    """With SGD, the generators' step is the loss's weight times the gradient: only the weights differ."""
    values = []
    for start_steps in (0, 100):
        model = build("discogan", start_rate=0.0, rate_of_reconstruction=1.0, start_steps=start_steps)
        model.optimize("g", tf.keras.optimizers.SGD(0.5), model.groups["g"])
        batches = [make_batch("discogan")] * model.batches_per_step
        first = float(model.train_step(batches)["reconstruction"])
        for _ in range(10):
            last = float(model.train_step(batches)["reconstruction"])
        values.append(last / first)
    assert values[0] < 0.9 * values[1]


@pytest.mark.parametrize("name", models.MODELS)
def test_describe_names_the_paper_and_every_key(name):
    text = models.describe(name)
    assert text.startswith(f"{name}: ") and ("arXiv" in text or "LeCun" in text or "et al" in text)
    assert all(f"model.{field}" in text for field in models.find(name).Config.__dataclass_fields__ if field != "name")


def test_noise_of_training_is_that_of_no_seed():
    model = build("dcgan")
    drawn = model.normal([3, 8]).numpy()
    assert not np.isin(model.latents(tf.range(2000, dtype=tf.int64), 8).numpy(), drawn).any()
    assert (
        np.array_equal(drawn, model.normal([3, 8]).numpy()) and not np.isin(model.normal([3, 8], stream=1), drawn).any()
    )


@pytest.mark.parametrize("code, smallest", [(0, (4, 4, 8)), (8, (1, 1, 8))])
def test_discogans_translator_keeps_a_map_where_there_is_no_code(code, smallest):
    """As the authors' image_translation.py; their angle_pairing.py has the code."""
    model = build("discogan", code=code)
    shapes = [tuple(layer.output_shape[1:]) for layer in model.to_b.layers[1:]]
    assert min(shapes, key=lambda shape: shape[0]) == smallest
    assert shapes[-1] == (16, 16, 1)


def test_discogans_reconstruction_is_of_images_in_0_to_1():
    model, batch = build("discogan"), make_batch("discogan")
    a, b = batch["a"]["image"], batch["b"]["image"]
    terms = model.generator_step(a, b)
    back = build("discogan")  # of the same weights, from before that step
    there_and_back = (
        back.to_a(back.to_b(a, training=True), training=True),
        back.to_b(back.to_a(b, training=True), training=True),
    )
    errors = (np.mean(np.square((real - other) / 2)) for real, other in zip((a, b), there_and_back, strict=True))
    assert float(terms["reconstruction"]) == pytest.approx(float(sum(errors)), rel=1e-3)


def test_discogans_generators_step_twice_for_each_step_of_the_discriminators():
    model, batch = build("discogan", generator_steps=2), make_batch("discogan")
    assert model.batches_per_step == 3
    for _ in range(2):
        model.train_step([batch] * 3)
    assert (int(model.optimizers["d"].iterations), int(model.optimizers["g"].iterations)) == (2, 4)


def test_discogans_moving_statistics_are_of_real_images_alone():
    batch = make_batch("discogan")
    trained, seen = build("discogan", rate=0.0), build("discogan", rate=0.0)
    trained.train_step([batch] * trained.batches_per_step)
    for _ in range(trained.batches_per_step):
        seen.to_b(batch["a"]["image"], training=True), seen.to_a(batch["b"]["image"], training=True)
    for network in ("to_a", "to_b"):
        for variable, expected in zip(
            getattr(trained, network).variables, getattr(seen, network).variables, strict=True
        ):
            np.testing.assert_allclose(variable, expected, rtol=1e-4, atol=1e-5)


def test_discogans_weight_decay_moves_weights_that_nothing_else_moves():
    moved = {}
    for decay in (0.0, 1e-5):
        model = build("discogan", weight_decay=decay, rate=1e-2)
        kernel = model.critic_a.layers[1].kernel
        kernel.assign(tf.ones_like(kernel))
        batch = {part: {"image": tf.zeros_like(values["image"])} for part, values in make_batch("discogan").items()}
        model.train_step([batch] * model.batches_per_step)
        moved[decay] = float(tf.reduce_mean(kernel))
    # An image of zeros gives the first kernel no gradient from real images, and hardly any from generated ones.
    assert moved[1e-5] < moved[0.0]


def test_ssgan_matches_features_without_dropout_and_noise():
    model = build("ssgan", dropout=0.9, noise=5.0)
    batch = make_batch("ssgan")
    expected = losses.feature_matching(
        model.classifier(batch["unlabelled"]["image"])[0],
        model.classifier(model.generator(model.normal([8, 8]), training=True))[0],
    )
    assert float(model.train_step([batch])["g_loss"]) == pytest.approx(float(expected), rel=1e-5)


def test_what_would_teach_the_wrong_thing_is_refused():
    with pytest.raises(
        UserError, match="model.minibatch with model.batches = 'together': real and generated images would count"
    ):
        build("dcgan", minibatch=2, batches="together")
    with pytest.raises(UserError, match="train.batch_size gives a rank one image: expected two or more"):
        build("stackgan1").train_step([make_batch("stackgan1", 1)])


def test_srgan_has_the_pixels_error_beside_the_features_only_where_it_is_asked_for():
    lenet = build("lenet")
    images, made = make_batch("srgan")["image"], make_batch("srgan", seed=1)["image"]
    settings = {**check.MODEL_CONFIGS["srgan"], "content": "run", "content_layer": "conv1", "content_scale": 1.0}
    srgan = models.find("srgan")
    without, beside = (
        srgan(srgan.Config(**settings, pixels=pixels), content_run=lenet).content(images, made) for pixels in (0.0, 0.5)
    )
    assert float(beside - without) == pytest.approx(0.5 * float(tf.reduce_mean(tf.square(images - made))), rel=1e-4)
