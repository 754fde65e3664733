"""Training on the driver: everything is checked, the run recorded, the ranks launched, and started again after a
failure.
"""

import contextlib
import dataclasses
import functools
import logging
import time
import uuid

from .. import lake, progress
from ..config import Config, TaskFailure, UserError, check_sections, resolved
from ..data import reader, schema, snapshots
from ..runs import tracking
from ..runs.loading import started_from
from ..runs.record import describe
from ..runs.store import Run
from . import ranks
from .checks import check_classes, check_model, check_record, check_settings, parts_of, settings
from .loop import work
from .progress import Progress

log = logging.getLogger(__name__)


class TrainingStopped(TaskFailure):
    """Training cannot go on, and starting again would not help."""


def train(spark, config: Config) -> dict:
    """Trains `config.model` on `config.dataset` up to `config.train.steps`, resuming where the run has a checkpoint."""
    check_sections(config, "train")
    url = _checked_dataset(spark, config)
    run = Run.of(config)
    record = _checked_record(config, run, url)
    since = _checked_since(config, record["started_from"], url)
    folder, manifest = lake.join(lake.to_url(config.lake), "runs"), lake.join(lake.dataset_url(config), schema.MANIFEST)
    ranks.check_reach(spark, config.train, folder, [manifest])
    # Ranks run in folders of their own, in which a relative path is another one.
    absolute = dataclasses.replace(
        config,
        lake=lake.to_url(config.lake),
        model=_absolute(config.model),
        train=dataclasses.replace(config.train, statistics=record["config"]["train"]["statistics"]),
    )
    job = {
        "config": resolved(absolute),
        "dataset": url,
        "threads": config.train.threads or int(spark.sparkContext.getConf().get("spark.task.cpus", "1")),
        "uses": record["config"]["uses"],
        "started_from": record["started_from"],
        "since": since,
    }
    with tracking.training(config, run, record) as tracker:
        results, restarts, began = _with_restarts(spark, config, run, record, job, tracker)
        return _summary(config, run, results, restarts, time.monotonic() - began)


def _checked_dataset(spark, config: Config) -> str:
    """URL of the snapshot to train on; `UserError` where model, session and dataset do not fit each other."""
    check_settings(spark, config)
    url = dataset_to_train_on(config)
    manifest = schema.read_manifest(url)
    check_model(config, manifest, url)
    for part in parts_of(config.model, manifest) or ("",):
        reader.check_split(url, config.train.split, part)
    if config.train.validate_every:
        reader.check_split(url, "validation")
    return url


def dataset_to_train_on(config: Config) -> str:
    """URL of the snapshot of the config's dataset that its run is of, or `train.snapshot`, or else the newest one.

    A run goes on with the snapshot that it was started with, and the log says so where there is a newer one.
    """
    url, run, number = lake.dataset_url(config), Run.of(config), config.train.snapshot
    newest = schema.read_manifest(url)
    if lake.exists(run.path("config.json")):
        former = run.record()["dataset"]
        started = snapshots.find(url, former.get("snapshot", 0), former.get("fingerprint", ""))
        if number and started and number != started:
            raise UserError(
                f"train.snapshot = {number}: run {run.url} is of snapshot {started} of dataset {url}, and goes on with"
                " that one; name another run"
            )
        number = started or number
    if number and number != newest.number:
        rows = sum(schema.read_manifest(lake.at_snapshot(url, number)).rows.values())
        log.info(
            "train: on snapshot %d of %s, of %d images; there is a newer one, %d, of %d images, for another run",
            number,
            url,
            rows,
            newest.number,
            sum(newest.rows.values()),
        )
    return lake.at_snapshot(url, number or newest.number)


def _checked_record(config: Config, run: Run, url: str) -> dict:
    """The run's record; `UserError` where the run was started with another one."""
    record = describe(config, url, schema.read_manifest(url), settings(config))
    record["started_from"] = start = started_from(config)
    check_record(config, run, record)
    check_classes(config, start, record["dataset"]["classes"])
    if start and not run.has_begun():
        log.info("train: begins with the weights of %s at step %d", start["url"], start["step"])
    return record


def _checked_since(config: Config, start: dict | None, url: str) -> str:
    """URL of the snapshot beyond which images are new to the run that this one begins with; empty where none are drawn
    apart. `UserError` where that cannot be told, or there are none to draw.
    """
    if not config.train.new_share:
        return ""
    dataset = (start or {}).get("dataset", {})
    since = snapshots.kept_in(url, dataset.get("fingerprint", ""))
    if not since:
        raise UserError(
            f"train.new_share = {config.train.new_share:g}: what is new to run {config.train.start_from} cannot be"
            f" told: dataset {url} does not hold the files of the snapshot which that run was trained on; it was"
            " compacted since, replaced, or is another one. Train once with train.new_share = 0"
        )
    for part in parts_of(config.model, schema.read_manifest(url)) or ("",):
        reader.check_split(url, config.train.split, part, since)
        if config.train.new_share < 1:
            reader.check_split(url, config.train.split, part, since, are_new=False)
    return since


def _with_restarts(spark, config: Config, run: Run, record: dict, job: dict, tracker) -> tuple[list[dict], int, float]:
    """(The ranks' results, how many attempts failed before, when the last one began)."""
    is_new = not lake.exists(run.url)
    try:
        return _attempts(spark, config, run, record, job, tracker)
    except BaseException as error:
        if is_new:
            _remove_if_never_begun(run, job.get("owner"))
        if isinstance(error, (KeyboardInterrupt, SystemExit)) and (steps := run.checkpoints()):
            error.add_note(f"the run {config.run} is at step {steps[-1]}; the same command goes on")
        raise


def _attempts(spark, config: Config, run: Run, record: dict, job: dict, tracker) -> tuple[list[dict], int, float]:
    """`_with_restarts`, whatever is left of a run that never began."""
    attempts, has_worked = config.train.restarts + 1, False
    for attempt in range(attempts):
        job |= {"attempt": attempt, "owner": uuid.uuid4().hex}  # Before the claim, which a signal may cut off.
        run.start(record, job["owner"])
        steps = run.checkpoints()
        start = steps[-1] if steps else 0
        going_on = f", which goes on from step {start}" if start else ""
        log.info("train: %s on %d workers, run %s%s", config.model.name, config.train.workers, run.url, going_on)
        began = time.monotonic()
        try:
            return _attempt(spark, config, run, job, tracker, start), attempt, began
        except ranks.RankFailure as failure:
            seconds = time.monotonic() - began
            log.warning("train: attempt %d of %d failed after %.0f s: %s", attempt + 1, attempts, seconds, failure)
            has_worked = has_worked or any(line.get("owner") == job["owner"] for line in run.metrics())
            if not has_worked:
                message = f"run {run.url}: the ranks could not start, and are not started again: {failure}"
                raise TrainingStopped(message) from failure
            if attempt + 1 == attempts:
                message = f"run {run.url}: {attempts} attempts failed, the last one: {failure}"
                raise ranks.RankFailure(message) from failure
    raise AssertionError("an attempt returns or raises")


def _attempt(spark, config: Config, run: Run, job: dict, tracker, start: int) -> list[dict]:
    """The ranks' results. Raises `RankFailure` with its reason where another attempt may go better."""
    try:
        with progress.part("training", spark), Progress(run, config, tracker, start):
            return ranks.run(spark, work, job, config.train, functools.partial(_ask_to_end, run, job["owner"]))
    except ranks.RankFailure as failure:
        if not run.is_owner(job["owner"]):
            raise TrainingStopped(
                f"run {run.url} was taken over by another job, or removed, while this one trained it; this one"
                " stops. One job at a time can train a run: give this one another name (run = ...)"
            ) from failure
        errors = [line for line in run.metrics() if line.get("event") == "error" and line.get("owner") == job["owner"]]
        user_errors = [line["wrong"] for line in errors if line.get("wrong")]
        if user_errors:
            raise UserError(user_errors[0]) from failure
        reason = "; ".join(line["error"] for line in errors)
        unknown = f"{failure} (a rank was killed, or its executor's stderr says more)"
        raise ranks.RankFailure(reason or unknown) from failure


def _ask_to_end(run: Run, owner: str) -> bool:
    """Asks the ranks of an attempt to save a checkpoint and end; whether there is something to save."""
    has_begun = any(line.get("event") == "start" and line.get("owner") == owner for line in run.metrics())
    if has_begun and run.is_owner(owner):
        run.ask_to_end(owner)
        return True
    return False


def _summary(config: Config, run: Run, results: list[dict], restarts: int, seconds: float) -> dict:
    """The job's result. Raises `TrainingStopped` where the ranks stopped early, or differ."""
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
        "start_seconds": round(seconds - first["seconds"], 1),
        "restarts": restarts,
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


def _remove_if_never_begun(run: Run, owner: str | None) -> None:
    """Leaves no trace of a run that has not made a step, so that another config may have its name; what is there may be
    another job's by now. Without an `owner`, this job did not get as far as claiming the run.
    """
    if (run.is_owner(owner) or run.is_owner(None)) and not run.has_begun():
        with contextlib.suppress(UserError):  # Where the run was removed, something else may stand there.
            run.check_is_run()
            lake.remove(run.url)
