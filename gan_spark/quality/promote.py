"""Promotion as a job: what was not measured alike is measured anew."""

import dataclasses
import logging

from ..config import Config, replaced
from ..runs import registry
from ..sampling import generate
from . import evaluate

log = logging.getLogger(__name__)


def promote_run(spark, config: Config) -> dict:
    """`registry.promote` as a job. Where the promoted version was not measured like the run, its images are made and
    measured again, as the config says, in table `<model>-promoted`.

    So it is after every ingest of new images, which are another measure.
    """
    asked = config.lake, config.run, config.promote.model, config.promote.only_if_better
    try:
        return registry.promote(*asked)
    except registry.Incomparable as error:
        log.info("promote: %s. The promoted version is measured again", error)
    before = registry.current(config.lake, config.promote.model)
    table = {"model": "", "checkpoint": before["step"], "table": f"{config.promote.model}-promoted", "append": False}
    again = dataclasses.replace(replaced(config, generate=table), run=before["run"])
    generate.generate(spark, again)
    evaluate.evaluate(spark, again)
    return registry.promote(*asked)
