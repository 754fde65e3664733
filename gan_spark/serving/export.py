"""Export of a run's model: a TensorFlow SavedModel with its description, and the same as an MLflow model.

    <to>/<version>/        SavedModel; TensorFlow Serving and KServe take <to> for the model's folder
    <to>/mlflow/           MLflow model, where MLflow is installed
    <to>/description.json  signatures, classes, value ranges, lineage, checksums, statistics of the training data

It is put in place whole, in place of nothing or of an earlier export.
"""

import hashlib
import json
import logging
import os
import platform
import posixpath
import tempfile
from pathlib import Path

import tensorflow as tf

from .. import lake, process
from ..config import UserError, check_path
from ..runs import registry
from ..runs.store import Run
from ..version import code_version
from . import mlflow_model, statistics
from .functions import Answers, answers, exact
from .signatures import Exported

log = logging.getLogger(__name__)
KIND = "an export"
DESCRIPTION = "description.json"


def export(root: str, to: str, run_name: str = "", model: str = "") -> dict:
    """Exports a run of the lake at `root` at its preferred checkpoint, or the promoted version of registered `model`.

    Returns {"export": URL, "run", "step", "version", "signatures", "mlflow": whether there is an MLflow model}.
    """
    url = _destination(to)
    lake.check_replaceable(url, KIND)
    run, step, entry = _chosen(root, run_name, model)
    log.info("export: run %s at step %d", run.url, step)
    answered = answers(run, step)
    sizes = {name: list(functions) for name, functions in exact(answered).items()}
    exported = Exported(answered, sizes)
    description = _description(run, step, model, entry, answered, exported, sizes)
    with tempfile.TemporaryDirectory() as folder:
        _write(folder, exported, description)
        _put(folder, url)
    return {
        "export": url,
        "run": run.url,
        "step": step,
        "version": entry["version"],
        "signatures": sorted(exported.functions),
        "mlflow": mlflow_model.is_installed(),
    }


def _destination(to: str) -> str:
    check_path("--to", to, to)
    return lake.to_url(to)


def _chosen(root: str, run_name: str, model: str) -> tuple[Run, int, dict]:
    """A run, the step of its checkpoint, and what the registry says of it: at least its `version`."""
    if not model:
        run = Run.named(root, run_name)
        run.record()
        return run, run.preferred(), {"version": 1}
    entry = registry.current(root, model)
    if entry is None:
        raise UserError(
            f"model {model!r}: no version of it is promoted in {root} (registered:"
            f" {', '.join(registry.models(root)) or 'none'}); promote one with `gan-spark promote`"
        )
    return Run.named(root, entry["run"]), entry["step"], entry


def _description(
    run: Run, step: int, model: str, entry: dict, answered: Answers, exported: Exported, sizes: dict
) -> dict:
    record = run.record()
    height, width, channels = answered.shape
    return {
        "made_by": "gan_spark",
        "model": record["config"]["model"],
        "classes": list(answered.classes),
        "image": {"height": height, "width": width, "channels": channels, "fit": answered.fit},
        "value_range": {"image": [0, 255], "network": [-1, 1], "probability": [0, 1]},
        "signatures": {name: _signature(function) for name, function in exported.functions.items()},
        "exact": {
            "batch": answered.batch if answered.generates else 1,
            "sizes": sizes,
            "threads": 1,
            "environment": process.ENVIRONMENT,
            "processor": _processor(),
        },
        "lineage": {
            "run": run.url.rsplit("/", 1)[1],
            "url": run.url,
            "step": step,
            "checkpoint_hash": run.checkpoint_hash(step),
            "dataset": record["dataset"]["url"],
            "fingerprint": record["dataset"].get("fingerprint"),
            "registered_as": model or None,
            "version": entry["version"],
            "fid": entry.get("fid"),
            "trained_with": record["versions"],
            "exported_with": code_version(),
        },
        "statistics": _statistics(record["dataset"]),
    }


def _signature(function) -> dict:
    _, inputs = function.structured_input_signature
    outputs = function.structured_outputs
    return {
        "inputs": {spec.name: _spec(spec) for spec in (*function.structured_input_signature[0], *inputs.values())},
        "outputs": {name: _spec(spec) for name, spec in outputs.items()},
    }


def _spec(spec) -> dict:
    return {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}


def _processor() -> str:
    """What the exactness was tried on: another processor may have other kernels."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _statistics(dataset: dict) -> dict | None:
    """Statistics of the training data; None where it is not there any more, or is another by now."""
    url = dataset["url"]
    try:
        found = statistics.schema.read_manifest(url).fingerprint
        if found == dataset.get("fingerprint"):
            return statistics.of_dataset(url)
        problem = f"its fingerprint is {found}, and the run's {dataset.get('fingerprint')}"
    except UserError as error:
        problem = str(error)
    log.warning("export: no statistics of the training data: dataset %s: %s", url, problem)
    return None


def _write(folder: str, exported: Exported, description: dict) -> None:
    saved, described = os.path.join(folder, str(description["lineage"]["version"])), os.path.join(folder, DESCRIPTION)
    level = tf.get_logger().level
    tf.get_logger().setLevel(
        "ERROR"
    )  # It warns of Keras layers whose own functions are not saved; they are not called.
    try:
        tf.saved_model.save(exported, saved, signatures=dict(exported.functions))
    finally:
        tf.get_logger().setLevel(level)
    description["files"] = _checksums(saved)
    Path(described).write_text(json.dumps(description, indent=2) + "\n")
    if mlflow_model.is_installed():
        mlflow_model.save(os.path.join(folder, "mlflow"), saved, described, description["signatures"])
    else:
        log.warning("export: MLflow is not installed, so there is no MLflow model; install gan-spark[mlflow]")


def _checksums(folder: str) -> dict[str, str]:
    """SHA-256 sums of the files in a folder, by their paths in it."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def _put(folder: str, url: str) -> None:
    """Puts a local folder at `url`, whole."""
    names = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
    lake.tidy(url)
    staged = lake.staging(url)
    try:
        lake.claim(staged, KIND, files=names)
        fs, path = lake.filesystem(staged)
        with lake.writing(url):
            for name in names:
                fs.makedirs(posixpath.dirname(f"{path}/{name}"), exist_ok=True)
                fs.put_file(os.path.join(folder, name), f"{path}/{name}")
        lake.write_bytes(lake.join(staged, lake.SUCCESS), b"")
        lake.check_replaceable(url, KIND)  # Writing took a while.
        lake.replace(staged, url)
    finally:
        lake.remove(staged)
