"""Whether a model's images, classes and streams are the dataset's."""

from .. import models
from ..config import Config, UserError
from ..data import schema


def check_model(config: Config, manifest: schema.Manifest, url: str) -> None:
    """`UserError` where the model's images or classes are not the dataset's."""
    model = config.model
    expected = (model.image_size, model.image_size, model.channels)
    if manifest.shape != expected:
        raise UserError(
            f"model.image_size and model.channels ask for images of {expected}; dataset {url} holds {manifest.shape}:"
            " change the model or ingest at that size"
        )
    columns = {
        "image",
        *manifest.parts,
        *(["label"] if manifest.classes else []),
        *(["caption"] if manifest.captioned else []),
        *(["embedding"] if manifest.embedding else []),
    }
    if "unlabelled" in manifest.parts and "label" in models.find(model.name).reads(model):
        raise UserError(
            f"model {model.name!r} reads labels; dataset {url} was ingested with ingest.parts = 'labels' and has images"
            " without one: use a dataset with all labels"
        )
    missing = [name for name in models.find(model.name).reads(model) if name not in columns]
    if missing:
        raise UserError(
            f"model {model.name!r} reads {', '.join(missing)}; dataset {url} has {', '.join(sorted(columns))}: ingest"
            f" it with {_HOW[missing[0]]}"
        )
    classes = getattr(model, "classes", None)
    if classes is not None and classes != len(manifest.classes):
        raise UserError(f"model.classes = {classes}; dataset {url} has {len(manifest.classes)} classes")


_HOW = {
    "a": "ingest.parts = 'classes', 'edges' or 'recoloured'",
    "b": "ingest.parts = 'classes', 'edges' or 'recoloured'",
    "labelled": "ingest.parts = 'labels'",
    "unlabelled": "ingest.parts = 'labels'",
    "label": "labels",
    "caption": "captions (ingest.caption_column)",
    "embedding": "ingest.embedding_column",
}


def parts_of(model, manifest: schema.Manifest) -> tuple[str, ...]:
    """The parts of the dataset that the model of this config reads as streams of their own."""
    return tuple(name for name in models.find(model.name).reads(model) if name in manifest.parts)
