"""An export as an MLflow model, which `mlflow models serve` and what reads MLflow's format take."""

import contextlib
import importlib.util
import logging
import os
import warnings
from pathlib import Path

import tensorflow as tf

_KINDS = {
    "seed": "long",
    "label": "integer",
    "caption": "string",
    "image_bytes": "string",
}


def is_installed() -> bool:
    return importlib.util.find_spec("mlflow") is not None


def save(folder: str, saved_model: str, description: str, signatures: dict) -> None:
    """Writes the MLflow model of a SavedModel, and of the file that describes it, to the local `folder`.

    `signatures` are the description's.
    """
    with _quiet():
        import mlflow.pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
        from mlflow.types.schema import Array, DataType

        names = {name for signature in signatures.values() for name in signature["inputs"]}
        columns = [
            ColSpec(
                Array(DataType.float) if name == "embedding" else DataType[_KINDS[name]],
                "image" if name == "image_bytes" else name,
                required=False,
            )
            for name in sorted(names)
        ]
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(Path(__file__).with_name("mlflow_code.py")),
            artifacts={"saved_model": saved_model, "description": description},
            pip_requirements=[f"mlflow-skinny=={mlflow.__version__}", f"tensorflow=={tf.__version__}", "pandas"],
            signature=ModelSignature(
                inputs=Schema(columns), params=ParamSchema([ParamSpec("part", DataType.string, "a")])
            ),
        )


@contextlib.contextmanager
def _quiet():
    """Without MLflow's advice on how models are saved, and its progress bars."""
    logger = logging.getLogger("mlflow")
    before, level = os.environ.get("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"), logger.level
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"]
        else:
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = before
