"""Walks through a generator's latent space: paths between seeds, and A - B + C.

They are those of arXiv 1511.06434, sections 6.1 and 6.3.2.
"""

import logging

import numpy as np

from .. import features, lake, models
from ..config import Config, UserError
from ..data import images, schema
from ..runs import loading, registry
from ..runs.store import Run

log = logging.getLogger(__name__)


def latent(spark, config: Config) -> dict:
    """Writes `<table>.paths.png`, a path a row, and with `latent.arithmetic` `<table>.arithmetic.png`: rows of A, B, C,
    exemplars first, then their mean; last A - B + C and steps beside it.
    """
    config = registry.promoted(config)
    options, run, url = config.latent, Run.of(config), lake.table_url(config)
    pictures = {"paths": f"{url}.paths.png"} | ({"arithmetic": f"{url}.arithmetic.png"} if options.arithmetic else {})
    for picture in pictures.values():
        lake.check_file(picture, "picture")
    checkpoint = loading.read_checkpoint(spark, run, config.generate.checkpoint)
    model = loading.carried_model(checkpoint)
    if not hasattr(model, "decode"):
        names = sorted(name for name, model_class in models.MODELS.items() if hasattr(model_class, "decode"))
        raise UserError(
            f"run {run.url}: model {config.model.name!r} has no latent space to walk through (those that have:"
            f" {', '.join(names)})"
        )
    seeds = np.arange(2 * options.paths) + config.generate.first_seed
    ends = model.latents(seeds, model.config.latent).numpy().reshape(options.paths, 2, -1)
    paths = np.concatenate([between(*pair, options.steps) for pair in ends])
    result = {"run": run.url, "step": checkpoint.step, **pictures}
    lake.write_picture(
        result["paths"], images.encode_png(images.grid(images.to_pixels(model.decode(paths)), options.steps))
    )
    if options.arithmetic:
        seeds_by_class = exemplars(spark, config, model)
        latents = [model.latents(np.array(class_seeds), model.config.latent).numpy() for class_seeds in seeds_by_class]
        means = [class_latents.mean(0) for class_latents in latents]
        sheet = np.concatenate(
            [np.concatenate([class_latents, mean[None]]) for class_latents, mean in zip(latents, means, strict=True)]
        )
        result["seeds"] = dict(zip(options.arithmetic, seeds_by_class, strict=True))
        near = (
            np.random.default_rng(0).uniform(-0.25, 0.25, [options.exemplars, model.config.latent]).astype(np.float32)
        )
        sums = means[0] - means[1] + means[2] + np.concatenate([near, np.zeros_like(near[:1])])
        pixels = images.to_pixels(model.decode(np.concatenate([sheet, sums])))
        lake.write_picture(result["arithmetic"], images.encode_png(images.grid(pixels, options.exemplars + 1)))
    return result


def between(a: np.ndarray, b: np.ndarray, steps: int) -> np.ndarray:
    """[steps, d] on the great circle from a to b, both included; norms go linearly.

    Straight lines pass near the origin, where N(0, 1) in many dimensions has no mass (White, 2016; arXiv 1609.04468).
    """
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    angle = np.arccos(np.clip(np.dot(a / lengths[0], b / lengths[1]), -1.0, 1.0))
    shares = np.linspace(0.0, 1.0, steps)[:, None]
    if np.sin(angle) < 1e-6:
        return ((1 - shares) * a + shares * b).astype(np.float32)
    direction = (np.sin((1 - shares) * angle) * a / lengths[0] + np.sin(shares * angle) * b / lengths[1]) / np.sin(
        angle
    )
    return (direction * ((1 - shares) * lengths[0] + shares * lengths[1])).astype(np.float32)


def exemplars(spark, config: Config, model) -> list[list[int]]:
    """For each class of `latent.arithmetic`, the seeds whose images the lenet classifier gives it most surely."""
    classes = schema.read_manifest(lake.dataset_url(config)).classes
    unknown = [name for name in config.latent.arithmetic if name not in classes]
    if len(config.latent.arithmetic) != 3 or unknown:
        raise UserError(f"latent.arithmetic = {list(config.latent.arithmetic)}: expected three of {', '.join(classes)}")
    apply = features.function(features.network(spark, config))
    seeds = np.arange(1000) + config.generate.first_seed
    probabilities = np.concatenate(
        [
            apply(images.to_pixels(model.decode(model.latents(part, model.config.latent))))[1]
            for part in np.split(seeds, 10)
        ]
    )
    orders = (np.argsort(-probabilities[:, classes.index(name)], kind="stable") for name in config.latent.arithmetic)
    return [seeds[order[: config.latent.exemplars]].tolist() for order in orders]
