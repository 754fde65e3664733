"""Record of a run, config.json: what must not change when it is resumed, its dataset, the versions."""

import dataclasses
import datetime
import platform

from .. import lake
from ..config import Config
from ..data import schema, snapshots
from ..version import code_version


def describe(config: Config, url: str, manifest: schema.Manifest, settings: dict) -> dict:
    """A run's config.json: `settings`, what must not change when it is resumed, with the dataset and the versions."""
    import pyspark
    import tensorflow as tf

    return {
        "config": {"run": config.run, **settings, "model": settings["model"] | _files(config, settings["model"])},
        "dataset": {
            "url": lake.split_snapshot(url)[0],
            "snapshot": manifest.number,
            "fingerprint": manifest.fingerprint,
            "classes": list(manifest.classes),
            "fit": manifest.ingest["fit"],
        },
        "versions": {
            "gan_spark": code_version(),
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "pyspark": pyspark.__version__,
        },
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def dataset_of(record: dict) -> str:
    """URL of the snapshot that the run of this record is of; of its dataset, where that one is gone or was not kept."""
    dataset = record["dataset"]
    number = snapshots.find(dataset["url"], dataset.get("snapshot", 0), dataset.get("fingerprint", ""))
    return snapshots.pinned(dataset["url"], number)


def _files(config: Config, model: dict) -> dict[str, str]:
    """URLs of the files in the lake that the model's table names, by its keys: a path would be of the folder that a job
    is started in.
    """
    fields = dataclasses.fields(config.model) if config.model else ()
    paths = {field.name: model.get(field.name) for field in fields if field.metadata.get("file")}
    urls = {name: lake.to_url(path) for name, path in paths.items() if path not in (None, "", "imagenet")}
    return {name: url for name, url in urls.items() if lake.relative(config.lake, url) != url}
