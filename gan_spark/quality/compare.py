"""Comparison of a run with the promoted version of a model: whether it is better by more than chance.

Classifiers are compared on the same held-out images, by the exact test of McNemar (1947): of the images that one of the
two is right about and the other is not, as many should fall to either side. Models that make images are compared by
KID, an estimate without bias that comes with its standard error; of FID none is known.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator

import numpy as np
from scipy import stats

from .. import models
from ..config import Config, UserError, replaced
from ..data import images, schema, splits
from ..runs import loading
from ..runs.record import dataset_of
from ..runs.store import Run
from ..sampling import generate
from . import evaluate

log = logging.getLogger(__name__)
LEVEL = 0.05  # of chance, that a run which is no better seems so or one which is no worse


def compare(spark, config: Config, version: dict) -> dict:
    """The config's run against `version` of the model `promote.model`, on `evaluate.split` of the run's dataset.

    {"better": whether the run is, at LEVEL; "p": of no difference; "measure": "accuracy" or "kid"; "value" and
    "before": that of the run, and of the version}, with "split" and what is measured beside them.
    """
    kind = models.find(config.model.name)
    answer = (_by_accuracy if hasattr(kind, "classify") else _by_kid)(spark, config, version)
    return {**answer, "split": config.evaluate.split}


def _by_accuracy(spark, config: Config, version: dict) -> dict:
    """Accuracy of both over all images of the split, and over each class's."""
    runs = Run.of(config), Run.named(config.lake, version["run"])
    steps = runs[0].preferred(), version["step"]
    url = dataset_of(runs[0].record())
    manifest = schema.read_manifest(url)
    checkpoints = [loading.read_checkpoint(spark, run, step) for run, step in zip(runs, steps, strict=True)]
    counts = rights(splits.frame(spark, url, config.evaluate.split), checkpoints, manifest, config.evaluate.batch_size)
    for checkpoint in checkpoints:
        checkpoint.files.destroy()
    count, both, gained, lost = counts.sum(0).tolist()
    p = mcnemar(gained, lost)
    by_class = {
        name: {"images": row[0], "accuracy": (row[1] + row[2]) / row[0], "before": (row[1] + row[3]) / row[0]}
        for name, row in zip(manifest.classes, counts.tolist(), strict=True)
        if row[0]
    }
    return {
        "better": gained > lost and p < LEVEL,
        "p": p,
        "measure": "accuracy",
        "value": (both + gained) / count,
        "before": (both + lost) / count,
        "images": count,
        "gained": gained,
        "lost": lost,
        "classes": by_class,
    }


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided probability that of gained + lost images as many or more fall to one side, by chance."""
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def rights(frame, checkpoints: list[loading.Checkpoint], manifest: schema.Manifest, batch_size: int) -> np.ndarray:
    """[classes, 4]: images of each class, and of these how many both checkpoints are right about, the first alone, and
    the second alone. A model is wrong about an image of a class that it does not have.
    """
    size = len(manifest.classes)

    def partial(rows: Iterator) -> Iterator[np.ndarray]:
        import tensorflow as tf

        total = np.zeros([size, 4], np.int64)
        for chunk in splits.chunks(rows, batch_size):
            batch = splits.unpack({name: [row[name] for row in chunk] for name in ("image", "label")}, manifest)
            unit, first_second = images.to_unit(batch["image"]), []
            for checkpoint in checkpoints:
                classify = loading.compiled(loading.carried_model(checkpoint).classify)
                names = checkpoint.record["dataset"]["classes"]
                places = np.array([manifest.classes.index(name) if name in manifest.classes else -1 for name in names])
                first_second.append(places[tf.argmax(classify(unit), 1).numpy()] == batch["label"])
            one, other = first_second
            columns = (np.ones_like(one), one & other, one & ~other, ~one & other)
            for column, chosen in enumerate(columns):
                total[:, column] += np.bincount(batch["label"][chosen], minlength=size)
        yield total

    labelled = frame.where("label >= 0").select("image", "label")
    return labelled.rdd.mapPartitions(partial).treeReduce(np.add)


def _by_kid(spark, config: Config, version: dict) -> dict:
    """KID of images of both, which are made as the config says, in tables `<run>-compared` and `<model>-compared`."""
    reports = []
    for run, step, table in (
        (config.run, Run.of(config).preferred(), f"{config.run}-compared"),
        (version["run"], version["step"], f"{config.promote.model}-compared"),
    ):
        options = {"model": "", "checkpoint": step, "table": table, "append": False}
        of_run = dataclasses.replace(replaced(config, generate=options), run=run)
        generate.generate(spark, of_run)
        reports.append(evaluate.evaluate(spark, of_run))
    return kid_difference(*reports)


def kid_difference(report: dict, before: dict) -> dict:
    """The comparison of two reports of `evaluate`. Both look at the same real images, so that the error of their
    difference is less than is taken here, where nothing is known of what they share.
    """
    alike = ("dataset", "fingerprint", "split", "part", "features", "features_hash", "generated_images")
    if changed := [key for key in alike if report.get(key) != before.get(key)]:
        raise UserError(
            f"the two were not measured alike ({', '.join(changed)}): something was added meanwhile; begin again"
        )
    if report["kid_error"] is None or before["kid_error"] is None:
        raise UserError(
            f"evaluate.sample: KID of {report['generated_images']} generated and {report['real_images']} real images"
            " has no standard error, so that nothing is better by more than that: generate more"
        )
    error = math.hypot(report["kid_error"], before["kid_error"])
    difference = before["kid"] - report["kid"]
    p = float(2 * stats.norm.sf(abs(difference) / error)) if error else float(difference == 0)
    return {
        "better": difference > 0 and p < LEVEL,
        "p": p,
        "measure": "kid",
        "value": report["kid"],
        "before": before["kid"],
        "error": error,
        "fid": report["fid"],
        "fid_before": before["fid"],
    }
