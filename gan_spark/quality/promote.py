"""Promotion of a run as a job: what was not measured alike is measured anew."""

import dataclasses
import logging

from ..config import Config, replaced
from ..runs import registry
from ..sampling import generate
from . import caveats, evaluate

log = logging.getLogger(__name__)


def promote_run(spark, config: Config) -> dict:
    """`registry.promote` as a job. Where the promoted version was not measured like the run, its images are made and
    measured again, as the config says, in table `<model>-promoted`.

    So it is after every ingest of new images, which are another measure.
    """
    answer = _promoted(spark, config)
    if config.promote.only_if_better:
        caveats.warn_of_promotion(config.lake, config.run, answer)
    return answer


def _promoted(spark, config: Config) -> dict:
    arguments = config.lake, config.run, config.promote.model, config.promote.only_if_better
    try:
        return registry.promote(*arguments)
    except registry.Incomparable as error:
        log.info("promote: %s. The promoted version is measured again", error)
    version = registry.current(config.lake, config.promote.model)
    options = {"model": "", "checkpoint": version["step"], "table": f"{config.promote.model}-promoted", "append": False}
    version_config = dataclasses.replace(replaced(config, generate=options), run=version["run"])
    generate.generate(spark, version_config)
    evaluate.evaluate(spark, version_config)
    return registry.promote(*arguments)
