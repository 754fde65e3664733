"""Pipeline of the four steps of a run: ingest, train, generate, evaluate."""

import logging

from . import lake
from .config import Config, Ingest, check_sections, differences, resolved
from .data import ingest, schema
from .lake import tables
from .quality import evaluate
from .sampling import generate
from .training import driver

log = logging.getLogger(__name__)


def pipeline(spark, config: Config) -> dict:
    """Runs the four steps; a dataset that was ingested with the same settings is used again, and a run goes on where it
    is.
    """
    check_sections(config, "ingest", "train", "evaluate")
    url = lake.dataset_url(config)
    if lake.exists(lake.join(url, schema.MANIFEST)) and not differences(
        {**resolved(Ingest()), **schema.read_manifest(url).ingest}, resolved(config.ingest)
    ):
        log.info(
            "pipeline: dataset %s was made with these settings and is used again; jobs/ingest.py makes it anew", url
        )
        ingested = {"dataset": url}
    else:
        ingested = ingest.ingest(spark, config)
    # What would fail at the end is told before a training is paid for.
    evaluate.real_dataset(config)
    tables.check(spark, lake.table_url(config), config.tables, generate.KIND, generate.COLUMNS)
    trained = driver.train(spark, config)
    generated = generate.generate(spark, config)
    measured = evaluate.evaluate(spark, config)
    return {**ingested, **trained, **generated, **measured}
