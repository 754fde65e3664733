"""Pipeline of the four steps of a run: ingest, train, generate, evaluate.

What would fail at the end is told before anything is paid for: what the config alone shows before the ingest, what the
dataset shows before the training. Each step calls the same checks.
"""

import logging

from . import lake
from .config import Config, Ingest, check_sections, differences, resolved
from .data import ingest, schema
from .quality import evaluate
from .runs import loading, registry
from .runs.store import Run
from .sampling import generate
from .training import checks, driver

log = logging.getLogger(__name__)


def pipeline(spark, config: Config) -> dict:
    """Runs the four steps; a dataset that was ingested with the same settings is used again, and a run goes on where it
    is.
    """
    _check_settings(spark, config)
    url = lake.dataset_url(config)
    is_there = config.ingest.mode == "replace" and lake.exists(lake.join(url, schema.MANIFEST))
    if is_there and not differences(
        {**resolved(Ingest()), **schema.read_manifest(url).ingest}, resolved(config.ingest)
    ):
        log.info(
            "pipeline: dataset %s was made with these settings and is used again; jobs/ingest.py makes it anew", url
        )
        ingested = {"dataset": url}
    else:
        ingested = ingest.ingest(spark, config)
    _check_dataset(spark, config)
    trained = driver.train(spark, config)
    generated = generate.generate(spark, config)
    measured = evaluate.evaluate(spark, config)
    return {**ingested, **trained, **generated, **measured}


def _check_settings(spark, config: Config) -> None:
    """`UserError` where a step would refuse the config, whatever the dataset holds."""
    check_sections(config, "ingest", "train", "evaluate")
    checks.check_settings(spark, config)
    checks.check_ingest(config)
    checks.check_run(config)
    generating, model = _generating(config)
    if generating is config:
        checks.check_checkpoint(config, config.generate.checkpoint)
    generate.check_table(spark, generating)
    generate.check_settings(generating, model)
    evaluate.check_settings(generating, model)
    if config.evaluate.dataset not in ("", config.dataset):
        evaluate.check_dataset(spark, generating, model)


def _check_dataset(spark, config: Config) -> None:
    """`UserError` where a step would refuse what the dataset holds."""
    generating, model = _generating(config)
    url = lake.dataset_url(config)
    dataset = {"url": url, "classes": schema.read_manifest(url).classes}
    if generating is not config:
        dataset = Run.of(generating).record()["dataset"]
    generate.check_dataset(spark, generating, model, dataset["url"], dataset.get("classes", []))
    evaluate.check_dataset(spark, generating, model)


def _generating(config: Config) -> tuple[Config, object]:
    """The config with which images are made, and that of the model which makes them: another run's, where
    `generate.model` names a registered one.
    """
    if not config.generate.model:
        return config, config.model
    promoted = registry.promoted(config)
    return promoted, loading.model_config(Run.of(promoted).record()["config"]["model"])
