"""Semantic inpainting (Yeh et al., 2017; arXiv 1607.07539): a trained DCGAN fills holes in images, in Spark tasks.

For each image a z is searched for whose G(z) agrees with what is left of it (contextual loss, which counts pixels near
the hole more) and which the discriminator takes for real (perceptual loss); the hole is then filled from G(z). Unlike
the paper's, the search begins at several z, the best of many draws, and keeps the end with the lowest loss. Beside it
stand two fillings that anyone could make: the training images' mean, and the training image that is nearest in what is
left.

Differences from the paper and from the authors' code (github.com/moodoki/semantic_image_inpainting): besides where the
search begins and ends, lambda is 0.1 (0.003 in the paper, 0.2 in that code, 0.1 in bamos/dcgan-completion.tensorflow);
Adam, as in the paper, where that code has Nesterov's momentum, for 200 steps, where it has 3,000; z is held to [-1, 1],
the range of their uniform z, only as far as `inpaint.clip` says, as a DCGAN's z is normal here; the hole is filled as
it is, and by Poisson editing, as in the paper, where `inpaint.blend` asks for it. The perceptual loss is the paper's
log(1 - D), where that code has -log D; weights are the paper's share of missing pixels, where that code has the share
of those that are left, mirrored at the image's edges.
"""

import functools
import logging
from collections.abc import Iterator

import numpy as np
import pandas as pd
import tensorflow as tf

from .. import lake, process, progress
from ..config import Config, Inpaint, UserError
from ..data import batches, images, schema, splits
from ..lake import tables
from ..runs import loading, registry
from ..runs.record import dataset_of
from ..runs.store import Run

log = logging.getLogger(__name__)
TABLE = (
    "run string, model string, step long, seed long, input string, image binary, height int, width int, channels int,"
    " masked binary, psnr_hole double, psnr_hole_mean double, psnr_hole_nearest double, missing long"
)
_KIND = "inpainted images"


def inpaint(spark, config: Config) -> dict:
    """Writes `<lake>/generated/<run>-inpainted`, and a grid: original, with its hole, mean, nearest, inpainted."""
    config = registry.promoted(config)
    options, run = config.inpaint, Run.of(config)
    record = run.record()
    if record["config"]["model"]["name"] != "dcgan":
        raise UserError(f"run {run.url}: expected a dcgan to inpaint with, found {record['config']['model']['name']!r}")
    checkpoint = loading.read_checkpoint(spark, run, config.generate.checkpoint)
    url = dataset_of(record)
    manifest = schema.read_manifest(url)
    rows = _rows_to_fill(spark, options, url).persist()
    table = lake.table_url(config) + "-inpainted"
    lake.check_replaceable(table, _KIND, tables.column_names(TABLE))
    lake.check_file(f"{table}.png", "picture")
    try:
        with progress.part("choosing images", spark):
            chosen = rows.collect()  # a bounded number, `inpaint.images`
        if not chosen:
            raise UserError(f"inpaint: no image of split {options.split!r} of {url} has a mask")
        originals = schema.unpack([row["image"] for row in chosen], manifest.shape, manifest.encoding)
        masks = np.stack([_mask(row.asDict(), options, manifest) for row in chosen])
        train = splits.frame(spark, url, "train").select("image")
        with progress.part("mean and nearest images", spark, manifest.rows["train"]):
            mean, nearest = baselines(spark, train, originals, masks, manifest)
        fillings = {row["id"]: (mean, nearest[i]) for i, row in enumerate(chosen)}
        shared = spark.sparkContext.broadcast(fillings)
        name = lake.reference(config.lake, table, run.url)
        work = functools.partial(_inpaint, checkpoint, name, options, manifest, shared)
        # Masks of a table are files of any size.
        at_once = batches.FILES if options.mask == "table" else batches.rows_of(manifest)
        inpainted = rows.mapInPandas(work, TABLE)
        with (
            progress.part("inpainting", spark, len(chosen)),
            batches.at_most(spark, at_once),
            tables.replacing(inpainted, table, _KIND) as written,
        ):
            figures = _figures(written)
            shown = {row["input"]: row for row in written.orderBy("seed").limit(12).collect()}
    finally:
        rows.unpersist()
    sheet = []
    for i, row in enumerate(chosen):
        if row["id"] in shown:
            hole = masks[i][..., None] != 0
            sheet += [
                originals[i],
                images.decode_png(shown[row["id"]]["masked"]),
                np.where(hole, mean, originals[i]),
                np.where(hole, nearest[i], originals[i]),
                images.decode_png(shown[row["id"]]["image"]),
            ]
    lake.write_picture(f"{table}.png", images.encode_png(images.grid(np.stack(sheet).astype(np.uint8), 10)))
    return {"table": table, "grid": f"{table}.png", "run": run.url, "step": checkpoint.step, **figures}


def _rows_to_fill(spark, options: Inpaint, url: str):
    """DataFrame of the `id`, `image` and `seed` of the images that are inpainted, and their `mask` where a table has
    it.
    """
    rows = splits.frame(spark, url, options.split).select("id", "image")
    if options.mask == "table":
        rows = rows.join(_masks(spark, options), "id")
    partitions = min(options.images, spark.sparkContext.defaultParallelism)
    return splits.lowest_hashes(rows, options.images).repartition(partitions)


def _figures(table) -> dict[str, float | int]:
    """Mean PSNRs of a table of inpainted images, rounded, and the number of its images."""
    from pyspark.sql import functions as F

    means = [F.avg(name).alias(name) for name in ("psnr_hole", "psnr_hole_mean", "psnr_hole_nearest")]
    figures = table.select([*means, F.count("*").alias("images")]).first().asDict()
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}


def _masks(spark, options: Inpaint):
    """DataFrame of the `id` and `mask` of `inpaint.masks`; `UserError` where an id has not one mask."""
    from pyspark.sql import functions as F

    if not options.masks:
        raise UserError(
            "inpaint.masks is empty: expected a Parquet folder with `id` and `mask` for inpaint.mask = 'table'"
        )
    table = tables.load(spark, lake.to_url(options.masks))
    kinds = dict(table.dtypes)
    if kinds.get("mask") != "binary" or kinds.get("id") != "string":
        raise UserError(
            f"inpaint.masks = {options.masks!r}: expected columns id string, mask binary; found"
            f" {', '.join(f'{name} {kind}' for name, kind in kinds.items())}"
        )
    if (
        bad_row := table.groupBy("id")
        .agg(F.count("*").alias("rows"), F.count("mask").alias("masks"))
        .where("id is not null and (rows > 1 or masks < 1)")
        .first()
    ):
        raise UserError(
            f"inpaint.masks = {options.masks!r}: expected a row with a mask for each id, found {bad_row['rows']} rows"
            f" with {bad_row['masks']} masks for {bad_row['id']!r}"
        )
    return table.select("id", "mask")


def _mask(row: dict, options: Inpaint, manifest: schema.Manifest) -> np.ndarray:
    """uint8 [h, w], 1 where pixels are missing."""
    height, width = manifest.height, manifest.width
    if options.mask == "table":
        try:
            mask = images.decode(row["mask"], height, width, 1, "stretch")[:, :, 0] > 0
        except images.BadImage as error:
            raise UserError(f"mask of {row['id']!r}: {error}") from None
        if mask.all() or not mask.any():
            raise UserError(
                f"mask of {row['id']!r}: {'everything' if mask.all() else 'nothing'} is missing; expected a part of the"
                " image"
            )
        return mask.astype(np.uint8)
    if options.mask == "random":
        return (np.random.default_rng(row["seed"]).uniform(size=[height, width]) < options.hole).astype(np.uint8)
    tall, wide = (max(1, round(side * options.hole**0.5)) for side in (height, width))
    top, left = (height - tall) // 2, (width - wide) // 2
    mask = np.zeros([height, width], np.uint8)
    mask[top : top + tall, left : left + wide] = 1
    return mask


def context_weights(mask: np.ndarray, window: int) -> np.ndarray:
    """[h, w]: for a pixel that is left, the share of missing ones in the window around it; 0 in the hole.

    Where that is 0 for all, as with no hole within reach, every pixel that is left counts alike.
    """
    import cv2

    near = cv2.blur(mask.astype(np.float32), (window, window), borderType=cv2.BORDER_CONSTANT) * (mask == 0)
    return near if near.any() else (mask == 0).astype(np.float32)


def psnr(real: np.ndarray, filling: np.ndarray, mask: np.ndarray) -> float:
    """dB of uint8 images [h, w, c], over the missing pixels alone."""
    error = np.square((real.astype(np.float64) - filling.astype(np.float64))[mask != 0] / 255).mean()
    return float(-10 * np.log10(max(error, 1e-10)))


def baselines(
    spark, train, originals: np.ndarray, masks: np.ndarray, manifest: schema.Manifest
) -> tuple[np.ndarray, np.ndarray]:
    """(mean of the training images [h, w, c], for each image the training image that is nearest in what is left [n, h,
    w, c]), uint8; no task hands on more than one image each.
    """
    count, size = len(originals), int(np.prod(manifest.shape))
    left = np.repeat((masks == 0)[..., None], manifest.channels, 3).reshape(count, size).astype(np.float32)
    known = originals.reshape(count, size).astype(np.float32) / 255 * left
    shared = spark.sparkContext.broadcast((known, left))

    def nearest(rows: Iterator) -> Iterator[tuple]:
        known, left = shared.value
        total, number, best, kept = np.zeros(size), 0, np.full(count, np.inf), np.zeros((count, size), np.uint8)
        for chunk in splits.chunks((row["image"] for row in rows), 500):
            pixels = schema.unpack(chunk, manifest.shape, manifest.encoding).reshape(len(chunk), size)
            values = pixels.astype(np.float32) / 255
            distances = np.square(known).sum(1)[:, None] - 2 * known @ values.T + left @ np.square(values).T
            place = distances.argmin(1)
            better = distances[np.arange(count), place] < best
            best[better], kept[better] = distances[np.arange(count), place][better], pixels[place[better]]
            total, number = total + values.sum(0), number + len(chunk)
        yield total, number, best, kept

    def merge(a: tuple, b: tuple) -> tuple:
        better = b[2] < a[2]
        return a[0] + b[0], a[1] + b[1], np.where(better, b[2], a[2]), np.where(better[:, None], b[3], a[3])

    total, number, _, kept = train.rdd.mapPartitions(nearest).treeReduce(merge)
    mean = np.rint(total / number * 255).astype(np.uint8).reshape(manifest.shape)
    return mean, kept.reshape(count, *manifest.shape)


def search(model, originals: np.ndarray, masks: np.ndarray, options: Inpaint) -> np.ndarray:
    """G(z) in [-1, 1] for images [n, h, w, c] in [-1, 1] with masks [n, h, w]: Adam from the best of many z, and the
    best of what it ends at.
    """
    weights = np.stack([context_weights(mask, options.window) for mask in masks])[..., None]
    starts = min(options.starts, options.draws)
    drawn_z, drawn_images = _draws(model, options.draws)
    z = tf.constant(
        np.concatenate(
            [
                drawn_z[_nearest(drawn_images, image, weight)[:starts]]
                for image, weight in zip(originals, weights, strict=True)
            ]
        )
    )
    weights, real = (tf.constant(np.repeat(values, starts, 0)) for values in (weights, originals))

    @tf.function
    def slope(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            fake = model.decode(z)
            context = tf.reduce_sum(weights * tf.abs(fake - real), axis=[1, 2, 3])
            # log(1 - D) = -softplus(logit)
            losses = context - options.perceptual * tf.nn.softplus(model.discriminator(fake, training=False)[0][:, 0])
            total = tf.reduce_sum(losses)
        return losses, tape.gradient(total, z)

    mean, square = tf.zeros_like(z), tf.zeros_like(z)
    for t in range(1, options.iterations + 1):
        _, gradient = slope(z)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * tf.square(gradient)
        z -= options.rate * (mean / (1 - 0.9**t)) / (tf.sqrt(square / (1 - 0.999**t)) + 1e-8)
        z = tf.clip_by_value(z, -options.clip, options.clip) if options.clip else z
    losses = slope(z)[0].numpy().reshape(len(originals), starts)
    best = z.numpy().reshape(len(originals), starts, -1)[np.arange(len(originals)), losses.argmin(1)]
    return model.decode(tf.constant(best)).numpy()


def _draws(model, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Latents of the seeds 0, 1, ..., and their images: the same ones for every image and in every task."""

    def draw() -> tuple[np.ndarray, np.ndarray]:
        z = model.latents(np.arange(count), model.config.latent).numpy()
        return z, np.concatenate([model.decode(z[start : start + 256]).numpy() for start in range(0, count, 256)])

    return process.cached(("draws", model, count), draw)


def _nearest(candidates: np.ndarray, image: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Indices of `candidates` from the least contextual loss on."""
    return np.argsort((weight * np.abs(candidates - image)).sum((1, 2, 3)), kind="stable")


def filled(original: np.ndarray, fake: np.ndarray, mask: np.ndarray, blend: str) -> np.ndarray:
    """uint8 [h, w, c] with the hole filled from `fake`; by Poisson editing (Perez et al., 2003), its gradients rather
    than its values.
    """
    if blend == "none":
        return np.where(mask[..., None] != 0, fake, original)
    import cv2

    # OpenCV wants three channels and a hole that is not at the border: both are padded.
    source, target = (
        cv2.copyMakeBorder(np.repeat(pixels, 3 // pixels.shape[2], 2), 2, 2, 2, 2, cv2.BORDER_REPLICATE)
        for pixels in (fake, original)
    )
    area = cv2.copyMakeBorder(mask * 255, 2, 2, 2, 2, cv2.BORDER_CONSTANT)
    rows, columns = np.where(area)
    centre = (int(columns.min() + columns.max() + 1) // 2, int(rows.min() + rows.max() + 1) // 2)
    blended = cv2.seamlessClone(source, target, area, centre, cv2.NORMAL_CLONE)[2:-2, 2:-2, : original.shape[2]]
    return np.where(mask[..., None] != 0, blended, original)


def _inpaint(
    checkpoint: loading.Checkpoint,
    run: str,
    options: Inpaint,
    manifest: schema.Manifest,
    fillings,
    frames: Iterator[pd.DataFrame],
) -> Iterator[pd.DataFrame]:
    model = loading.carried_model(checkpoint)
    for chunk in batches.of_size(frames, options.batch_size):
        rows = chunk.to_dict("records")
        # The last part is filled up, so that every pass has one shape.
        padded = rows + rows[-1:] * (options.batch_size - len(rows))
        originals = schema.unpack([row["image"] for row in padded], manifest.shape, manifest.encoding)
        masks = np.stack([_mask(row, options, manifest) for row in padded])
        fakes = images.to_pixels(search(model, images.to_unit(originals), masks, options))
        for i, row in enumerate(rows):
            mean, nearest = fillings.value[row["id"]]
            inpainted = filled(originals[i], fakes[i], masks[i], options.blend)
            holed = np.where(masks[i][..., None] != 0, np.uint8(128), originals[i])
            yield pd.DataFrame(
                {
                    "run": [run],
                    "model": [checkpoint.record["config"]["model"]["name"]],
                    "step": [checkpoint.step],
                    "seed": [row["seed"]],
                    "input": [row["id"]],
                    "image": [images.encode_png(inpainted)],
                    "height": [manifest.height],
                    "width": [manifest.width],
                    "channels": [manifest.channels],
                    "masked": [images.encode_png(holed)],
                    "psnr_hole": [psnr(originals[i], inpainted, masks[i])],
                    "psnr_hole_mean": [psnr(originals[i], mean, masks[i])],
                    "psnr_hole_nearest": [psnr(originals[i], nearest, masks[i])],
                    "missing": [int(masks[i].sum())],
                }
            )
