"""What classifiers are measured by: a labelled dataset's splits, accuracy and confusion."""

from ..config import UserError
from ..data import schema


def labelled(url: str) -> schema.Manifest:
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
        "accuracy": sum(count for (label, found), count in counts.items() if label == found) / total,
        "confusion": confusion,
    }
