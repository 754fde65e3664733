"""Source of captioned pictures, which are drawn."""

import functools
from collections.abc import Iterator

import pyarrow as pa

from ...config import Ingest, UserError
from .. import shapes
from .rows import CHUNK, ROW, Source, chunk


def source(spark, config: Ingest) -> Source:
    """`config.count` captioned pictures, drawn in tasks.

    Held-out combinations are in split test alone, unless `config.held_out` is false.
    """
    if config.height != config.width or config.channels != 3:
        raise UserError(
            f"source 'shapes' with ingest.height = {config.height}, width = {config.width}, channels ="
            f" {config.channels}: expected square RGB pictures"
        )
    frame = spark.range(config.count).mapInArrow(functools.partial(_draw, config.height, config.held_out), ROW)
    return Source(frame, shapes.CLASSES, config.count, captioned=True)


def _draw(side: int, holds_out: bool, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        indices = batch.column("id").to_pylist()
        for start in range(0, len(indices), CHUNK):
            drawn = indices[start : start + CHUNK]
            pixels, attributes, phrasings = zip(
                *(shapes.draw(index if holds_out else index + shapes.JUDGE, side) for index in drawn), strict=False
            )
            held_out = [shapes.is_held_out(values) for values in attributes]
            yield chunk(
                id=[
                    f"{'heldout' if is_held_out else 'seen'}/{index:06d}"
                    for is_held_out, index in zip(held_out, drawn, strict=True)
                ],
                content=[image.tobytes() for image in pixels],
                height=[side] * len(drawn),
                width=[side] * len(drawn),
                channels=[3] * len(drawn),
                label=[" ".join(values.values()) for values in attributes],
                split=["test" if is_held_out and holds_out else None for is_held_out in held_out],
                caption=["\n".join(sentences) for sentences in phrasings],
            )
