"""Statistics of a dataset's images, by which to tell later whether what comes in is still alike.

NumPy alone; what is read is a sample of rows, which are in the order of a hash of their ids.
"""

import numpy as np
import pyarrow.parquet as pq

from .. import lake
from ..data import images, schema, splits
from ..quality.statistics import Moments

ROWS = 10_000  # images that are looked at, at most
BINS = 16  # of the histogram of each channel, of 256 / BINS values each
SIDE = 8  # of the small grey picture whose pixels are an image's features
_READ = 256  # rows at once


def features(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, height, width, channels] to float64 [n, 64]: each image averaged to 8 x 8 grey pixels in [0, 1].

    They tell light, contrast and where things are, of images of any kind and without a network.
    """
    small = [images.resize(images.convert(one, 1), SIDE, SIDE, "stretch", images.BOX) for one in pixels]
    return np.stack(small).reshape(len(small), SIDE * SIDE) / 255.0


def histogram(pixels: np.ndarray) -> np.ndarray:
    """uint8 [n, height, width, channels] to counts [channels, BINS]."""
    bins = pixels.reshape(-1, pixels.shape[3]) // (256 // BINS)
    return np.stack([np.bincount(channel, minlength=BINS) for channel in bins.T])


def of_dataset(url: str, split: str = "train") -> dict:
    """Statistics of a split of the dataset at `url`, as JSON.

    {"split", "rows": of it, "images": that were looked at, "class_shares": by name, of all rows with a label,
    "histogram": shares of the values of pixels, for each channel BINS numbers, "features": {"kind", "count", "mean" of
    64 numbers, "covariance" of 64 times 64}}. `class_shares` is empty of a dataset without labels. `UserError` where
    there is no dataset.
    """
    manifest = schema.read_manifest(url)
    files = splits.files(url, split)
    counts = np.zeros(len(manifest.classes), np.int64)
    values, moments = np.zeros((manifest.channels, BINS), np.int64), None
    for name in files:
        fs, path = lake.filesystem(name)
        with fs.open(path, "rb") as stream:
            file = pq.ParquetFile(stream)
            if manifest.classes:
                labels = file.read(["label"]).column("label").to_numpy()
                counts += np.bincount(labels[labels >= 0], minlength=len(counts))
            for pixels in _pixels(file, manifest, -(-ROWS // len(files))):
                values += histogram(pixels)
                part = Moments.of(features(pixels))
                moments = part if moments is None else moments.merge(part)
    return {
        "split": split,
        "rows": manifest.rows.get(split, 0),
        "images": moments.count if moments else 0,
        "class_shares": _shares(manifest.classes, counts),
        "histogram": (values / np.maximum(values.sum(1, keepdims=True), 1)).round(6).tolist(),
        "features": described(moments),
    }


def described(moments: Moments | None) -> dict | None:
    """Moments of `features` as JSON; None of fewer than two images."""
    if moments is None or moments.count < 2:
        return None
    return {
        "kind": f"pixels of the image averaged to {SIDE} x {SIDE} grey, in [0, 1]",
        "count": moments.count,
        "mean": moments.mean.round(6).tolist(),
        "covariance": moments.covariance.round(8).tolist(),
    }


def _pixels(file: pq.ParquetFile, manifest: schema.Manifest, limit: int):
    """The first `limit` images of a file, uint8 [n, height, width, channels] a time."""
    for batch in file.iter_batches(min(_READ, limit), columns=["image"]):
        rows = batch.column("image").to_pylist()[:limit]
        yield schema.unpack(rows, manifest.shape, manifest.encoding)
        limit -= len(rows)
        if limit <= 0:
            return


def _shares(classes: tuple[str, ...], counts: np.ndarray) -> dict[str, float]:
    total = max(int(counts.sum()), 1)
    return {name: round(int(count) / total, 6) for name, count in zip(classes, counts, strict=True)}
