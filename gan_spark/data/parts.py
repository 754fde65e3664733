"""Parts that a dataset's images are divided into, for models that read two streams at once.

    classes     a and b are two classes of the source; images of others are rejected
    edges       a is an image's edge map, b the image
    recoloured  a is an image, b the same mirrored and recoloured: a mapping that is known
    labels      labelled and unlabelled: a few training images keep their label

Where both domains come from one image, a training image goes into one of them alone (its id
decides), so that no pair is ever seen; other splits hold both, as `a/<id>` and `b/<id>`.
"""

import collections
import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from ..config import Ingest, UserError
from . import images, schema


def names(config: Ingest) -> tuple[str, ...]:
    if config.parts == "classes" and len(set(config.domains)) != 2:
        raise UserError(f"ingest.domains = {list(config.domains)}: expected two classes for ingest.parts = 'classes'")
    if config.parts == "labels" and not config.labels:
        raise UserError(
            "ingest.labels = 0: expected how many training images keep their label, for ingest.parts = 'labels'"
        )
    return {"": (), "labels": ("labelled", "unlabelled")}.get(config.parts, ("a", "b"))


def divide(
    pixels: np.ndarray, id: str, label: int, name: str | None, split: str, config: Ingest, kept: frozenset[str]
) -> Iterator[tuple[str, str, int, np.ndarray]]:
    """(id, part, label, pixels) of each row that an image becomes. Raises `BadImage` where it belongs to no part."""
    if config.parts == "":
        yield id, "", label, pixels
    elif config.parts == "classes":
        if name not in config.domains:
            raise images.BadImage(f"class {name!r} is in neither domain")
        yield id, "ab"[config.domains.index(name)], label, pixels
    elif config.parts == "labels":
        yield (id, "unlabelled", -1, pixels) if split == "train" and id not in kept else (id, "labelled", label, pixels)
    else:
        versions = (edges(pixels), pixels) if config.parts == "edges" else (pixels, recoloured(pixels))
        only = "ab"[schema.split_of(f"part of {id}", 0.0, 0.5) == "test"] if split == "train" else "ab"
        for part, version in zip("ab", versions, strict=True):
            if part in only:
                yield f"{part}/{id}", part, label, version


def chosen(frame, config: Ingest, decode: Callable[[dict, Ingest], np.ndarray]) -> frozenset[str]:
    """Ids of the training images that keep their label, as many of each class.

    They are those whose ids hash lowest, of the ones that `decode` does not raise `BadImage` for.
    """
    from pyspark.sql import functions as F

    in_train = F.udf(lambda id, split: _in_train(id, split, config.validation, config.test), "boolean")
    usable = frame.where("reason is null and label is not null").where(in_train("id", "split"))
    classes = usable.select("label").distinct().count()
    share = config.labels // max(classes, 1)
    if config.labels % max(classes, 1):
        raise UserError(f"ingest.labels = {config.labels} does not divide by the {classes} classes")

    def first(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        counts, taken = collections.Counter(), set()
        for batch in batches:
            batch_ids = []
            for place, (id, label) in enumerate(
                zip(batch.column("id").to_pylist(), batch.column("label").to_pylist(), strict=True)
            ):
                if counts[label] < share and id not in taken:
                    with contextlib.suppress(images.BadImage):
                        decode(batch.slice(place, 1).to_pylist()[0], config)
                        batch_ids.append(id)
                        taken.add(id)
                        counts[label] += 1
            yield pa.RecordBatch.from_pydict({"id": pa.array(batch_ids, pa.string())})

    in_order = usable.repartition(max(classes, 1), "label").sortWithinPartitions(
        "label", F.xxhash64("id"), "id", F.xxhash64("content", "url")
    )
    ids = frozenset(row["id"] for row in in_order.mapInArrow(first, "id string").collect())
    if len(ids) < config.labels:
        raise UserError(
            f"ingest.labels = {config.labels}: a class has fewer training images than its share of {share} (those that"
            " can be read count)"
        )
    return ids


def _in_train(id: str, split: str | None, validation: float, test: float) -> bool:
    if split is None:
        return schema.split_of(id, validation, test) == "train"
    return split == "train" and schema.split_of(id, validation, 0) == "train"


def edges(pixels: np.ndarray) -> np.ndarray:
    """Canny edges (1986), black on white, as many channels as the image: uint8 [h, w, c]."""
    import cv2

    grey = images.convert(pixels, 1)[:, :, 0]
    lines = 255 - cv2.Canny(cv2.GaussianBlur(grey, (3, 3), 0), 80, 160)
    return np.repeat(lines[:, :, None], pixels.shape[2], axis=2)


def recoloured(pixels: np.ndarray) -> np.ndarray:
    """The image mirrored left to right and with (r, g, b) as (255 - r, b, g / 2); grey is inverted."""
    mirrored = pixels[:, ::-1]
    if pixels.shape[2] == 1:
        return 255 - mirrored
    red, green, blue = (mirrored[:, :, channel] for channel in range(3))
    return np.stack([255 - red, blue, green // 2], axis=2)
