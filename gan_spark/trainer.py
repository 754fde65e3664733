"""The only training loop: every model of every family goes through it.

Driver: `train` checks everything, records the run, launches the ranks and starts them again after a failure.
Rank: `_work` builds the model, restores and broadcasts it, steps, logs and saves.
"""

import dataclasses
import datetime
import functools
import hashlib
import logging
import math
import platform
import time

from . import dataset, images, lake, launch, models, schema, tracking
from .config import Config, Train, UserError, parse, resolved
from .diary import Diary, Monitor, Progress
from .launch import Team
from .networks import NotFetched
from .store import Run
from .version import code_version

log = logging.getLogger(__name__)
PREVIEW = 64  # images in a grid of samples
_FROM_BEFORE = "the last checkpoint is from before. Lower the learning rate, or look at the images"
_loaded: dict = {}  # (run URL, step, when the run was created) -> model


class TrainingStopped(Exception):
    """Training cannot go on, and starting again would not help."""


def train(spark, config: Config) -> dict:
    """Trains `config.model` on `config.dataset` up to `config.train.steps`, resuming where the run has a checkpoint."""
    if config.model is None:
        raise UserError("the config has no [model] section: name one, for instance model.name = 'dcgan'")
    url = lake.dataset_url(config)
    manifest = schema.read_manifest(url)
    check_model(config, manifest, url)
    launch.check(spark, config.train)
    for part in parts_of(config.model, manifest) or ("",):
        dataset.check_shards(url, config.train.split, config.train.workers, part)
    if config.train.validate_every:
        if not models.find(config.model.name).monitored:
            raise UserError(f"train.validate_every = {config.train.validate_every}: model {config.model.name!r} has nothing that is measured on held-out images")
        dataset.check_shards(url, "validation", 1)
    run = Run.of(config)
    model = {"model": resolved(config.model), "train": resolved(config.train), "uses": used_runs(config)}
    record = describe(config, url, manifest, model)
    run.check(record, {"model": resolved(type(config.model)()), "train": resolved(Train())})

    launch.check_reach(spark, config.train, lake.join(lake.to_url(config.lake), "runs"), [lake.join(url, schema.MANIFEST)])
    threads = config.train.threads or int(spark.sparkContext.getConf().get("spark.task.cpus", "1"))
    is_new = not lake.exists(run.url)
    # Ranks run in folders of their own, in which a relative path is another one.
    job = {"config": resolved(dataclasses.replace(config, lake=lake.to_url(config.lake), model=_absolute(config.model))), "dataset": url, "threads": threads, "uses": record["config"]["uses"]}
    with tracking.training(config, run, record) as tracker:
        for attempt in range(config.train.restarts + 1):
            job |= {"attempt": attempt, "owner": run.start(record)}
            log.info("train: %s on %d workers, run %s", config.model.name, config.train.workers, run.url)
            started = time.time()
            try:
                with Progress(run, config, tracker):
                    results = launch.run(spark, _work, job, config.train)
                break
            except UserError:
                if is_new and attempt == 0:
                    _remove_if_never_begun(run, job["owner"])
                raise
            except launch.RankFailure as failure:
                if not run.is_owner(job["owner"]):
                    raise TrainingStopped(f"run {run.url} was taken over by another job, or removed, while this one trained it; this one stops. One job at a time can train a run: give this one another name (run = ...)") from failure
                errors = [line for line in run.metrics() if line.get("event") == "error" and line.get("owner") == job["owner"]]
                if wrong := [line["wrong"] for line in errors if line.get("wrong")]:
                    if is_new and attempt == 0:
                        _remove_if_never_begun(run, job["owner"])
                    raise UserError(wrong[0]) from failure
                reason = "; ".join(line["error"] for line in errors) or f"{failure} (a rank was killed, or its executor's stderr says more)"
                log.warning("train: attempt %d of %d failed after %.0f s: %s", attempt + 1, config.train.restarts + 1, time.time() - started, reason)
                if attempt == config.train.restarts:
                    raise launch.RankFailure(f"run {run.url}: {attempt + 1} attempts failed, the last one: {reason}") from failure
        first = results[0]
        if first["stopped"]:
            raise TrainingStopped(first["stopped"])
        if len({result["checksum"] for result in results}) > 1:
            raise TrainingStopped(f"run {run.url}: the ranks ended with different weights; this is a defect of the model: something it carries from step to step is not reduced")
        best = {f"best_{key}": value for key, value in (run.best() or {}).items()}
        return {
            "run": run.url, "model": config.model.name, "steps": first["steps"], "workers": config.train.workers,
            "images_per_second": first["images_per_second"], "seconds": first["seconds"],
            "start_seconds": round(time.time() - started - first["seconds"], 1), "restarts": attempt,
            "checksum": first["checksum"], **first["scalars"], **best,
        }  # fmt: skip


def _absolute(model):
    """The model's config with URLs for the files that it names."""
    files = {field.name: getattr(model, field.name) for field in dataclasses.fields(model) if field.metadata.get("file")}
    return dataclasses.replace(model, **{name: lake.to_url(value) for name, value in files.items() if value not in ("", "imagenet")})


def _remove_if_never_begun(run: Run, owner: str) -> None:
    """Leaves no trace of a run whose ranks did not get as far as their steps, so that another config may have its name; what is there may be another job's by now."""
    if run.is_owner(owner) and not run.checkpoints() and not any(line.get("event") == "start" for line in run.metrics()):
        lake.remove(run.url)


def check_model(config: Config, manifest: schema.Manifest, url: str) -> None:
    """`UserError` where the model's images or classes are not the dataset's."""
    model = config.model
    expected = (model.image_size, model.image_size, model.channels)
    if manifest.shape != expected:
        raise UserError(f"model.image_size and model.channels ask for images of {expected}; dataset {url} holds {manifest.shape}: change the model or ingest at that size")
    columns = {"image", *manifest.parts, *(["label"] if manifest.classes else []), *(["caption"] if manifest.captioned else []), *(["embedding"] if manifest.embedding else [])}
    if "unlabelled" in manifest.parts and "label" in models.find(model.name).reads(model):
        raise UserError(f"model {model.name!r} reads labels; dataset {url} was ingested with ingest.parts = 'labels' and has images without one: use a dataset with all labels")
    missing = [name for name in models.find(model.name).reads(model) if name not in columns]
    if missing:
        raise UserError(f"model {model.name!r} reads {', '.join(missing)}; dataset {url} has {', '.join(sorted(columns))}: ingest it with {_HOW[missing[0]]}")
    classes = getattr(model, "classes", None)
    if classes is not None and classes != len(manifest.classes):
        raise UserError(f"model.classes = {classes}; dataset {url} has {len(manifest.classes)} classes")


_HOW = {
    "a": "ingest.parts = 'classes', 'edges' or 'recoloured'", "b": "ingest.parts = 'classes', 'edges' or 'recoloured'",
    "labelled": "ingest.parts = 'labels'", "unlabelled": "ingest.parts = 'labels'", "label": "labels",
    "caption": "captions (ingest.caption_column)", "embedding": "ingest.embedding_column",
}  # fmt: skip


def parts_of(model, manifest: schema.Manifest) -> tuple[str, ...]:
    """The parts of the dataset that the model of this config reads as streams of their own."""
    return tuple(name for name in models.find(model.name).reads(model) if name in manifest.parts)


def used_runs(config: Config) -> dict[str, dict]:
    """For each field of the model's config that names a run: its URL, checkpoint and model.

    The checkpoint is the one that `config.run` was started with, where it was started, and else the newest.
    """
    run = Run.of(config)
    started = run.record()["config"].get("uses", {}) if lake.exists(run.path("config.json")) else {}
    found = {}
    for field in dataclasses.fields(config.model):
        name = getattr(config.model, field.name)
        if field.metadata.get("run") and name:
            used = Run(lake.join(lake.to_url(config.lake), "runs", name))
            record, steps = used.record(), used.checkpoints()
            kind = record["config"]["model"]["name"]
            if kind != field.metadata["run"]:
                raise UserError(f"model.{field.name} = {name!r}: expected the run of a {field.metadata['run']}, found {kind}")
            if started.get(field.name, {}).get("url") == used.url:
                step = started[field.name]["step"]
                if step not in steps and not run.checkpoints():
                    raise UserError(f"model.{field.name} = {name!r}: run {run.url} was started with checkpoint {step} of {used.url}, which is gone (there are: {', '.join(map(str, steps)) or 'none'}), and has none of its own; remove it or name another run")
            elif not steps:
                raise UserError(f"model.{field.name} = {name!r}: run {used.url} has no whole checkpoint yet; train it first")
            else:
                step = steps[-1]
            found[field.name] = {"url": used.url, "step": step, "model": record["config"]["model"], "uses": record["config"]["uses"]}
    return found


def describe(config: Config, url: str, manifest: schema.Manifest, settings: dict) -> dict:
    """A run's config.json: `settings`, what must not change when it is resumed, with the dataset and the versions."""
    import pyspark
    import tensorflow as tf

    return {
        "config": {"run": config.run, **settings},
        "dataset": {"url": url, "fingerprint": manifest.fingerprint, "classes": list(manifest.classes), "fit": manifest.ingest["fit"]},
        "versions": {"gan_spark": code_version(), "python": platform.python_version(), "tensorflow": tf.__version__, "pyspark": pyspark.__version__},
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def build(config, team: Team = Team(), seed: int = 0, uses: dict[str, dict] | None = None):
    """The model of a model config; every rank starts from the same weights and draws other latents.

    `uses`: the models of other runs that it is built on, as `used_runs` describes them.
    """
    import tensorflow as tf

    used = {field: build(model_config(other["model"]), Team(), 0, other["uses"]) for field, other in (uses or {}).items()}
    tf.keras.utils.set_random_seed(seed)
    model = models.find(config.name)(config, team.reduce, seed * 4096 + team.rank, **used)
    # From here on for dropout, which must differ from rank to rank. NumPy takes 32 bits.
    tf.keras.utils.set_random_seed((seed * 4096 + team.rank + 1) % 2**32)
    return model


def model_config(table: dict):
    """The model config that a run's record holds."""
    return parse({"run": "r", "dataset": "d", "model": table}, models.config_class).model


def restore(model, run: Run, step: int = 0) -> int:
    """Loads checkpoint `step` (0: the newest whole one) into `model`; returns its step, 0 where there is none."""
    import tensorflow as tf

    with run.checkpoint(step) as found:
        if found is None:
            return 0
        step, prefix = found
        tf.train.Checkpoint(model=model).read(prefix).assert_existing_objects_matched()
    return step


def load_model(url: str, step: int, record: dict):
    """The model of the run at `url` at a checkpoint, to sample from or look through; built once in each process."""
    key = (url, step, record.get("created"))
    if key not in _loaded:
        launch.set_threads(1)
        model = build(model_config(record["config"]["model"]), uses=record["config"]["uses"])
        restore(model, Run(url), step)
        _loaded.clear()
        _loaded[key] = model
    return _loaded[key]


@functools.lru_cache(maxsize=4)
def compiled(method):
    """`tf.function` of a model's method, traced once in a process and not in each of its tasks."""
    import tensorflow as tf

    return tf.function(method, reduce_retracing=True)


def _work(team: Team, job: dict) -> dict:
    """One rank. Returns its result; a stop that no restart can mend is returned too, by every rank alike."""
    try:
        return _train_rank(team, job)
    except Exception as error:
        # The driver sees only that a rank has failed; this is how it learns why.
        run = Run.of(parse(job["config"], models.config_class))
        wrong = {"wrong": str(error)} if isinstance(error, UserError) and not isinstance(error, NotFetched) else {}  # with the config or the data, which no restart mends
        run.append_metrics({"event": "error", "rank": team.rank, "attempt": job["attempt"], "owner": job["owner"], **wrong, "error": f"rank {team.rank}: {type(error).__name__}: {error}"[:2000]})
        raise


def _train_rank(team: Team, job: dict) -> dict:
    import tensorflow as tf

    config = parse(job["config"], models.config_class)
    options, run = config.train, Run.of(config)
    launch.set_threads(job["threads"])
    launch.pin_device(team)
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(options.precision)
    try:
        model = build(config.model, team, options.seed, job["uses"])
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)

    if team.rank == 0 and not restore(model, run):
        for field, other in job["uses"].items():
            restore(getattr(model, field), Run(other["url"]), other["step"])
        model.begin()
    team.broadcast(model.state())
    start = int(model.step)

    share = options.batch_size // team.size
    # Another seed after a resume, or the same row groups would come first again.
    parts = parts_of(config.model, schema.read_manifest(job["dataset"]))
    stream = iter(dataset.batches(job["dataset"], options.split, share, team.rank, team.size, options.seed + start, options.shuffle_buffer, parts))

    @tf.function
    def step_function(batches):
        scalars = model.train_step(batches)
        model.step.assign_add(1)
        return scalars

    preview, monitor = tf.function(model.preview), Monitor(config.model)
    best, held_out = run.best() if options.validate_every else None, tf.function(model.held_out, reduce_retracing=True)
    if best and best["step"] > start:
        best = None  # Its checkpoint is damaged, or training would go on from there.

    def no_better_since(step: int) -> bool:
        return bool(options.patience and best and step - best["step"] >= options.patience * options.validate_every)

    with Diary(run, job, team, start) as diary:
        scalars, stopped, fixed = {}, None, None
        for step in range(start + 1, start + 1 if no_better_since(start) else options.steps + 1):
            batches = [next(stream) for _ in range(model.batches_per_step)]
            fixed = fixed or tf.nest.map_structure(lambda values: values[:PREVIEW], batches[0])
            values = step_function(batches)
            last = step == options.steps
            validates = options.validate_every and (last or step % options.validate_every == 0)
            saves, samples = last or step % options.checkpoint_every == 0, last or step % options.sample_every == 0
            if step == start + 1:
                diary.begin()  # The first step traces the graph; the clock starts after it.
            if not (saves or samples or validates or step % options.log_every == 0):
                continue
            # The log, and whether to stop, come from values that all ranks share.
            scalars = {key: float(value) for key, value in zip(values, team.reduce(list(values.values())))}
            stopped = _problem(step, scalars)
            if stopped:
                break
            diary.log(step, scalars)
            diary.warn(step, monitor.losses(step, scalars))
            if saves or samples or validates:
                average_statistics(model, team)
            better = ended = False
            if validates:
                found = measure(held_out, job["dataset"], "validation", share, team)
                diary.measured(step, {f"validation_{name}": value for name, value in found.items()})
                better = math.isfinite(found[model.monitored]) and (best is None or found[model.monitored] > best[model.monitored])
                best = {"step": step, model.monitored: found[model.monitored]} if better else best
                ended = no_better_since(step)
            if (saves or better or ended) and not _is_finite(model, team):
                stopped = f"step {step}: this step made weights that are not finite; {_FROM_BEFORE}"
                break
            if samples and team.rank == 0:
                made = preview(fixed, tf.range(PREVIEW, dtype=tf.int64))
                if made is not None:
                    pixels = images.to_pixels(made)
                    diary.sample(step, pixels)
                    diary.warn(step, monitor.variety(step, pixels))
            if (saves or better or ended) and team.rank == 0:
                diary.save(step, lambda prefix: tf.train.Checkpoint(model=model).write(prefix), options.keep)
                if better:
                    run.save_best(best)
            if ended:
                break
        if not scalars:
            scalars = next(({key: line[key] for key in line["scalars"]} for line in reversed(run.metrics()) if "scalars" in line), {})
        return {"stopped": stopped, "steps": int(model.step), "scalars": scalars, "checksum": checksum(model), **diary.rate()}


def measure(held_out, url: str, split: str, batch_size: int, team: Team = Team()) -> dict[str, float]:
    """`held_out`'s values averaged over a split; every rank goes through its row groups, and all get the whole's."""
    import tensorflow as tf

    sums, count = {}, 0
    for batch in dataset.once(url, split, batch_size, team.rank, team.size):
        values = held_out(batch)
        count += int(tf.shape(batch["image"])[0])
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(tf.reduce_sum(value))
    names = sorted(sums)
    *totals, count = (float(value) for value in team.reduce([tf.constant(value, tf.float64) for value in (*(sums[name] for name in names), count)]))
    return {name: total / count for name, total in zip(names, totals)}


def _problem(step: int, scalars: dict[str, float]) -> str | None:
    bad = [name for name, value in scalars.items() if not math.isfinite(value)]
    if not bad:
        return None
    return f"step {step}: {', '.join(f'{name} is {scalars[name]}' for name in bad)}; {_FROM_BEFORE}"


def _is_finite(model, team: Team) -> bool:
    """Whether all that the model carries is finite on every rank. The scalars of a step are those of the weights before it."""
    import tensorflow as tf

    finite = [tf.reduce_all(tf.math.is_finite(variable)) for variable in model.state() if variable.dtype.is_floating]
    # A mean of zeros is exact, for any number of ranks; one of ones is not.
    return float(team.reduce([tf.cast(not tf.reduce_all(finite), tf.float32)])[0]) == 0.0


def average_statistics(model, team: Team) -> None:
    """Batch norm's moving statistics are each rank's own; from here they are the ranks' mean."""
    local = [variable for variable in model.variables if not variable.trainable and variable.dtype.is_floating]
    if team.size > 1 and local:
        for variable, mean in zip(local, team.reduce([variable.value() for variable in local])):
            variable.assign(mean)


def checksum(model) -> str:
    """SHA-256 over everything the model carries, optimizer slots included."""
    digest = hashlib.sha256()
    for variable in model.state():
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()[:16]
