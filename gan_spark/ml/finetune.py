"""Fine-tuning of a network on Horovod ranks."""

import os
import tempfile

from .. import lake
from ..config import Config, UserError, replaced
from ..data import batches, splits
from ..runs import loading
from ..runs.store import Run
from ..training import driver
from .accuracy import agreement, labelled
from .classifier import ImageClassifier


def finetune(spark, config: Config) -> dict:
    """Trains the model `classifier` (with `finetune.balance`, every class counts the same), and measures its best
    checkpoint on split test.

    The network's weights at that checkpoint are written to `<run>/network.h5`, for a featurizer or another run to begin
    from.
    """
    url = driver.dataset_to_train_on(config)
    manifest = labelled(url)
    if config.model is None or config.model.name != "classifier":
        raise UserError(f"model.name = {config.model and config.model.name!r}: expected 'classifier'")
    held_out = splits.frame(spark, url, "test")  # Where it has no images, that is told before the training.
    if config.finetune.balance:
        config = replaced(
            config, model={"class_weights": balanced(splits.frame(spark, url, "train"), len(manifest.classes))}
        )
    trained = driver.train(spark, config)
    run = Run.of(config)
    with batches.at_most(spark, batches.FILES):
        predictions = ImageClassifier(run=run.url).transform(held_out)
        figures = agreement(predictions, manifest.classes)
    return {**trained, "weights": export(run), **figures}


def balanced(frame, classes: int) -> tuple[float, ...]:
    """Weights inverse to how many images a class has, 1 on average over the images; 0 for a class without any."""
    counts = {row["label"]: row["count"] for row in frame.groupBy("label").count().collect()}
    return tuple(
        round(sum(counts.values()) / (len(counts) * counts[label]), 6) if label in counts else 0.0
        for label in range(classes)
    )


def export(run: Run) -> str:
    """Writes the network's weights, without the head, to `<run>/network.h5`; its URL."""
    record, step = run.record(), run.preferred()
    network = loading.load_model(run.url, step, record).network
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "network.h5")
        network.save_weights(path)
        with open(path, "rb") as stream:
            lake.write_bytes(run.path("network.h5"), stream.read())
    return run.path("network.h5")
