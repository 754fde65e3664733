"""Checks of a training before it starts: its settings, and whether a model's images, classes and streams are the
dataset's.
"""

from .. import lake, models
from ..config import Config, Train, UserError, resolved
from ..data import parts, schema
from ..runs.loading import used_runs
from ..runs.store import Run
from . import ranks

FEW = 8  # images of a rank, fewer than which are not what statistics are taken over, where that can be helped


def check_settings(spark, config: Config) -> None:
    """`UserError` where the model or the session is not what section [train] asks for: what is known without the
    dataset.
    """
    if config.model is None:
        raise UserError("the config has no [model] section: name one, for instance model.name = 'dcgan'")
    ranks.check(spark, config.train)
    if config.train.validate_every and not models.find(config.model.name).monitored:
        raise UserError(
            f"train.validate_every = {config.train.validate_every}: model {config.model.name!r} has nothing that is"
            " measured on held-out images"
        )


def check_ingest(config: Config) -> None:
    """`UserError` where the model cannot be trained on the dataset that section [ingest] makes: what is known without
    it.
    """
    options, columns = config.ingest, parts.names(config.ingest)
    _check_images(config.model, (options.height, options.width, options.channels), "section [ingest] makes")
    _check_all_labelled(config.model, columns, "a dataset that is ingested")
    reads = models.find(config.model.name).reads(config.model)
    missing = [name for name in reads if _HOW.get(name, "").startswith("ingest.parts") and name not in columns]
    if missing:
        raise UserError(
            f"model {config.model.name!r} reads {', '.join(missing)}; ingest.parts = {options.parts!r}: ingest with"
            f" {_HOW[missing[0]]}"
        )


def settings(config: Config) -> dict:
    """What of the config a run's record holds, as it must not change."""
    train = {**resolved(config.train), "statistics": statistics(config)}
    return {"model": resolved(config.model), "train": train, "uses": used_runs(config)}


def statistics(config: Config) -> str:
    """Over which images a step takes its statistics: those of each "rank", or of the whole "batch". What
    `train.statistics` leaves open, a run that is there has decided, or else how many images a rank has.
    """
    options, kind = config.train, models.find(config.model.name).batch_statistics(config.model)
    share, chosen, run = options.batch_size // options.workers, options.statistics, Run.of(config)
    if chosen == "auto" and lake.exists(run.path("config.json")):
        chosen = run.record()["config"].get("train", {}).get("statistics", "rank")
    elif chosen == "auto":
        chosen = "batch" if kind == "whole" and (share < FEW or options.workers == 1) else "rank"
    if chosen == "batch" and kind == "rank":
        raise UserError(
            f'train.statistics = "batch": model {config.model.name!r} as it is configured takes statistics over each'
            ' rank\'s images alone; use "auto"'
        )
    if kind != "none" and (share if chosen == "rank" else options.batch_size) < 2:
        raise UserError(
            f"train.batch_size = {options.batch_size} on train.workers = {options.workers}: model"
            f" {config.model.name!r} takes statistics over the images of a {chosen}, and has one: expected two or more"
        )
    return chosen


def check_record(config: Config, run: Run, record: dict) -> None:
    """`UserError` where the run is there and was started with other settings, or is something else than a run."""
    if lake.exists(run.path("config.json")):
        former = run.record()["config"].get("train", {}).get("workers", config.train.workers)
        is_bound = models.find(config.model.name).batch_statistics(config.model) != "none"
        if former != config.train.workers and is_bound and record["config"]["train"]["statistics"] == "rank":
            raise UserError(
                f"train.workers = {config.train.workers}: run {run.url} was started on {former}, and model"
                f" {config.model.name!r} takes statistics over each rank's share of the batch, which would be another"
                f' one; go on with {former}, or start another run with train.statistics = "batch"'
            )
    run.check(record, _defaults(config))


def check_run(config: Config) -> None:
    """`UserError` where the config's run is there with other settings, or is something else than a run."""
    run = Run.of(config)
    record = {"config": {"run": config.run, **settings(config)}, "dataset": {}}
    if lake.exists(run.path("config.json")):
        record["dataset"] = run.record()["dataset"]
    check_record(config, run, record)


def _defaults(config: Config) -> dict:
    """Settings that stand for those which there were not when a run was started."""
    return {"model": resolved(type(config.model)()), "train": {**resolved(Train()), "statistics": "rank"}}


def check_checkpoint(config: Config, step: int) -> None:
    """`UserError` where the run will have no checkpoint at `step` once it is trained, 0 being its newest."""
    options = config.train
    if not step or (options.validate_every and step <= options.steps):  # Which is best, nobody knows before.
        return
    run = Run.of(config)
    present = run.checkpoints()
    start = present[-1] if present else 0
    every = options.checkpoint_every
    to_come = [due for due in (*range(every, options.steps, every), options.steps) if due > start]
    steps = sorted({*present, *to_come})[-options.keep :] if to_come else present
    if step not in steps and step != (run.best() or {}).get("step"):
        raise UserError(
            f"generate.checkpoint = {step}: run {config.run!r} will have those at {', '.join(map(str, steps))}"
            f" (train.steps = {options.steps}, train.checkpoint_every = {every}, train.keep = {options.keep})"
        )


def check_model(config: Config, manifest: schema.Manifest, url: str) -> None:
    """`UserError` where the model's images or classes are not the dataset's."""
    model = config.model
    _check_images(model, manifest.shape, f"dataset {url} holds")
    columns = {
        "image",
        *manifest.parts,
        *(["label"] if manifest.classes else []),
        *(["caption"] if manifest.captioned else []),
        *(["embedding"] if manifest.embedding else []),
    }
    _check_all_labelled(model, manifest.parts, f"dataset {url} that was ingested")
    missing = [name for name in models.find(model.name).reads(model) if name not in columns]
    if missing:
        raise UserError(
            f"model {model.name!r} reads {', '.join(missing)}; dataset {url} has {', '.join(sorted(columns))}: ingest"
            f" it with {_HOW[missing[0]]}"
        )
    classes = getattr(model, "classes", None)
    if classes is not None and classes != len(manifest.classes):
        raise UserError(f"model.classes = {classes}; dataset {url} has {len(manifest.classes)} classes")


def check_classes(config: Config, start: dict | None, classes: list[str]) -> None:
    """`UserError` where the model has more classes than that of the run which it begins with, and they are not behind
    that run's: `classes` are those of the dataset.
    """
    former = (start or {}).get("dataset", {}).get("classes", [])
    if models.find(config.model.name).widens and len(former) < len(classes) and classes[: len(former)] != former:
        raise UserError(
            f"train.start_from = {config.train.start_from!r}: the {len(former)} classes of its dataset are not the"
            f" first of the {len(classes)} of this one ({', '.join(former[:10])}; {', '.join(classes[:10])}): what is"
            " added with ingest.new_classes = 'add' comes behind"
        )


def _check_images(model, shape: tuple[int, int, int], holder: str) -> None:
    expected = (model.image_size, model.image_size, model.channels)
    if shape != expected:
        raise UserError(
            f"model.image_size and model.channels ask for images of {expected}; {holder} {shape}: change the model or"
            " ingest at that size"
        )


def _check_all_labelled(model, parts_there: tuple[str, ...], holder: str) -> None:
    if "unlabelled" in parts_there and "label" in models.find(model.name).reads(model):
        raise UserError(
            f"model {model.name!r} reads labels; {holder} with ingest.parts = 'labels' has images without one: use a"
            " dataset with all labels"
        )


_HOW = {
    "a": "ingest.parts = 'classes', 'edges' or 'recoloured'",
    "b": "ingest.parts = 'classes', 'edges' or 'recoloured'",
    "labelled": "ingest.parts = 'labels'",
    "unlabelled": "ingest.parts = 'labels'",
    "label": "labels",
    "caption": "captions (ingest.caption_column)",
    "embedding": "ingest.embedding_column",
}


def parts_of(model, manifest: schema.Manifest) -> tuple[str, ...]:
    """The parts of the dataset that the model of this config reads as streams of their own."""
    return tuple(name for name in models.find(model.name).reads(model) if name in manifest.parts)
