"""Record of a run, config.json: what must not change when it is resumed, its dataset, the versions."""

import datetime
import platform

from ..config import Config
from ..data import schema
from ..version import code_version


def describe(config: Config, url: str, manifest: schema.Manifest, settings: dict) -> dict:
    """A run's config.json: `settings`, what must not change when it is resumed, with the dataset and the versions."""
    import pyspark
    import tensorflow as tf

    return {
        "config": {"run": config.run, **settings},
        "dataset": {
            "url": url,
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
