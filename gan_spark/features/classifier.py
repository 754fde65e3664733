"""Classifier that an evaluation trains where no pre-trained network is to be had."""

import dataclasses
import uuid

from .. import lake, models
from ..config import Config, Train, UserError
from ..data import schema
from ..runs.store import Run
from ..training import driver


def trained_lenet(spark, config: Config, manifest: schema.Manifest) -> Run:
    """The run of the `lenet` for the config's dataset, trained first where there is none yet."""
    steps, batch = config.evaluate.classifier_steps, config.evaluate.classifier_batch
    classifier = dataclasses.replace(
        config,
        # Named after all that it is learnt from, so that figures are comparable where the name is the same.
        run=f"lenet-{config.dataset}-{manifest.fingerprint[:8]}-{steps}-{batch}",
        model=models.find("lenet").Config(
            image_size=manifest.height, channels=manifest.channels, classes=len(manifest.classes)
        ),
        # Runs of many configs share it: of theirs it takes only where and how patiently ranks run.
        train=Train(
            steps=steps,
            batch_size=batch,
            checkpoint_every=steps,
            sample_every=steps,
            snapshot=manifest.number,
            **{
                name: getattr(config.train, name)
                for name in ("launcher", "workers", "threads", "restarts", "start_timeout")
            },
        ),
    )
    run = Run.of(classifier)
    if not _is_trained(run, steps):
        run.check_is_run()
        # In a run of its own, as another job may train it at this moment; whoever ends first puts it in place.
        own_config = dataclasses.replace(classifier, run=f"{classifier.run}.{uuid.uuid4().hex[:8]}")
        trained = Run.of(own_config)
        try:
            driver.train(spark, own_config)
            record = trained.record()
            record["config"]["run"] = classifier.run
            trained.write_record(record)
            if not _is_trained(run, steps):
                run.check_is_run()
                lake.replace(trained.url, run.url)
        except UserError:
            if not _is_trained(run, steps):
                raise
        finally:
            lake.remove(trained.url)
    return run


def _is_trained(run: Run, steps: int) -> bool:
    with run.checkpoint() as newest:
        return newest is not None and newest[0] == steps
