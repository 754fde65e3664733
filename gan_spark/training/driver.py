"""Training on the driver: everything is checked, the run recorded, the ranks launched, and started again after a
failure.
"""

import dataclasses
import logging
import time

from .. import lake, models
from ..config import Config, Train, UserError, resolved
from ..data import reader, schema
from ..runs import tracking
from ..runs.loading import used_runs
from ..runs.record import describe
from ..runs.store import Run
from . import ranks
from .checks import check_model, parts_of
from .loop import work
from .progress import Progress

log = logging.getLogger(__name__)


class TrainingStopped(Exception):
    """Training cannot go on, and starting again would not help."""


def train(spark, config: Config) -> dict:
    """Trains `config.model` on `config.dataset` up to `config.train.steps`, resuming where the run has a checkpoint."""
    if config.model is None:
        raise UserError("the config has no [model] section: name one, for instance model.name = 'dcgan'")
    url = lake.dataset_url(config)
    manifest = schema.read_manifest(url)
    check_model(config, manifest, url)
    ranks.check(spark, config.train)
    for part in parts_of(config.model, manifest) or ("",):
        reader.check_shards(url, config.train.split, config.train.workers, part)
    if config.train.validate_every:
        if not models.find(config.model.name).monitored:
            raise UserError(
                f"train.validate_every = {config.train.validate_every}: model {config.model.name!r} has nothing that is"
                " measured on held-out images"
            )
        reader.check_shards(url, "validation", 1)
    run = Run.of(config)
    model = {"model": resolved(config.model), "train": resolved(config.train), "uses": used_runs(config)}
    record = describe(config, url, manifest, model)
    run.check(record, {"model": resolved(type(config.model)()), "train": resolved(Train())})

    ranks.check_reach(
        spark, config.train, lake.join(lake.to_url(config.lake), "runs"), [lake.join(url, schema.MANIFEST)]
    )
    threads = config.train.threads or int(spark.sparkContext.getConf().get("spark.task.cpus", "1"))
    is_new = not lake.exists(run.url)
    # Ranks run in folders of their own, in which a relative path is another one.
    job = {
        "config": resolved(dataclasses.replace(config, lake=lake.to_url(config.lake), model=_absolute(config.model))),
        "dataset": url,
        "threads": threads,
        "uses": record["config"]["uses"],
    }
    with tracking.training(config, run, record) as tracker:
        for attempt in range(config.train.restarts + 1):
            job |= {"attempt": attempt, "owner": run.start(record)}
            log.info("train: %s on %d workers, run %s", config.model.name, config.train.workers, run.url)
            started = time.time()
            try:
                with Progress(run, config, tracker):
                    results = ranks.run(spark, work, job, config.train)
                break
            except UserError:
                if is_new and attempt == 0:
                    _remove_if_never_begun(run, job["owner"])
                raise
            except ranks.RankFailure as failure:
                if not run.is_owner(job["owner"]):
                    raise TrainingStopped(
                        f"run {run.url} was taken over by another job, or removed, while this one trained it; this one"
                        " stops. One job at a time can train a run: give this one another name (run = ...)"
                    ) from failure
                errors = [
                    line for line in run.metrics() if line.get("event") == "error" and line.get("owner") == job["owner"]
                ]
                if wrong := [line["wrong"] for line in errors if line.get("wrong")]:
                    if is_new and attempt == 0:
                        _remove_if_never_begun(run, job["owner"])
                    raise UserError(wrong[0]) from failure
                reason = (
                    "; ".join(line["error"] for line in errors)
                    or f"{failure} (a rank was killed, or its executor's stderr says more)"
                )
                log.warning(
                    "train: attempt %d of %d failed after %.0f s: %s",
                    attempt + 1,
                    config.train.restarts + 1,
                    time.time() - started,
                    reason,
                )
                if attempt == config.train.restarts:
                    raise ranks.RankFailure(
                        f"run {run.url}: {attempt + 1} attempts failed, the last one: {reason}"
                    ) from failure
        first = results[0]
        if first["stopped"]:
            raise TrainingStopped(first["stopped"])
        if len({result["checksum"] for result in results}) > 1:
            raise TrainingStopped(
                f"run {run.url}: the ranks ended with different weights; this is a defect of the model: something it"
                " carries from step to step is not reduced"
            )
        best = {f"best_{key}": value for key, value in (run.best() or {}).items()}
        return {
            "run": run.url,
            "model": config.model.name,
            "steps": first["steps"],
            "workers": config.train.workers,
            "images_per_second": first["images_per_second"],
            "seconds": first["seconds"],
            "start_seconds": round(time.time() - started - first["seconds"], 1),
            "restarts": attempt,
            "checksum": first["checksum"],
            **first["scalars"],
            **best,
        }


def _absolute(model):
    """The model's config with URLs for the files that it names."""
    files = {
        field.name: getattr(model, field.name) for field in dataclasses.fields(model) if field.metadata.get("file")
    }
    return dataclasses.replace(
        model, **{name: lake.to_url(value) for name, value in files.items() if value not in ("", "imagenet")}
    )


def _remove_if_never_begun(run: Run, owner: str) -> None:
    """Leaves no trace of a run whose ranks did not get as far as their steps, so that another config may have its name;
    what is there may be another job's by now.
    """
    if (
        run.is_owner(owner)
        and not run.checkpoints()
        and not any(line.get("event") == "start" for line in run.metrics())
    ):
        lake.remove(run.url)
