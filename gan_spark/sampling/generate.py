"""Generated images: a table of them in the lake, made in Spark tasks from rows of inputs.

Every row has a seed, and what the model takes besides: a label, a text, an image of the dataset.

One seed is one image, whatever the partitioning: its latent is a function of the seed alone,
and every forward pass has the same shape and one thread, since both can change the last bit of a sum.
"""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from pyspark.sql import functions as F

from .. import lake, models, progress
from ..config import Config, Generate, UserError
from ..data import batches, captions, images, schema, splits
from ..lake import tables
from ..runs import loading, registry, tracking
from ..runs.record import dataset_of
from ..runs.store import Run

log = logging.getLogger(__name__)
TABLE = (
    "run string, model string, step long, seed long, input string, image binary, height int, width int, channels int"
)
_NEWEST = " (newest weights)"  # what column `model` ends with where images are not by moving averages
COLUMNS, KIND = tables.column_names(TABLE), "generated images"
_GRID = 64
# What a task holds before it hands it on: images, their pixels, and seconds, so that Spark sees a slow model go on.
_HANDED_ON, _HANDED_ON_BYTES, _HANDED_ON_SECONDS = 1024, 16 * 2**20, 10.0


def generate(spark, config: Config) -> dict:
    """Writes `config.generate.images` images of the run to its table, and a grid of the first 64 beside it."""
    config = registry.promoted(config)
    options, run, url = config.generate, Run.of(config), lake.table_url(config)
    check_table(spark, config)
    grid = f"{url}.png"
    with progress.part("reading the checkpoint", spark):
        requested = inputs(spark, config)
        checkpoint = loading.read_checkpoint(spark, run, options.checkpoint)
    step, rows = checkpoint.step, requested
    if options.append and lake.exists(url):
        rows = _without_present(requested, _of_step(tables.read(spark, url), run, step, options.weights))
    count = rows.count()
    if not count:
        log.warning(
            "generate: table %s holds all of these images already, of run %s at step %d; generate.first_seed = %d"
            " begins elsewhere",
            url,
            run.url,
            step,
            options.first_seed + options.images,
        )
    # What each of the grid's images was made from, to stand beside it.
    sources = (
        {row["seed"]: row["image"] for row in requested.orderBy("seed").limit(_GRID).select("seed", "image").collect()}
        if "image" in requested.columns
        else {}
    )
    frame = generated(rows, run, options, checkpoint)
    frame = frame.withColumn("run", F.lit(lake.reference(config.lake, url, run.url)))
    log.info("generate: %d images of run %s", count, run.url)
    with _batches_that_fit(spark, rows, run), progress.part("generating", spark, count):
        first_rows = _written(spark, config, frame, count, run, step, sources)
    checkpoint.files.destroy()
    lake.write_picture(grid, images.encode_png(_grid(first_rows, sources, run)))
    if tracker := tracking.tracker(config, run):
        tracker.artifact(grid, "generated")
    weights = {"weights": "newest"} if options.weights == "newest" else {}
    return {"images": count, "table": url, "grid": grid, "run": run.url, "step": step, **weights}


def check_table(spark, config: Config) -> None:
    """`UserError` where the config's table, or its grid, cannot be written."""
    url = lake.table_url(config)
    if config.generate.append and config.tables != "delta":
        raise UserError(
            "generate.append = true with tables = 'parquet': a folder of Parquet files cannot be added to and stay"
            " whole; use tables = 'delta'"
        )
    tables.check(spark, url, config.tables, KIND, COLUMNS)
    lake.check_file(f"{url}.png", "picture")


def _batches_that_fit(spark, rows, run: Run) -> contextlib.AbstractContextManager[None]:
    """Of inputs that hold images or embeddings of the run's dataset, tasks are handed no more at once than memory
    holds.
    """
    if not {"image", "embedding"} & set(rows.columns):
        return contextlib.nullcontext()
    return batches.at_most(spark, batches.rows_of(schema.read_manifest(run.record()["dataset"]["url"])))


def _written(spark, config: Config, frame, count: int, run: Run, step: int, sources: dict) -> list:
    """The rows of the grid, once the frame's rows are in the config's table."""
    url = lake.table_url(config)
    if config.tables == "delta":
        tables.write_delta(frame, url, "append" if config.generate.append else "overwrite")
        return _first_rows(_of_step(tables.read(spark, url), run, step, config.generate.weights), sources)
    with tables.replacing(frame, url, KIND) as table:
        written = table.count()
        if written != count:
            raise RuntimeError(f"{written} rows written for {count} seeds; {url} was left as it was")
        return _first_rows(table, sources)


def _of_step(table, run: Run, step: int, weights: str):
    """Those rows of a generated table that are of the run at the step, by these weights, with the run's URL in them."""
    of_step = F.col("run").isin(run.names()) & (F.col("step") == step)
    by_newest = F.col("model").endswith(_NEWEST)
    return table.where(of_step & (by_newest == (weights == "newest"))).withColumn("run", F.lit(run.url))


def _without_present(requested, present):
    """Those rows of inputs of which the rows of the table `present` hold no image yet."""
    present = present.select("seed", "input")
    same_input = (requested["seed"] == present["seed"]) & requested["input"].eqNullSafe(present["input"])
    return requested.join(present, same_input, "left_anti")


def _first_rows(table, sources: dict) -> list:
    """The rows of the grid; a table that is added to may hold images of other sources too."""
    table = table.where(F.col("seed").isin(list(sources))) if sources else table
    return table.orderBy("seed").limit(_GRID).select("seed", "image").collect()


def _grid(rows: list, sources: dict, run: Run) -> np.ndarray:
    """The rows' images in a grid, each beside the stored image in `sources` that it was made from, if any."""
    pixels = np.stack([images.decode_png(row["image"]) for row in rows])
    if not sources:
        return images.grid(pixels)
    manifest = schema.read_manifest(run.record()["dataset"]["url"])
    before = schema.unpack([sources[row["seed"]] for row in rows], manifest.shape, manifest.encoding)
    return images.grid(np.stack([before, pixels], 1).reshape(-1, *pixels.shape[1:]), 8)


def images_of(spark, config: Config):
    """Those rows of the config's table that are of its run, at `generate.checkpoint` or else the newest step in the
    table.

    A Delta table that is added to holds several runs and steps. `UserError` where it holds none of these.
    """
    url, run, step, weights = (
        lake.table_url(config),
        Run.of(config),
        config.generate.checkpoint,
        config.generate.weights,
    )
    table, names = tables.read(spark, url), run.names()
    rows = table.select("run", "step", F.col("model").endswith(_NEWEST).alias("newest")).distinct().collect()
    contents = sorted((row["run"], row["step"], _NEWEST if row["newest"] else "") for row in rows)
    suffix = _NEWEST if weights == "newest" else ""
    steps = sorted(of for name, of, by in contents if name in names and step in (0, of) and by == suffix)
    if not steps:
        listed = (f"{lake.absolute(config.lake, name)} at step {of}{by}" for name, of, by in contents)
        raise UserError(
            f"table {url} has no images of run {run.url}{f' at step {step}' if step else ''}{suffix}; it has those of"
            f" {', '.join(listed) or 'no run'}: make them with jobs/generate.py, or name another run, table or weights"
            " (generate.table, generate.weights)"
        )
    return _of_step(table, run, steps[-1], weights)


def inputs(spark, config: Config):
    """A DataFrame of `seed`, `input` (what a person reads) and the columns that the run's model takes, as they are
    stored.

    Seeds count up from `generate.first_seed`; where rows of the dataset are taken, those whose ids hash
    lowest, with the hash as their seed.
    """
    options, record = config.generate, Run.of(config).record()
    model, dataset = loading.model_config(record["config"]["model"]), record["dataset"]
    takes = taken_by(config.run, model)
    check_settings(config, model)
    url = dataset_of(record)
    check_dataset(spark, config, model, url, dataset.get("classes", []))
    # A task loads the model, and fills its last batch up.
    partitions = options.partitions or min(
        spark.sparkContext.defaultParallelism, math.ceil(options.images / options.batch_size)
    )
    seeds = spark.range(options.first_seed, options.first_seed + options.images, 1, partitions).withColumnRenamed(
        "id", "seed"
    )
    if not takes:
        return seeds.withColumn("input", F.lit(None).cast("string"))
    if takes == ("label",):
        return _labelled(seeds, options, dataset["classes"])
    if options.captions:
        rows = [
            (options.first_seed + i, text, text)
            for i, text in enumerate(options.captions * -(-options.images // len(options.captions)))
        ][: options.images]
        return spark.createDataFrame(rows, "seed long, input string, caption string").repartition(partitions)
    return _dataset_rows(spark, options, takes, url).repartition(partitions)


def check_settings(config: Config, model) -> None:
    """`UserError` where section [generate] asks a run with a model of this config for what it does not make: what is
    known without its dataset.
    """
    options, takes = config.generate, taken_by(config.run, model)
    for name, value, fits in (
        ("label", options.label, takes == ("label",)),
        ("captions", options.captions, takes == ("caption",)),
        ("part", options.part, "a" in takes),
    ):
        if value and not fits:
            raise UserError(
                f"generate.{name} = {value!r:.200}: model {model.name!r} of run {config.run!r} takes"
                f" {', '.join(takes) or 'seeds alone'}; leave it out"
            )
    for text in options.captions:
        if len(text) > captions.LIMIT or not captions.has_text(text):
            raise UserError(
                f"generate.captions: expected texts of 1 to {captions.LIMIT} characters, found {text[:40]!r}, of"
                f" {len(text)}"
            )
    if options.weights == "newest" and not hasattr(model, "average"):
        raise UserError(
            f"generate.weights = 'newest': model {model.name!r} of run {config.run!r} keeps no moving averages, and its"
            " images are always by its newest weights; leave it out"
        )
    if "a" in takes and not options.part:
        raise UserError(f"generate.part is empty: expected the domain to start from, one of {', '.join(takes)}")


def check_dataset(spark, config: Config, model, url: str, classes: Sequence[str]) -> None:
    """`UserError` where the dataset at `url`, with these classes, has not what section [generate] names of it for a
    model of this config.
    """
    options, takes = config.generate, taken_by(config.run, model)
    if options.label and options.label not in classes:
        raise UserError(f"generate.label = {options.label!r}: expected one of {', '.join(classes)}")
    if takes in ((), ("label",)) or options.captions:
        return
    if options.part and options.part not in (parts := schema.read_manifest(url).parts):
        raise UserError(f"generate.part = {options.part!r}: dataset {url} has {', '.join(parts) or 'no parts'}")
    splits.frame(spark, url, options.split, options.part)


def _labelled(seeds, options: Generate, classes: list[str]):
    """The seeds with the label that `generate.label` names, or with every label in turn."""
    label = F.lit(classes.index(options.label)) if options.label else F.col("seed") % len(classes)
    class_name = F.element_at(F.array(*map(F.lit, classes)), F.col("label") + 1)
    return seeds.withColumn("label", label.cast("int")).withColumn("input", class_name)


def _dataset_rows(spark, options: Generate, takes: tuple[str, ...], url: str):
    """Rows of inputs from rows of the dataset at `url`."""
    manifest, part = schema.read_manifest(url), options.part
    chosen = splits.lowest_hashes(splits.frame(spark, url, options.split, part), options.images)
    columns = [name for name in splits.columns(manifest) if name in takes or (name == "image" and part in takes)]
    text = F.col("caption") if takes == ("caption",) else F.col("id")
    return chosen.select("seed", text.alias("input"), *columns)


def taken_by(run: str, model) -> tuple[str, ...]:
    """What the model of this config takes besides a seed; `UserError`, which names its run, where it does not generate
    images.
    """
    model_class = models.find(model.name)
    if not issubclass(model_class, models.GenerativeModel):
        raise UserError(f"run {run!r}: model {model.name!r} does not generate images")
    return model_class.takes(model)


def taken_by_run(record: dict) -> tuple[str, ...]:
    """`taken_by` of the run with this record."""
    return taken_by(record["config"]["run"], loading.model_config(record["config"]["model"]))


def generated(rows, run: Run, options: Generate, checkpoint: loading.Checkpoint | None = None):
    """A DataFrame of TABLE, one row for each row of `rows`: a DataFrame as `inputs` gives, or any with a long `seed`
    and the model's columns.

    The checkpoint was read before, or is read now, so that all tasks, and all retries, use the same one.
    """
    record = run.record()
    takes = taken_by_run(record)
    model_names = {"image": options.part or "image"}
    missing = [
        name
        for name in takes
        if name not in [model_names.get(column, column) for column in rows.columns]
        and name in ("label", "caption", "embedding", "image")
    ]
    if missing:
        raise UserError(
            f"run {run.url}: its model takes {', '.join(takes)}; the rows have no column {missing[0]!r} (columns:"
            f" {', '.join(rows.columns)})"
        )
    checkpoint = checkpoint or loading.read_checkpoint(rows.sparkSession, run, options.checkpoint)
    return rows.mapInPandas(functools.partial(_generate, checkpoint, options), TABLE)


def _generate(
    checkpoint: loading.Checkpoint, options: Generate, frames: Iterator[pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    import tensorflow as tf

    model, record = loading.carried_model(checkpoint, options.weights), checkpoint.record
    batch_size, part = options.batch_size, options.part
    name = record["config"]["model"]["name"] + (_NEWEST if options.weights == "newest" else "")
    sample = loading.compiled(model.generate)
    takes = taken_by_run(record)
    manifest, seeds, sources, pngs, shape = None, [], [], [], None
    handed_on = time.monotonic()

    def table() -> pd.DataFrame:
        images_frame = pd.DataFrame(
            {
                "run": checkpoint.url,
                "model": name,
                "step": checkpoint.step,
                "seed": seeds,
                "input": sources,
                "image": pngs,
                "height": shape[0],
                "width": shape[1],
                "channels": shape[2],
            }
        )
        for column in (seeds, sources, pngs):
            column.clear()
        return images_frame

    for rows in batches.of_size(frames, batch_size):
        if manifest is None and ("image" in rows or "embedding" in rows):
            manifest = schema.read_manifest(record["dataset"]["url"])
        # The last part is filled up, so that every pass has one shape.
        filled = rows.iloc[np.minimum(np.arange(batch_size), len(rows) - 1)]
        batch = _batch(filled, takes, manifest, part)
        pixels = images.to_pixels(sample(batch, tf.constant(filled["seed"], tf.int64)))[: len(rows)]
        shape = pixels.shape[1:]
        seeds += rows["seed"].tolist()
        sources += rows["input"].tolist() if "input" in rows else [None] * len(rows)
        pngs += map(images.encode_png, pixels)
        # A table handed on costs as much as ten small images.
        is_full = len(pngs) >= _HANDED_ON or len(pngs) * math.prod(shape) >= _HANDED_ON_BYTES
        if is_full or time.monotonic() - handed_on > _HANDED_ON_SECONDS:
            yield table()
            handed_on = time.monotonic()
    if pngs:
        yield table()


def _batch(rows: pd.DataFrame, takes: tuple[str, ...], manifest: schema.Manifest | None, part: str) -> dict:
    """What the model takes of the rows, as tensors by name; images in [-1, 1]."""
    import tensorflow as tf

    batch = {}
    if "label" in takes:
        batch["label"] = tf.constant(rows["label"], tf.int32)
    if "caption" in takes:
        batch["caption"] = tf.constant(rows["caption"].tolist(), tf.string)
    if "embedding" in takes:
        batch["embedding"] = tf.constant(schema.unpack_arrays(rows["embedding"], manifest.embedding, np.float32))
    if "image" in rows:
        pixels = schema.unpack(rows["image"], manifest.shape, manifest.encoding)
        batch[part or "image"] = images.to_unit(tf.constant(pixels))
    return batch
