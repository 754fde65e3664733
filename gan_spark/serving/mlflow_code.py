"""The MLflow model of an export: this file goes with it, and needs MLflow, pandas and TensorFlow, not gan_spark.

A request's table has the columns of one signature. `seed`, with `label`, `caption`, `embedding` or `image` as the model
takes: the answer has the column `image`, each a PNG in base64. `image` alone, encoded images in base64, of a model that
classifies: the answer has `label` and `probability`, the likeliest class and how likely it is. The parameter `part` is
the domain, "a" or "b", from which a model translates.
"""

import base64
import contextlib
import json
import os

import mlflow.models
import pandas as pd
from mlflow.pyfunc import PythonModel

_COLUMNS = {"image_bytes": "image"}  # of a request, where the signature has another name


class ExportedModel(PythonModel):
    def load_context(self, context):
        with open(context.artifacts["description"], encoding="utf-8") as file:
            self.description = json.load(file)
        # Before TensorFlow is imported, and before it runs an operation: with these, one seed is one image to the bit.
        for name, value in self.description["exact"]["environment"].items():
            os.environ.setdefault(name, value)
        import tensorflow as tf

        with contextlib.suppress(RuntimeError):  # Whoever loads this has used TensorFlow already.
            tf.config.threading.set_intra_op_parallelism_threads(self.description["exact"]["threads"])
        self.model = tf.saved_model.load(context.artifacts["saved_model"])

    def predict(self, context, model_input: pd.DataFrame, params: dict | None = None) -> pd.DataFrame:
        import tensorflow as tf

        name = self._signature(model_input.columns, (params or {}).get("part") or "a")
        inputs = {}
        for key, kind in self.description["signatures"][name]["inputs"].items():
            values = model_input[_COLUMNS.get(key, key)].tolist()
            if key == "image_bytes":
                values = [base64.b64decode(value, validate=True) for value in values]
            inputs[key] = tf.constant(values, tf.as_dtype(kind["dtype"]))
        outputs = {key: value.numpy() for key, value in self.model.signatures[name](**inputs).items()}
        if name == "classify":
            labels = [label.decode() for label in outputs["label"]]
            return pd.DataFrame({"label": labels, "probability": outputs["probability"].max(1).tolist()})
        return pd.DataFrame({"image": [base64.b64encode(png).decode() for png in outputs["png_bytes"]]})

    def _signature(self, columns, part: str) -> str:
        """The name of the signature that takes these columns."""
        signatures = self.description["signatures"]
        for name in ("generate", f"generate_{part}", "classify"):
            if name in signatures and {_COLUMNS.get(key, key) for key in signatures[name]["inputs"]} <= set(columns):
                return name
        expected = " or ".join(
            ", ".join(_COLUMNS.get(key, key) for key in signature["inputs"]) for signature in signatures.values()
        )
        raise ValueError(f"expected the columns {expected}; found {', '.join(columns)}")


mlflow.models.set_model(ExportedModel())
