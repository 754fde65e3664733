"""Images of any size, enlarged in Spark tasks by a run's srgan: SRResNet or SRGAN (Ledig et al., 2017).

A large image goes through the network in tiles, each with a margin as wide as what an output pixel sees, so that what
is made is what the whole image would become and memory does not grow with it.

Where the images are originals (`enlarge.originals`), they are reduced first and the enlargement is compared with them,
as papers about super-resolution do it: whole images, cut to a multiple of the factor, reduced by bicubic interpolation
with anti-aliasing and rounded to 256 values; luminance alone, 4 pixels left out at each side; the mean over images.
"""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import tensorflow as tf
from pyspark.sql import functions as F

from .. import lake, progress
from ..config import Config, UserError
from ..data import batches, images
from ..data.sources import folder
from ..lake import tables
from ..models import srgan
from ..runs import loading, registry
from ..runs.store import Run

log = logging.getLogger(__name__)
FIGURES = ("psnr", "ssim", "psnr_bicubic", "ssim_bicubic")
TABLE = (
    "run string, model string, step long, input string, image binary, height int, width int, channels int,"
    f" {', '.join(f'{name} double' for name in FIGURES)}, shown binary, reason string"
)
_KIND = "enlarged images"
_TILE = 128  # pixels a side, before they are enlarged
_SHOWN, _ROWS = 128, 16  # pixels a side that the picture has of an image, and of how many


def enlarge(spark, config: Config) -> dict:
    """Writes `<lake>/generated/<run>-enlarged`, a row a file of `enlarge.input`, and a picture of the middles of some:
    before (its pixels as squares), by bicubic interpolation, by the network, and the original where it is there.

    `input` is a file's URL, `reason` why it is no image that could be enlarged.
    """
    config = registry.promoted(config)
    options, run = config.enlarge, Run.of(config)
    if not options.input:
        raise UserError("enlarge.input is empty: expected an image file, or a folder of them")
    record = run.record()
    if record["config"]["model"]["name"] != "srgan":
        raise UserError(
            f"run {run.url}: expected an srgan to enlarge with, found {record['config']['model']['name']!r}"
        )
    url = lake.to_url(options.input)
    fs, path = lake.filesystem(url)
    if not fs.exists(path):
        raise UserError(f"enlarge.input = {options.input!r}: no such file or folder")
    checkpoint = loading.read_checkpoint(spark, run, config.generate.checkpoint)
    table = lake.table_url(config) + "-enlarged"
    lake.check_replaceable(table, _KIND, tables.column_names(TABLE))
    lake.check_file(f"{table}.png", "picture")
    files = folder.files(spark, url) if fs.isdir(path) else spark.createDataFrame([(url,)], "id string")
    with progress.part("listing", spark):
        found = files.persist().count()
    work = functools.partial(_enlarge, checkpoint, lake.reference(config.lake, table, run.url), config)
    enlarged = files.mapInPandas(work, TABLE)
    with (
        progress.part("enlarging", spark, found),
        batches.at_most(spark, batches.FILES),
        tables.replacing(enlarged, table, _KIND) as written,
    ):
        means = written.select(
            F.count("image").alias("images"), F.count("reason").alias("rejected"), *map(F.avg, FIGURES)
        ).first()
        shown = written.where("image is not null").orderBy("input").limit(_ROWS).select("shown").collect()
        for row in written.where("reason is not null").limit(5).collect():
            log.warning("enlarge: %s: %s", row["input"], row["reason"])
        if not means["images"]:
            raise UserError(
                f"enlarge.input = {options.input!r}: none of {found} files is an image that can be enlarged"
            )
    files.unpersist()
    picture = images.grid(np.stack([images.decode_png(row["shown"]) for row in shown]), 1)
    lake.write_picture(f"{table}.png", images.encode_png(picture))
    figures = {name: round(means[f"avg({name})"], 4) for name in FIGURES} if options.originals else {}
    counts = {"images": means["images"], "rejected": means["rejected"]}
    return {**counts, "table": table, "picture": f"{table}.png", "run": run.url, "step": checkpoint.step, **figures}


def by_network(model: srgan.SRGAN, side: int = _TILE) -> Callable[[np.ndarray], np.ndarray]:
    """A function from uint8 [h, w, channels] to uint8 of `factor` times the height and width, tile by tile."""
    # What a pixel sees to each side: the first convolution 4, those of 3 pixels one each before the first enlargement,
    # less than one after it, and the last one 4 of pixels that are half as large or smaller.
    margin = 4 + 2 * model.config.blocks + 2 + 1 + 2
    return _by_tiles(model, lambda low: model.enlarged(low, model.sampler), side, margin)


def _by_tiles(
    model: srgan.SRGAN, function: Callable[[tf.Tensor], tf.Tensor], side: int, margin: int
) -> Callable[[np.ndarray], np.ndarray]:
    factor, channels = model.config.factor, model.config.channels
    enlarged = tf.function(function, input_signature=[tf.TensorSpec([1, None, None, channels])])

    def whole(low: np.ndarray) -> np.ndarray:
        height, width = low.shape[:2]
        made = np.empty((factor * height, factor * width, channels), np.uint8)
        for top in range(0, height, side):
            for left in range(0, width, side):
                above, before = min(margin, top), min(margin, left)
                seen = low[top - above : top + side + margin, left - before : left + side + margin]
                pixels = images.to_pixels(enlarged(_tensor(seen)))[0]
                tile = pixels[factor * above : factor * (above + side), factor * before : factor * (before + side)]
                place = made[factor * top : factor * (top + side), factor * left : factor * (left + side)]
                place[:] = tile[: place.shape[0], : place.shape[1]]
        return made

    return whole


def _enlarge(
    checkpoint: loading.Checkpoint, name: str, config: Config, frames: Iterator[pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    model = loading.carried_model(checkpoint)
    ways = by_network(model), _by_tiles(model, model.bicubic, _TILE, 3)
    for frame in frames:
        for url in frame["id"]:
            row = dict.fromkeys(tables.column_names(TABLE))
            row |= {"run": name, "model": "srgan", "step": checkpoint.step, "input": url}
            try:
                row |= _row(model, ways, url, config)
            except images.BadImage as error:
                row["reason"] = str(error)
            yield pd.DataFrame([row])


def _row(model: srgan.SRGAN, ways: Sequence[Callable[[np.ndarray], np.ndarray]], url: str, config: Config) -> dict:
    options, factor = config.ingest, model.config.factor
    original, figures = None, {}
    low = images.read(
        folder.read(url, options.max_file_mb), model.config.channels, options.max_megapixels, options.range
    )
    if config.enlarge.originals:
        height, width = (side // factor * factor for side in low.shape[:2])
        if min(height, width) < 16:
            raise images.BadImage(f"{low.shape[0]} x {low.shape[1]} pixels: expected 16 a side to compare with")
        original = low[:height, :width]
        low = images.to_pixels(model.reduced(_tensor(original)))[0]
    if low.shape[0] * low.shape[1] * factor**2 > options.max_megapixels * 1_000_000:
        raise images.BadImage(
            f"{low.shape[0]} x {low.shape[1]} pixels: enlarged they would be more than the limit of"
            f" {options.max_megapixels} megapixels"
        )
    made, bicubic = (enlarged(low) for enlarged in ways)
    if original is not None:
        real = _tensor(original)
        for suffix, pixels in (("", made), ("_bicubic", bicubic)):
            values = srgan.measured(real, _tensor(pixels))
            figures |= {measure + suffix: float(value[0]) for measure, value in values.items()}
    squares = low.repeat(factor, 0).repeat(factor, 1)
    parts = [_middle(pixels) for pixels in (squares, bicubic, made, original) if pixels is not None]
    height, width, channels = made.shape
    size = {"height": height, "width": width, "channels": channels}
    shown = images.encode_png(np.concatenate(parts, 1))
    return {"image": images.encode_png(made), **size, **figures, "shown": shown}


def _tensor(pixels: np.ndarray) -> tf.Tensor:
    return tf.constant(images.to_unit(pixels[None]))


def _middle(pixels: np.ndarray) -> np.ndarray:
    """The middle of an image, with white around it where the image is smaller."""
    height, width, channels = pixels.shape
    top, left = max(0, height - _SHOWN) // 2, max(0, width - _SHOWN) // 2
    middle = pixels[top : top + _SHOWN, left : left + _SHOWN]
    sheet = np.full((_SHOWN, _SHOWN + 2, channels), 255, np.uint8)
    sheet[: middle.shape[0], : middle.shape[1]] = middle
    return sheet
