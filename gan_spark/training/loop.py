"""One rank of a training: the model is built, restored and broadcast; then it steps, logs and saves."""

import math

from .. import models, process
from ..config import NotFetched, UserError, parse
from ..data import images, reader, schema
from ..process import Team
from ..runs.loading import build, checksum, restore
from ..runs.store import Run
from .checks import parts_of
from .collapse import Monitor
from .log import Diary

PREVIEW = 64  # images in a grid of samples
_FROM_BEFORE = "the last checkpoint is from before. Lower the learning rate, or look at the images"


def work(team: Team, job: dict) -> dict:
    """One rank. Returns its result; a stop that no restart can mend is returned too, by every rank alike."""
    try:
        return _train_rank(team, job)
    except Exception as error:
        # The driver sees only that a rank has failed; this is how it learns why.
        run = Run.of(parse(job["config"], models.config_class))
        wrong = (
            {"wrong": str(error)} if isinstance(error, UserError) and not isinstance(error, NotFetched) else {}
        )  # with the config or the data, which no restart mends
        run.append_metrics(
            {
                "event": "error",
                "rank": team.rank,
                "attempt": job["attempt"],
                "owner": job["owner"],
                **wrong,
                "error": f"rank {team.rank}: {type(error).__name__}: {error}"[:2000],
            }
        )
        raise


def _train_rank(team: Team, job: dict) -> dict:
    import tensorflow as tf

    config = parse(job["config"], models.config_class)
    options, run = config.train, Run.of(config)
    process.set_threads(job["threads"])
    process.pin_device(team)
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
    stream = iter(
        reader.batches(
            job["dataset"],
            options.split,
            share,
            team.rank,
            team.size,
            options.seed + start,
            options.shuffle_buffer,
            parts,
        )
    )

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
            scalars = {key: float(value) for key, value in zip(values, team.reduce(list(values.values())), strict=True)}
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
                better = math.isfinite(found[model.monitored]) and (
                    best is None or found[model.monitored] > best[model.monitored]
                )
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
            scalars = next(
                ({key: line[key] for key in line["scalars"]} for line in reversed(run.metrics()) if "scalars" in line),
                {},
            )
        return {
            "stopped": stopped,
            "steps": int(model.step),
            "scalars": scalars,
            "checksum": checksum(model),
            **diary.rate(),
        }


def measure(held_out, url: str, split: str, batch_size: int, team: Team = Team()) -> dict[str, float]:
    """`held_out`'s values averaged over a split; every rank goes through its row groups, and all get the whole's."""
    import tensorflow as tf

    sums, count = {}, 0
    for batch in reader.once(url, split, batch_size, team.rank, team.size):
        values = held_out(batch)
        count += int(tf.shape(batch["image"])[0])
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(tf.reduce_sum(value))
    names = sorted(sums)
    *totals, count = (
        float(value)
        for value in team.reduce([tf.constant(value, tf.float64) for value in (*(sums[name] for name in names), count)])
    )
    return {name: total / count for name, total in zip(names, totals, strict=True)}


def _problem(step: int, scalars: dict[str, float]) -> str | None:
    bad = [name for name, value in scalars.items() if not math.isfinite(value)]
    if not bad:
        return None
    return f"step {step}: {', '.join(f'{name} is {scalars[name]}' for name in bad)}; {_FROM_BEFORE}"


def _is_finite(model, team: Team) -> bool:
    """Whether all that the model carries is finite on every rank. The scalars of a step are those of the weights before
    it.
    """
    import tensorflow as tf

    finite = [tf.reduce_all(tf.math.is_finite(variable)) for variable in model.state() if variable.dtype.is_floating]
    # A mean of zeros is exact, for any number of ranks; one of ones is not.
    return float(team.reduce([tf.cast(not tf.reduce_all(finite), tf.float32)])[0]) == 0.0


def average_statistics(model, team: Team) -> None:
    """Batch norm's moving statistics are each rank's own; from here they are the ranks' mean."""
    local = [variable for variable in model.variables if not variable.trainable and variable.dtype.is_floating]
    if team.size > 1 and local:
        for variable, mean in zip(local, team.reduce([variable.value() for variable in local]), strict=True):
            variable.assign(mean)
