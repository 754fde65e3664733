"""Online learning: a registered model goes on learning from what a stream adds to its dataset.

A round is a run `<run>-<snapshot>`: it begins with the promoted version's weights, learns for `stream.steps` steps on
the newest snapshot, is compared with the promoted version on held-out images, and is promoted if it is better by more
than chance. The lake alone says where a round is, so that a job that died goes on with it: a round whose run has all
its steps is not trained again, and one whose run is registered is over.
"""

import dataclasses
import logging
import re

from . import lake, models
from .config import Config, UserError, check_sections, replaced
from .data import schema, snapshots
from .data import stream as arriving
from .quality import compare
from .runs import registry
from .runs.store import Run
from .training import checks, driver

log = logging.getLogger(__name__)


def stream(spark, config: Config) -> dict:
    """`data.stream.stream`, and with `stream.train_every` a round after each so many images that it adds."""
    if not config.stream.train_every:
        return arriving.stream(spark, config)
    _check(spark, config)
    settled = []

    def learn() -> None:
        if answer := learn_on(spark, config):
            settled.append(answer)

    learn()  # A round that a dead job has begun, or that is due by what it added.
    answer = arriving.stream(spark, config, learn)
    promoted = registry.current(config.lake, config.promote.model)
    return {
        **answer,
        "rounds": len(settled),
        "promotions": sum(round["promoted"] for round in settled),
        "model": config.promote.model,
        "version": promoted["version"],
        "run": promoted["run"],
    }


def _check(spark, config: Config) -> None:
    """`UserError` where no round could be trained or compared, before anything is added."""
    check_sections(config, "train", "evaluate")
    checks.check_settings(spark, config)
    kind, name = models.find(config.model.name), config.promote.model
    if registry.current(config.lake, name) is None:
        raise UserError(
            f"stream.train_every = {config.stream.train_every}: no version of promote.model = {name!r} is promoted in"
            f" {config.lake}, from which to go on; train a run and promote it: gan-spark promote RUN --model {name}"
        )
    if config.ingest.new_classes == "add" and hasattr(config.model, "classes") and not kind.widens:
        raise UserError(
            f"ingest.new_classes = 'add' with stream.train_every: model {config.model.name!r} cannot begin with the"
            " weights of one with fewer classes; use 'refuse', or add without training"
        )
    if not hasattr(kind, "classify") and not issubclass(kind, models.GenerativeModel):
        raise UserError(
            f"stream.train_every: model {config.model.name!r} is neither a classifier nor makes images, so that no"
            " version can be compared with another"
        )


def learn_on(spark, config: Config) -> dict | None:
    """Goes on with the round that is under way, or begins one if it is due; what came of it, or None."""
    number = _round(config)
    if number is None:
        return None
    config = _of_round(config, number)
    if config.stream.steps not in Run.of(config).checkpoints():
        driver.train(spark, config)
    version, compared, answer = _settled(spark, config)
    log.info(
        "stream: run %s against version %d of %s, split %s: %s %.4f, before %.4f (p = %.2g): %s",
        *(config.run, version["version"], config.promote.model, compared["split"], compared["measure"]),
        *(compared["value"], compared["before"], compared["p"]),
        f"promoted, as version {answer['version']}" if answer["promoted"] else "not promoted",
    )
    return {**answer, "compared": compared}


def _settled(spark, config: Config) -> tuple[dict, dict, dict]:
    """(the promoted version that the round's run was compared with, the comparison, what `registry.settle` made of it);
    with another one, where that was promoted meanwhile.
    """
    name = config.promote.model
    while True:
        version = registry.current(config.lake, name)
        compared = compare.compare(spark, config, version)
        try:
            answer = registry.settle(
                config.lake, config.run, name, compared["better"], compared, against=version["version"]
            )
            return version, compared, answer
        except registry.Overtaken as error:
            log.warning("stream: %s. They are compared again", error)


def _round(config: Config) -> int | None:
    """The snapshot that a round is under way or due on; None for none."""
    url = lake.dataset_url(config)
    if not lake.exists(lake.join(url, schema.MANIFEST)):
        return None
    entries = registry.read(config.lake, config.promote.model)["versions"]
    over = {version["run"] for version in entries}
    rounds = _rounds(config)
    if rounds and f"{config.run}-{rounds[-1]}" not in over:
        return rounds[-1]
    newest = schema.read_manifest(url)
    promoted = registry.current(config.lake, config.promote.model)
    former = [promoted["run"], *([f"{config.run}-{rounds[-1]}"] if rounds else [])]
    learnt = [_rows(url, Run.named(config.lake, name)) for name in former]
    rows, split = newest.rows, config.train.split
    is_due = sum(rows.values()) - max(sum(row.values()) for row in learnt) >= config.stream.train_every
    has_new = rows[split] > max(row.get(split, 0) for row in learnt)
    return newest.number if is_due and has_new else None


def _rounds(config: Config) -> list[int]:
    """The snapshots that rounds were begun on."""
    names = registry.names(lake.join(lake.to_url(config.lake), "runs"))
    matches = filter(None, (re.fullmatch(re.escape(config.run) + r"-(\d+)", name) for name in names))
    return sorted(int(match[1]) for match in matches)


def _rows(url: str, run: Run) -> dict[str, int]:
    """Rows by split of the snapshot that the run is of; none where that is no snapshot of the dataset at `url`."""
    dataset = run.record()["dataset"]
    number = snapshots.find(url, dataset.get("snapshot", 0), dataset.get("fingerprint", ""))
    return schema.read_manifest(lake.at_snapshot(url, number)).rows if number else {}


def _of_round(config: Config, number: int) -> Config:
    """The config of the round's run."""
    name = f"{config.run}-{number}"
    run = Run.named(config.lake, name)
    start = registry.current(config.lake, config.promote.model)["run"]
    if lake.exists(run.path("config.json")):  # Another version may be promoted since.
        start = run.record()["config"]["train"]["start_from"]
    train = {"steps": config.stream.steps, "start_from": start, "snapshot": number}
    manifest = schema.read_manifest(lake.at_snapshot(lake.dataset_url(config), number))
    model = config.model
    if hasattr(model, "classes") and models.find(model.name).widens:
        model = dataclasses.replace(model, classes=len(manifest.classes))
    return dataclasses.replace(replaced(config, train=train), run=name, model=model)
