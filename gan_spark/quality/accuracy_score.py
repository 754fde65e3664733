"""Classification accuracy score of generated images (Ravuri and Vinyals, 2019; arXiv 1905.10887): how often a
classifier that learnt from them alone is right about real images.

The classifier is the `lenet` that an evaluation trains; here it learns on the driver, from a sample that fits there.
"""

import logging

import numpy as np

from .. import models
from ..config import Evaluate
from ..data import images, schema, splits
from ..runs import loading
from ..training.loop import measure

log = logging.getLogger(__name__)
_BYTES = 2**28  # of a side's pixels


def accuracy_scores(fake, real, url: str, manifest: schema.Manifest, options: Evaluate) -> dict:
    """Accuracies on split `options.split` of the dataset at `url`, of a classifier that is trained on the DataFrame
    `fake` (PNG), and of one that is trained on as many images of `real` (as stored); both have columns `id`, `image`
    and `label`, the index of a class.
    """
    count = min(fake.count(), real.count(), _BYTES // int(np.prod(manifest.shape)))
    accuracies = {}
    for name, frame, encoding in (("", fake, "png"), ("_real", real, manifest.encoding)):
        rows = splits.lowest_hashes(frame.select("id", "image", "label"), count).collect()
        log.info("evaluate: a classifier learns from %d %s images", len(rows), "real" if name else "generated")
        pixels = schema.unpack([row["image"] for row in rows], manifest.shape, encoding)
        model = _trained(pixels, np.array([row["label"] for row in rows], np.int32), manifest, options)
        accuracies[f"accuracy_score{name}"] = _accuracy(model, url, options)
    return {**accuracies, "accuracy_score_images": count}


def _trained(pixels: np.ndarray, labels: np.ndarray, manifest: schema.Manifest, options: Evaluate):
    """A `lenet` that saw batches of the images, uint8 [n, height, width, channels], for `options.classifier_steps`."""
    import tensorflow as tf

    config = models.find("lenet").Config(
        image_size=manifest.height, channels=manifest.channels, classes=len(manifest.classes)
    )
    model, rng, order = loading.build(config), np.random.default_rng(0), np.zeros(0, np.int64)
    model.begin()
    step = tf.function(model.train_step)
    for _ in range(options.classifier_steps):
        while len(order) < options.classifier_batch:
            order = np.concatenate([order, rng.permutation(len(pixels))])
        chosen, order = order[: options.classifier_batch], order[options.classifier_batch :]
        step([{"image": images.to_unit(pixels[chosen]), "label": tf.constant(labels[chosen])}])
        model.step.assign_add(1)
    return model


def _accuracy(model, url: str, options: Evaluate) -> float:
    import tensorflow as tf

    held_out = tf.function(model.held_out, reduce_retracing=True)
    return measure(held_out, url, options.split, options.batch_size)["accuracy"]
