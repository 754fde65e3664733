"""Checks of one model alone: what the project's tests ask of every model.

`gan-spark check NAME` runs them for a model of the package, or for "package.module:Class" of the user's own. A model of
the package is built at the small size that MODEL_CONFIGS holds; any other with the defaults of its `Config` and images
of 16 pixels a side, or the fewest that its range allows, and on top of it what its `check_config` says, a dict.
"""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from . import job, models, process
from .config import Train, UserError
from .process import Team
from .runs import loading
from .training import loop, ranks

# Small enough that a step takes milliseconds.
MODEL_CONFIGS = {
    "attributes": {"name": "attributes", "image_size": 16, "channels": 1, "width": 4, "features": 16},
    "began": {"name": "began", "image_size": 16, "width": 4, "latent": 8, "stall_steps": 2},
    "cgan": {"name": "cgan", "image_size": 16, "width": 4, "latent": 8},
    "classifier": {
        "name": "classifier",
        "image_size": 32,
        "channels": 1,
        "network": "MobileNetV2",
        "weights": "",
        "hidden": 16,
        "head_steps": 0,
        "last_layers": 3,
        "rate": 1.0,
        "batch_norm": "trained",
    },
    "cyclegan": {"name": "cyclegan", "image_size": 16, "channels": 1, "width": 4, "blocks": 1, "layers": 1, "pool": 2},
    "dcgan": {"name": "dcgan", "image_size": 16, "width": 4, "latent": 8},
    "diffusion": {
        "name": "diffusion",
        "image_size": 16,
        "width": 4,
        "blocks": 1,
        "classes": 10,
        "sampling_steps": 3,
    },
    "discogan": {"name": "discogan", "image_size": 16, "channels": 1, "width": 4, "code": 8},
    "gan": {"name": "gan", "image_size": 16, "hidden": 16, "latent": 8},
    "lenet": {"name": "lenet", "image_size": 16, "features": 16},
    "srgan": {"name": "srgan", "image_size": 16, "channels": 1, "width": 4, "blocks": 1, "discriminator_width": 4},
    "ssgan": {"name": "ssgan", "image_size": 16, "width": 4, "latent": 8},
    "stackgan1": {
        "name": "stackgan1",
        "image_size": 16,
        "channels": 1,
        "text": "embedding",
        "embedding": 8,
        "conditioning": 4,
        "latent": 4,
        "width": 4,
        "discriminator_width": 4,
        "compressed": 8,
    },
    "stackgan2": {
        "name": "stackgan2",
        "image_size": 64,
        "channels": 1,
        "text": "embedding",
        "embedding": 8,
        "conditioning": 4,
        "halvings": 1,
        "blocks": 1,
        "width": 2,
        "discriminator_width": 2,
        "compressed": 8,
    },
    "text_encoder": {
        "name": "text_encoder",
        "image_size": 16,
        "channels": 1,
        "embedding": 8,
        "length": 36,
        "width": 8,
        "image_width": 4,
    },
    "vae": {"name": "vae", "image_size": 16, "hidden": (32,), "latent": 4},
    "wgan_gp": {"name": "wgan_gp", "image_size": 16, "width": 4, "latent": 8, "n_critic": 2},
}

# Models whose runs a model is built on, by the keyword that hands each over.
USED_MODELS = {"stackgan2": {"stage1": "stackgan1"}}

# Shapes of variables that two steps may leave as they are. A constant added to every score of a Wasserstein critic
# cancels; and hardly a signal comes through a deep random network to scale.
UNMOVED = {"wgan_gp": [[1]], "classifier": [[1280]]}


class CheckFailed(Exception):
    """A promise that a model does not keep: the model and the check, what was expected, what was found."""


def check(name: str) -> Iterator[str]:
    """A line for each check of the model `name` that it passes, as soon as it does; two Horovod ranks come last.

    Raises `CheckFailed` at the first that it does not pass, and `UserError` where there is no such model.
    """
    models.config_class(name)
    checks = MODEL_CHECKS | (IMAGE_CHECKS if is_generative(name) else {})
    checks |= {"two Horovod ranks end with the same weights": ranks_end_alike}
    for title, function in checks.items():
        began = time.perf_counter()
        try:
            function(name)
        except UserError:
            raise
        except CheckFailed as error:
            raise CheckFailed(f"{name}: {title}: {error}") from None
        except Exception as error:  # The model's own code, which may raise anything.
            raise CheckFailed(f"{name}: {title}: expected no error, found {type(error).__name__}: {error}") from error
        yield f"passed ({time.perf_counter() - began:4.1f} s): {title}"


def is_generative(name: str) -> bool:
    return issubclass(models.find(name), models.GenerativeModel)


# --- a small model, and what it reads and takes ----------------------------------------


def small_config(name: str, **changes):
    """The model's config at its small size, with other values for the keys in `changes`."""
    model = models.find(name)
    if name in MODEL_CONFIGS:
        return model.Config(**{**MODEL_CONFIGS[name], **changes})
    defaults = model.Config()
    size = next(field for field in dataclasses.fields(defaults) if field.name == "image_size")
    smallest = min(defaults.image_size, max(16, size.metadata.get("low") or 16))
    table = {**dataclasses.asdict(defaults), "image_size": smallest, **getattr(model, "check_config", {})}
    return loading.model_config({**table, **changes, "name": name})


def used_models(name: str, config) -> dict[str, str]:
    """The models that this one is built on, by keyword."""
    if name in models.MODELS:
        return USED_MODELS.get(name, {})
    fields = (field for field in dataclasses.fields(config) if getattr(config, field.name))
    return {field.name: field.metadata["run"] for field in fields if field.metadata.get("run")}


def make_model(name: str, reduce: Callable[[list], list] = list, **changes):
    """The small model, always of the same weights, with those that it is built on."""
    config = small_config(name, **changes)
    tf.keras.utils.set_random_seed(0)
    used = {field: make_model(other) for field, other in used_models(name, config).items()}
    return models.find(name)(config, reduce, **used)


def make_batch(name: str, size: int = 8, seed: int = 0) -> dict:
    """A batch of noise with all that the small model reads."""
    config = small_config(name)
    rng = np.random.default_rng(seed)

    def columns() -> dict:
        images = rng.uniform(-1, 1, [size, config.image_size, config.image_size, config.channels]).astype(np.float32)
        captions = [
            f"{rng.choice(['a red', 'one green'])} {rng.choice(['circle', 'square'])}\n{i}, quickly"
            for i in range(size)
        ]
        return {
            "image": tf.constant(images),
            "label": tf.constant(rng.integers(0, getattr(config, "classes", 10), size), tf.int32),
            "caption": tf.constant(captions),
            "embedding": tf.constant(rng.normal(size=[size, 3, getattr(config, "embedding", 8)]), tf.float32),
        }

    reads = models.find(name).reads(config)
    parts = [part for part in reads if part in ("a", "b", "labelled", "unlabelled")]
    return {part: columns() for part in parts} or columns()


def make_inputs(name: str, size: int) -> dict:
    """What the small model's `generate` takes beside seeds, the same in every row."""
    config = small_config(name)
    images = tf.zeros([size, config.image_size, config.image_size, config.channels])
    kinds = {
        "label": tf.zeros([size], tf.int32),
        "caption": tf.fill([size], "a red circle"),
        "embedding": tf.ones([size, 3, getattr(config, "embedding", 8)]),
    }
    return {key: kinds.get(key, images) for key in models.find(name).takes(config)[:1]}


# --- checks of every model -------------------------------------------------------------


def _require(condition, expected: str, actual: str) -> None:
    if not condition:
        raise CheckFailed(f"expected {expected}, found {actual}")


def _names(variables) -> str:
    return ", ".join(f"{variable.name} {list(variable.shape)}" for variable in variables) or "none"


def _trained(model) -> list[tf.Variable]:
    return [variable for group in model.groups.values() for variable in group]


def _step(model, name: str, seed: int = 0) -> dict[str, tf.Tensor]:
    return model.train_step([make_batch(name, seed=seed)] * model.batches_per_step)


def _require_finite(scalars: dict[str, tf.Tensor]) -> None:
    _require(scalars, "scalars to log", "none")
    bad = [key for key, value in scalars.items() if not np.isfinite(float(value))]
    _require(not bad, "finite scalars", f"{', '.join(f'{key} = {float(scalars[key])}' for key in bad)}")


def variables_have_one_optimizer(name: str) -> None:
    model = make_model(name)
    owned = [id(variable) for variable in _trained(model)]
    _require(owned, "variables that an optimizer trains", "none")
    if name != "classifier":  # whose two optimizers take turns on the head
        twice = [variable for variable in _trained(model) if owned.count(id(variable)) > 1]
        _require(not twice, "no variable of two optimizers", _names(twice))
    averages = {id(variable) for copy, _ in getattr(model, "_averages", []) for variable in copy.variables}
    used = [getattr(model, field) for field in used_models(name, model.config)]
    frozen = {id(variable) for other in used for variable in other.variables}
    if name == "classifier":
        frozen |= {id(variable) for variable in model.network.non_trainable_variables}
    moved = [variable for variable in _trained(model) if id(variable) in frozen]
    _require(not moved, "no optimizer of a frozen variable", _names(moved))
    trainable = {id(variable): variable for variable in model.trainable_variables}
    lost = [variable for key, variable in trainable.items() if key not in {*owned, *averages, *frozen}]
    _require(not lost, "an optimizer (or `average`) for each of them", f"none for {_names(lost)}")
    foreign = [variable for variable in _trained(model) if id(variable) not in trainable.keys() - averages]
    _require(not foreign, "the model's own trainable variables alone", _names(foreign))


def two_steps_change_every_variable(name: str) -> None:
    model = make_model(name)
    before = {id(variable): variable.numpy() for variable in _trained(model)}
    # Two, since SRGAN's last convolution is 0 at first, and passes no gradient on.
    for _ in range(2):
        scalars = _step(model, name)
    _require_finite(scalars)
    same = [variable for variable in _trained(model) if np.array_equal(before[id(variable)], variable.numpy())]
    unmoved = [list(variable.shape) for variable in same] == UNMOVED.get(name, [])
    _require(unmoved, "all of them other than before", f"unchanged: {_names(same)}")
    _require(int(model.step) == 0, "`step` at 0, which the trainer counts", f"{int(model.step)}")


def bfloat16_stays_inside(name: str) -> None:
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = make_model(name)
        scalars = _step(model, name)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    other = {key: value.dtype.name for key, value in scalars.items() if value.dtype != tf.float32}
    _require(not other, "scalars in float32", str(other))
    _require_finite(scalars)
    weights = [variable for variable in model.trainable_variables if variable.dtype != tf.float32]
    _require(not weights, "weights in float32", _names(weights))
    if is_generative(name):
        dtype = model.generate(make_inputs(name, 2), tf.range(2, dtype=tf.int64)).dtype
        _require(dtype == tf.float32, "images in float32", f"{dtype.name}")


def state_is_whole(name: str) -> None:
    model = make_model(name)
    state = [id(variable) for variable in model.state()]
    slots = [variable for optimizer in model.optimizers.values() for variable in optimizer.variables]
    lost = [variable for variable in [*model.variables, *slots] if id(variable) not in state]
    _require(not lost, "all of them", f"without {_names(lost)}")
    _require(len(state) == len(set(state)), "no variable twice", f"{len(state)} of {len(set(state))}")


def gradients_are_reduced(name: str) -> None:
    """With a reduce that returns zeros, SGD must leave every trained variable where it was."""
    model = make_model(name, reduce=lambda tensors: [tf.zeros_like(tensor) for tensor in tensors])
    for optimizer, variables in [*model.groups.items()]:
        model.optimize(optimizer, tf.keras.optimizers.SGD(1.0), variables)
    before = [variable.numpy() for variable in _trained(model)]
    _step(model, name)
    moved = [
        variable for old, variable in zip(before, _trained(model), strict=True) if not np.array_equal(old, variable)
    ]
    _require(not moved, "no change where the mean gradient is 0", f"changes of {_names(moved)}")


def checkpoint_is_the_model(name: str) -> None:
    model = make_model(name)
    _step(model, name)
    other = make_model(name)
    _require(loading.checksum(other) != loading.checksum(model), "a step that changes the model", "none")
    with tempfile.TemporaryDirectory() as folder:
        prefix = os.path.join(folder, "checkpoint")
        tf.train.Checkpoint(model=model).write(prefix)
        tf.train.Checkpoint(model=other).read(prefix).assert_existing_objects_matched()
    pairs = zip(model.state(), other.state(), strict=True)
    lost = [variable for variable, restored in pairs if variable.numpy().tobytes() != restored.numpy().tobytes()]
    _require(not lost, "the same values", f"others of {_names(lost)}")
    if is_generative(name):
        seeds, inputs = tf.range(3, dtype=tf.int64), make_inputs(name, 3)
        pixels, restored = model.generate(inputs, seeds).numpy(), other.generate(inputs, seeds).numpy()
        difference = f"differences up to {np.abs(pixels - restored).max():.3g}"
        _require(np.array_equal(pixels, restored), "the same images", difference)


MODEL_CHECKS = {
    "every trainable variable belongs to one optimizer": variables_have_one_optimizer,
    "two steps change every variable that is trained": two_steps_change_every_variable,
    "layers in bfloat16 leave weights, scalars and images in float32": bfloat16_stays_inside,
    "state holds weights and optimizer slots": state_is_whole,
    "every gradient goes through reduce": gradients_are_reduced,
    "a restored checkpoint is the model that was saved": checkpoint_is_the_model,
}


# --- checks of models that make images -------------------------------------------------


def seed_is_image(name: str) -> None:
    model = make_model(name)
    seeds = tf.constant([5, 3, 5, 2**40], tf.int64)
    pixels = model.generate(make_inputs(name, 4), seeds).numpy()
    shape = (4, model.config.image_size, model.config.image_size, model.config.channels)
    _require(pixels.shape == shape, f"4 images of shape {shape}", f"{pixels.shape}")
    span = f"{pixels.min():.3g} to {pixels.max():.3g}"
    _require(pixels.min() >= -1 and pixels.max() <= 1, "values in [-1, 1]", span)
    _require(np.array_equal(pixels[0], pixels[2]), "one image of one seed in a batch", "two")
    for row in range(4):
        alone = model.generate(make_inputs(name, 1), seeds[row : row + 1]).numpy()[0]
        difference = np.abs(alone - pixels[row]).max()
        # Products of matrices of another size may be summed in another order.
        expected = "the image of a batch of 4 in a batch of 1"
        _require(difference < 1e-4, expected, f"differences up to {difference:.3g}")
    if make_inputs(name, 4).keys() & {"image", "a", "b"}:
        return  # a translation is a function of its image alone
    for row in (1, 3):
        differs = not np.allclose(pixels[0], pixels[row])
        _require(differs, "another image of another seed", f"that of 5 for {int(seeds[row])}")


def preview_does_with_few_images(name: str) -> None:
    model = make_model(name)
    pixels = model.preview(make_batch(name, 6), tf.range(64, dtype=tf.int64)).numpy()
    _require(len(pixels) >= 6, "6 images or more", f"{len(pixels)}")
    largest = float(np.abs(pixels).max())
    _require(np.isfinite(pixels).all() and largest <= 1.0 + 1e-5, "values in [-1, 1]", f"{largest:.3g}")


IMAGE_CHECKS = {
    "one seed is one image, of the right shape and range, however it is batched": seed_is_image,
    "a preview does with a batch of fewer images than seeds": preview_does_with_few_images,
}


# --- two ranks -------------------------------------------------------------------------


def ranks_end_alike(name: str) -> None:
    """Both ranks of a Horovod job hold the same state after 3 steps on batches and noise of their own."""
    borrowed = job.running_session() is not None
    spark, config = job.session("gan-spark check"), Train(workers=2)
    try:
        ranks.check(spark, config)
        first, second = ranks.run(spark, three_steps, name, config)
    finally:
        if not borrowed:
            spark.stop()
    differing = [variable for variable, digest in first["state"].items() if second["state"][variable] != digest]
    _require(not differing, "the same state: what is carried must be reduced", ", ".join(differing))
    _require(first["noise"] != second["noise"], "noise of each rank's own", "the same on both")


def three_steps(team: Team, name: str) -> dict:
    """On a rank: the state by variable after 3 steps on this rank's own batches, and the noise that it draws next."""
    process.set_threads(1)
    models.config_class(name)
    config = small_config(name)
    uses = {
        field: {"model": dataclasses.asdict(small_config(other)), "uses": {}}
        for field, other in used_models(name, config).items()
    }
    model = loading.build(config, team, uses=uses)
    team.broadcast(model.state())
    step = tf.function(model.train_step)
    for _ in range(3):
        step([make_batch(name, seed=team.rank)] * model.batches_per_step)
        model.step.assign_add(1)
    loop.average_statistics(model, team)
    state = {f"{index}: {variable.name}": loading.digest([variable]) for index, variable in enumerate(model.state())}
    return {"state": state, "noise": float(tf.reduce_mean(model.normal([100])))}
