"""Seed rows -> a table of images in the lake, made in Spark tasks.

One seed is one image, whatever the partitioning: its latent is a function of the seed alone,
and every forward pass has the same shape and one thread, since both can change the last bit of a sum.
"""

import functools
import logging
from collections.abc import Iterator

import numpy as np
import pandas as pd

from . import images, lake, models, trainer
from .config import Config, Generate, UserError
from .store import Run

log = logging.getLogger(__name__)
TABLE = "run string, model string, step long, seed long, input string, image binary, height int, width int, channels int"
_GRID = 64


def generate(spark, config: Config) -> dict:
    """Writes `config.generate.images` images of the run to its table, and a grid of the first 64 beside it."""
    options, run, url = config.generate, Run.of(config), lake.table_url(config)
    seeds = spark.range(options.first_seed, options.first_seed + options.images, 1, options.partitions or spark.sparkContext.defaultParallelism)
    frame = generated(seeds.withColumnRenamed("id", "seed"), run, options)
    staged = lake.staging(url)
    log.info("generate: %d images of run %s", options.images, run.url)
    try:
        frame.write.parquet(staged)
        table = spark.read.parquet(staged)
        count = table.count()
        if count != options.images:
            raise RuntimeError(f"{count} rows written for {options.images} seeds; {url} was left as it was")
        first = table.where(f"seed < {options.first_seed + _GRID}").orderBy("seed").select("image").collect()
        step = table.first()["step"]
        lake.replace(staged, url)
    finally:
        lake.remove(staged)
    grid = f"{url}.png"
    lake.write_bytes(grid, images.encode_png(images.grid(np.stack([images.decode_png(row["image"]) for row in first]))))
    return {"images": count, "table": url, "grid": grid, "run": run.url, "step": step}


def generated(seeds, run: Run, options: Generate):
    """A DataFrame of TABLE, one row for each row of `seeds`, a DataFrame with a long column `seed`.

    The checkpoint is chosen now, so that all tasks, and all retries, use the same one.
    """
    record = run.record()
    with run.checkpoint(options.checkpoint) as found:
        if found is None:
            raise UserError(f"run {run.url}: no whole checkpoint yet; train it with jobs/train.py")
        step = found[0]
    name = record["config"]["model"]["name"]
    if not issubclass(models.find(name), models.GenerativeModel):
        raise UserError(f"run {run.url}: model {name!r} does not generate images")
    columns = ["seed"] + (["label"] if "label" in seeds.columns else [])
    return seeds.select(columns).mapInPandas(functools.partial(_generate, run.url, step, record, options.batch_size), TABLE)


def _generate(url: str, step: int, record: dict, batch_size: int, frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    import tensorflow as tf

    model = trainer.load_model(url, step, record)
    sample = _sampler(model)
    for frame in frames:
        for start in range(0, len(frame), batch_size):
            part = frame.iloc[start : start + batch_size]
            # The last part is filled up, so that every pass has one shape.
            filled = part.iloc[np.minimum(np.arange(batch_size), len(part) - 1)]
            inputs = {"label": tf.constant(filled["label"], tf.int32)} if "label" in part else {}
            pixels = images.to_pixels(sample(inputs, tf.constant(filled["seed"], tf.int64)))[: len(part)]
            yield pd.DataFrame({
                "run": url, "model": record["config"]["model"]["name"], "step": step, "seed": part["seed"].to_numpy(),
                "input": part["label"].astype(str).to_numpy() if "label" in part else None,
                "image": [images.encode_png(image) for image in pixels],
                "height": pixels.shape[1], "width": pixels.shape[2], "channels": pixels.shape[3],
            })  # fmt: skip


@functools.cache
def _sampler(model):
    import tensorflow as tf

    return tf.function(model.generate)
