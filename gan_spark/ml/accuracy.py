"""Accuracy and confusion of classifiers, and the labelled datasets on which they are measured."""

from ..config import UserError
from ..data import schema


def labelled(url: str) -> schema.Manifest:
    """The manifest of the dataset at `url`; `UserError` where its images have no labels, or a split has none."""
    manifest = schema.read_manifest(url)
    if not manifest.classes or manifest.parts:
        raise UserError(f"dataset {url}: expected images with labels and without parts")
    for split in ("train", "test"):
        if not manifest.rows.get(split):
            raise UserError(f"dataset {url}: its split {split!r} has no images")
    return manifest


def agreement(frame, classes: tuple[str, ...]) -> dict:
    """Of rows with `label` and `prediction`: {"images", "accuracy", "confusion": {class: {class it was given: how
    many}}}.
    """
    counts = {
        (int(row["label"]), int(row["prediction"])): row["count"]
        for row in frame.where("prediction is not null").groupBy("label", "prediction").count().collect()
    }
    total = sum(counts.values())
    confusion = {
        name: {other: counts.get((i, j), 0) for j, other in enumerate(classes)} for i, name in enumerate(classes)
    }
    return {
        "images": total,
        "accuracy": sum(count for (label, prediction), count in counts.items() if label == prediction) / total,
        "confusion": confusion,
    }
