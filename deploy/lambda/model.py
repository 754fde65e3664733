"""The model of a function: an export of gan_spark in object storage, kept in /tmp with its checksum, loaded once.

BUCKET and MODEL say where it is: `gan-spark export ... --to s3://BUCKET/MODEL`.
"""

import functools
import hashlib
import json
import logging
import os
import re
import tempfile
import time
from pathlib import Path

import boto3

log = logging.getLogger(__name__)
log.setLevel(logging.INFO)
_PLACE = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*")


@functools.cache
def storage():
    return boto3.client("s3")


def bucket() -> str:
    return os.environ["BUCKET"]


def put(key: str, data: bytes, kind: str) -> None:
    storage().put_object(Bucket=bucket(), Key=key, Body=data, ContentType=kind)


@functools.cache
def load() -> tuple[object, dict]:
    """(The SavedModel, its description), which a container loads when it is first asked.

    Whatever is in /tmp already, from a process before this one, is used if it has the checksum that the description
    names. `RuntimeError` where what is in storage has another.
    """
    began = time.monotonic()
    described = _read("description.json")
    description = json.loads(described)
    folder = Path(tempfile.gettempdir(), f"model-{hashlib.sha256(described).hexdigest()[:16]}")
    version = str(int(description["lineage"]["version"]))
    fetched = sum([_fetch(folder / version, version, name, sha) for name, sha in description["files"].items()])
    log.info("model: %d of %d files fetched in %.1f s", fetched, len(description["files"]), time.monotonic() - began)
    # One seed is one image under these settings, which TensorFlow reads when it is imported.
    os.environ.update(description["exact"]["environment"])
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(description["exact"]["threads"])
    model = tf.saved_model.load(str(folder / version))
    log.info("model: loaded after %.1f s", time.monotonic() - began)
    return model, description


def ask(name: str, **columns) -> dict:
    """What the model's signature gives of these columns, by name, as NumPy arrays."""
    import tensorflow as tf

    model, _ = load()
    kinds = {"seed": tf.int64, "label": tf.int32}
    tensors = {column: tf.constant(values, kinds.get(column, tf.string)) for column, values in columns.items()}
    return {key: value.numpy() for key, value in model.signatures[name](**tensors).items()}


def _read(place: str) -> bytes:
    return storage().get_object(Bucket=bucket(), Key=f"{os.environ['MODEL'].strip('/')}/{place}")["Body"].read()


def _fetch(folder: Path, version: str, name: str, checksum: str) -> bool:
    """Puts a file of the model into the folder; whether it had to be fetched."""
    if not _PLACE.fullmatch(name):
        raise RuntimeError(f"the model's description names a file {name!r}, which is none of a model")
    path = folder / name
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == checksum:
        return False
    data = _read(f"{version}/{name}")
    if (found := hashlib.sha256(data).hexdigest()) != checksum:
        raise RuntimeError(f"{name} of the model: expected the SHA-256 sum {checksum}, found {found}; export it again")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(data)
    part.replace(path)
    return True
