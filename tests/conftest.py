"""One Spark session and one small dataset for all tests: each costs seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from gan_spark import config, job, models
from gan_spark.data import ingest
from gan_spark.ml import bigdl

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

# Small enough that a step takes milliseconds.
MODEL_CONFIGS = {
    "attributes": {"name": "attributes", "image_size": 16, "channels": 1, "width": 4, "features": 16},
    "began": {"name": "began", "image_size": 16, "width": 4, "latent": 8},
    "cgan": {"name": "cgan", "image_size": 16, "width": 4, "latent": 8},
    "classifier": {
        "name": "classifier",
        "image_size": 32,
        "channels": 1,
        "network": "MobileNetV2",
        "weights": "",
        "hidden": 16,
        "head_steps": 0,
        "last_layers": 3,
        "rate": 1.0,
        "batch_norm": "trained",
    },
    "cyclegan": {"name": "cyclegan", "image_size": 16, "channels": 1, "width": 4, "blocks": 1, "layers": 1},
    "dcgan": {"name": "dcgan", "image_size": 16, "width": 4, "latent": 8},
    "discogan": {"name": "discogan", "image_size": 16, "channels": 1, "width": 4, "code": 8},
    "gan": {"name": "gan", "image_size": 16, "hidden": 16, "latent": 8},
    "lenet": {"name": "lenet", "image_size": 16, "features": 16},
    "srgan": {"name": "srgan", "image_size": 16, "channels": 1, "width": 4, "blocks": 1, "discriminator_width": 4},
    "ssgan": {"name": "ssgan", "image_size": 16, "width": 4, "latent": 8},
    "stackgan1": {
        "name": "stackgan1",
        "image_size": 16,
        "channels": 1,
        "text": "embedding",
        "embedding": 8,
        "conditioning": 4,
        "latent": 4,
        "width": 4,
        "discriminator_width": 4,
        "compressed": 8,
    },
    "stackgan2": {
        "name": "stackgan2",
        "image_size": 64,
        "channels": 1,
        "text": "embedding",
        "embedding": 8,
        "conditioning": 4,
        "halvings": 1,
        "blocks": 1,
        "width": 2,
        "discriminator_width": 2,
        "compressed": 8,
    },
    "text_encoder": {
        "name": "text_encoder",
        "image_size": 16,
        "channels": 1,
        "embedding": 8,
        "length": 36,
        "width": 8,
        "image_width": 4,
    },
    "vae": {"name": "vae", "image_size": 16, "hidden": (32,), "latent": 4},
    "wgan_gp": {"name": "wgan_gp", "image_size": 16, "width": 4, "latent": 8, "n_critic": 2},
}

# Models whose runs a model is built on, by the keyword that each is handed over as.
USED_MODELS = {"stackgan2": {"stage1": "stackgan1"}}


def make_model(name: str, reduce=list, **changes):
    """The model of MODEL_CONFIGS, with those that it is built on."""
    model = models.find(name)
    tf.keras.utils.set_random_seed(0)
    used = {field: make_model(other) for field, other in USED_MODELS.get(name, {}).items()}
    return model(model.Config(**{**MODEL_CONFIGS[name], **changes}), reduce, **used)


def make_batch(name: str, size: int = 8, seed: int = 0) -> dict:
    """A batch of noise with all that the model of MODEL_CONFIGS reads."""
    model = models.find(name)
    config = model.Config(**MODEL_CONFIGS[name])
    rng = np.random.default_rng(seed)

    def one() -> dict:
        images = rng.uniform(-1, 1, [size, config.image_size, config.image_size, config.channels]).astype(np.float32)
        captions = [
            f"{rng.choice(['a red', 'one green'])} {rng.choice(['circle', 'square'])}\n{i}, quickly"
            for i in range(size)
        ]
        return {
            "image": tf.constant(images),
            "label": tf.constant(rng.integers(0, 10, size), tf.int32),
            "caption": tf.constant(captions),
            "embedding": tf.constant(rng.normal(size=[size, 3, getattr(config, "embedding", 8)]), tf.float32),
        }

    parts = [part for part in model.reads(config) if part in ("a", "b", "labelled", "unlabelled")]
    return {part: one() for part in parts} or one()


def make_inputs(name: str, size: int) -> dict:
    """What the model's `generate` takes beside seeds, the same in every row."""
    model = models.find(name)
    config = model.Config(**MODEL_CONFIGS[name])
    images = tf.zeros([size, config.image_size, config.image_size, config.channels])
    kinds = {
        "label": tf.zeros([size], tf.int32),
        "caption": tf.fill([size], "a red circle"),
        "embedding": tf.ones([size, 3, getattr(config, "embedding", 8)]),
    }
    return {key: kinds.get(key, images) for key in model.takes(config)[:1]}


@pytest.fixture(scope="session")
def spark():
    session = job.session("tests", bigdl.jars())
    yield session
    session.stop()


@pytest.fixture(scope="session")
def lake(tmp_path_factory) -> str:
    """A lake that holds the packaged digits at 16x16 as dataset `digits`, in at least 8 row groups a split."""
    return str(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="session")
def digits(spark, lake) -> str:
    """URL of the dataset `digits`."""
    return ingest.ingest(spark, make_config(lake))["dataset"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.exists():
        pytest.skip(f"real images are not here: no folder {SHARED}")
    return SHARED


def make_config(lake: str, model: str = "dcgan", run: str = "run", **sections: dict) -> config.Config:
    """A config on the 16x16 digits; `sections` update its sections, for instance train={"steps": 3}."""
    made = config.parse(
        {
            "run": run,
            "dataset": "digits",
            "lake": lake,
            "ingest": {
                "source": "digits",
                "height": 16,
                "width": 16,
                "validation": 0.1,
                "test": 0.2,
                "planned_workers": 2,
            },
            "model": MODEL_CONFIGS[model],
            "train": {
                "steps": 4,
                "batch_size": 16,
                "log_every": 2,
                "checkpoint_every": 2,
                "sample_every": 4,
                "launcher": "local",
            },
        },
        models.config_class,
    )
    return config.replaced(made, **sections)


def write_config(folder: Path, made: config.Config) -> str:
    """The config as a file, for a job of its own; its path."""
    table = config.resolved(made)
    sections = {key: table.pop(key) for key in list(table) if isinstance(table[key], dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items()]
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    path = folder / "run.toml"
    path.write_text("\n".join(lines))
    return str(path)
