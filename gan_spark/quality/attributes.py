"""Agreement of generated pictures with their captions, as read by a network that was trained apart from the generator.

It is the share of images of which all attributes match the caption, and of each attribute, for combinations that were
trained on and for those that were held out; beside it, how well the reader reads real pictures of both.
"""

import functools
import logging
from collections.abc import Iterator

import numpy as np

from .. import lake
from ..config import Config, UserError
from ..data import images, schema, shapes, splits
from ..runs import loading, registry
from ..runs.record import dataset_of
from ..runs.store import Run
from ..sampling import generate
from . import measures

log = logging.getLogger(__name__)
KINDS = ("seen", "heldout")


def attributes(spark, config: Config) -> dict:
    """Reads the config's generated table with the run `evaluate.reader`; writes `<table>.attributes.json`."""
    config = registry.promoted(config)
    url = lake.table_url(config)
    if not config.evaluate.reader:
        raise UserError(
            "evaluate.reader is empty: expected the run of an attributes model; train it with jobs/train.py"
        )
    lake.check_file(f"{url}.attributes.json", "reading")
    run = Run.named(config.lake, config.evaluate.reader)
    record, steps = run.record(), run.checkpoints()
    model = record["config"]["model"]
    if model["name"] != "attributes" or not steps:
        raise UserError(
            f"evaluate.reader = {config.evaluate.reader!r}: expected the run of an attributes model with a whole"
            f" checkpoint, found {model['name']} at {steps or 'no step'}"
        )
    checkpoint = loading.read_checkpoint(spark, run)
    table = generate.images_of(spark, config).select("run", "step", "input", "image", "height", "width", "channels")
    first_row = table.first()
    expected = (model["image_size"], model["image_size"], model["channels"])
    shape = (first_row["height"], first_row["width"], first_row["channels"])
    if shape != expected:
        raise UserError(f"table {url} holds images of {shape}; reader {config.evaluate.reader!r} reads {expected}")
    if (
        vague_captions := table.select("input")
        .rdd.map(lambda row: row["input"])
        .filter(lambda caption: bool(unsaid(caption)))
        .take(1)
    ):
        raise UserError(
            f"table {url}: its input {vague_captions[0]!r} says nothing of {', '.join(unsaid(vague_captions[0]))};"
            " expected captions that name all five attributes, as those of source 'shapes' do"
        )
    read = functools.partial(_read, checkpoint, config.evaluate.batch_size)
    counts = (
        table.select("input", "image")
        .rdd.mapPartitions(read)
        .treeReduce(lambda a, b: {kind: a[kind] + b[kind] for kind in KINDS})
    )
    names = ("all", *shapes.ATTRIBUTES)
    result = {}
    for kind in KINDS:
        total, *right = counts[kind].tolist()
        result[kind] = {
            "images": total,
            **{name: round(value / total, 4) for name, value in zip(names, right, strict=True) if total},
        }
    report = {
        **result,
        "real": _real(spark, checkpoint, config.evaluate.batch_size),
        "table": url,
        "run": first_row["run"],
        "step": first_row["step"],
        "reader": run.url,
    }
    lake.write_figures(config.lake, f"{url}.attributes.json", report, "reading")
    return {**report, "report": f"{url}.attributes.json"}


def _real(spark, checkpoint: loading.Checkpoint, batch_size: int) -> dict:
    """The reader's own accuracies on pictures of the test split of its dataset."""
    url = dataset_of(checkpoint.record)
    manifest, frame = schema.read_manifest(url), splits.frame(spark, url, "test")
    frames = {kind: frame.where(frame["id"].startswith(f"{kind}/")) for kind in KINDS}
    return {
        kind: {
            name: round(value, 4)
            for name, value in measures.checkpoint_means(rows, checkpoint, manifest, batch_size).items()
        }
        for kind, rows in frames.items()
    }


def said(caption: str | None) -> dict[str, str]:
    """The attributes that a caption's first line names."""
    return shapes.understand((caption or "").strip().partition("\n")[0])


def unsaid(caption: str | None) -> list[str]:
    """The attributes that it does not name."""
    named = said(caption)
    return [name for name in shapes.ATTRIBUTES if name not in named]


def matches(caption: str, indices: np.ndarray) -> np.ndarray:
    """Whether each attribute that was read, by its index, is what the caption says, which names them all."""
    named = said(caption)
    return np.array(
        [values[index] == named[name] for index, (name, values) in zip(indices, shapes.ATTRIBUTES.items(), strict=True)]
    )


def _read(checkpoint: loading.Checkpoint, batch_size: int, rows: Iterator) -> Iterator[dict[str, np.ndarray]]:
    """Counts of images, of those with all attributes right, and of those with each right, by kind."""
    read = loading.compiled(loading.carried_model(checkpoint).read)
    counts = {kind: np.zeros(2 + len(shapes.ATTRIBUTES), np.int64) for kind in KINDS}
    for chunk in splits.chunks(rows, batch_size):
        answers = read(images.to_unit(np.stack([images.decode_png(row["image"]) for row in chunk]))).numpy()
        for row, indices in zip(chunk, answers, strict=True):
            right = matches(row["input"], indices)
            kind = KINDS[shapes.is_held_out(said(row["input"]))]
            counts[kind] += np.array([1, right.all(), *right])
    yield counts
