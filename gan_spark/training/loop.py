"""One rank of a training: the model is built, restored and broadcast; then it steps, logs and saves."""

import dataclasses
import math
from collections.abc import Callable, Iterator

from .. import models, process
from ..config import Config, NotFetched, Train, UserError, new_images, parse
from ..data import images, reader, schema
from ..process import Team
from ..runs.loading import begin_from, build, checksum, restore
from ..runs.store import Run
from .checks import parts_of
from .collapse import Monitor
from .ending import Ending
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
        if not run.is_owner(job["owner"]):  # A line would bring back a run that was removed.
            raise
        line = {"event": "error", "rank": team.rank, "attempt": job["attempt"], "owner": job["owner"]}
        # What is wrong with the config, the data or what is installed, no restart mends.
        if isinstance(error, UserError) and not isinstance(error, NotFetched):
            line["wrong"] = str(error)
        elif isinstance(error, ImportError):
            line["wrong"] = f"rank {team.rank} cannot import what it runs ({type(error).__name__}: {error})"
        # TensorFlow names, in as many lines, where in the code each operation was made.
        text = " ".join(part for part in str(error).splitlines() if part and not part.startswith("  File "))
        run.append_metrics({**line, "error": f"rank {team.rank}: {type(error).__name__}: {text}"[:2000]})
        raise


def _train_rank(team: Team, job: dict) -> dict:
    import tensorflow as tf

    config = parse(job["config"], models.config_class)
    options, run = config.train, Run.of(config)
    process.set_threads(job["threads"])
    process.pin_device(team)
    model = _prepared(team, job, config, run)
    start = int(model.step)
    share = options.batch_size // team.size
    stream, step_function = _stream(team, job, config, start * model.batches_per_step), _step_function(model)
    preview, held_out = tf.function(model.preview), tf.function(model.held_out, reduce_retracing=True)
    monitor, best = Monitor(model), Best(run, options, model.monitored, start)
    scalars, stopped, fixed = {}, None, None
    with Diary(run, job, team, start) as diary, Ending(run, job["owner"], team, start) as ending:
        for step in range(start + 1, start + 1 if best.is_stale(start) else options.steps + 1):
            batches = [next(stream) for _ in range(model.batches_per_step)]
            fixed = fixed or tf.nest.map_structure(lambda values: values[:PREVIEW], batches[0])
            values = step_function(batches)
            if step == start + 1:
                diary.begin()  # The first step traces the graph; the clock starts after it.
            is_better, is_last = False, ending.is_asked(step)
            due = Due.at(step, options, is_last)
            if not due.anything:
                continue
            # The log, and whether to stop, come from values that all ranks share.
            scalars = {name: float(mean) for name, mean in zip(values, team.reduce(list(values.values())), strict=True)}
            stopped = _problem(step, scalars)
            if stopped:
                break
            diary.log(step, scalars)
            diary.warn(step, monitor.losses(step, scalars))
            if due.saves or due.samples or due.validates:
                average_statistics(model, team)
            if due.validates:
                measures = measure(held_out, job["dataset"], "validation", share, team)
                diary.measured(step, {f"validation_{name}": value for name, value in measures.items()})
                is_better = best.update(step, measures)
                is_last = is_last or best.is_stale(step)
            saves = due.saves or is_better or is_last
            if saves and not _is_finite(model, team):
                stopped = f"step {step}: this step made weights that are not finite; {_FROM_BEFORE}"
                break
            if due.samples and team.rank == 0:
                _sample(diary, monitor, step, preview(fixed, tf.range(PREVIEW, dtype=tf.int64)))
            if saves and team.rank == 0:
                diary.save(step, tf.train.Checkpoint(model=model).write, options.keep)
                if is_better:
                    best.save()
            if is_last:
                break
        return {
            "stopped": stopped,
            "steps": int(model.step),
            "scalars": scalars or _last_scalars(run),
            "checksum": checksum(model),
            **diary.rate(),
        }


def _prepared(team: Team, job: dict, config: Config, run: Run):
    """The model of this rank, restored on rank 0 or begun there, and broadcast."""
    import tensorflow as tf

    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(config.train.precision)
    try:
        model = build(config.model, team, config.train.seed, job["uses"], config.train.statistics)
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    if team.rank == 0 and not restore(model, run):
        _begin(model, job)
    team.broadcast(model.state())
    return model


def _begin(model, job: dict) -> None:
    """Gives the model what a new run begins with: all of another run's state, or that of the runs it is built on."""
    if start := job["started_from"]:
        begin_from(model, start)
        return
    for field, used in job["uses"].items():
        restore(getattr(model, field), Run(used["url"]), used["step"])
    model.begin()


def _stream(team: Team, job: dict, config: Config, batches: int) -> Iterator[dict]:
    """This rank's batches, without end, after as many `batches` that it has had before."""
    options = config.train
    parts = parts_of(config.model, schema.read_manifest(job["dataset"]))
    share = options.batch_size // team.size
    stream = reader.batches(
        job["dataset"],
        options.split,
        share,
        team.rank,
        team.size,
        options.seed,
        options.shuffle_buffer,
        parts,
        batches * share,
        job["since"],
        new_images(options),
    )
    return iter(stream)


def _step_function(model) -> Callable[[list], dict]:
    """One step of training as a graph, which counts itself."""
    import tensorflow as tf

    @tf.function
    def step_function(batches):
        scalars = model.train_step(batches)
        model.step.assign_add(1)
        return scalars

    return step_function


@dataclasses.dataclass(frozen=True)
class Due:
    """What is due after a step."""

    logs: bool
    samples: bool
    saves: bool
    validates: bool

    @classmethod
    def at(cls, step: int, options: Train, is_asked: bool = False) -> "Due":
        """Each is due every so many steps, and all but the log after the last one; a checkpoint too where the job is
        asked to end.
        """
        is_last = step == options.steps
        return cls(
            logs=step % options.log_every == 0,
            samples=is_last or step % options.sample_every == 0,
            saves=is_last or is_asked or step % options.checkpoint_every == 0,
            validates=bool(options.validate_every) and (is_last or step % options.validate_every == 0),
        )

    @property
    def anything(self) -> bool:
        return self.logs or self.samples or self.saves or self.validates


class Best:
    """The checkpoint that is best on split validation, by the measure `name`; higher is better."""

    def __init__(self, run: Run, options: Train, name: str, start: int):
        self.run, self.options, self.name = run, options, name
        self.record = run.best() if options.validate_every else None
        if self.record and self.record["step"] > start:
            self.record = None  # Its checkpoint is damaged, or training would go on from there.

    def update(self, step: int, measures: dict[str, float]) -> bool:
        """Whether `step` is the best one from now on."""
        value = measures[self.name]
        is_better = math.isfinite(value) and (self.record is None or value > self.record[self.name])
        if is_better:
            self.record = {"step": step, self.name: value}
        return is_better

    def is_stale(self, step: int) -> bool:
        """Whether none was better for `train.patience` measures."""
        patience = self.options.patience * self.options.validate_every
        return bool(patience and self.record and step - self.record["step"] >= patience)

    def save(self) -> None:
        if self.record:
            self.run.save_best(self.record)


def _sample(diary: Diary, monitor: Monitor, step: int, preview) -> None:
    """Keeps a grid of the preview's images, where the model has some."""
    if preview is None:
        return
    pixels = images.to_pixels(preview)
    diary.sample(step, pixels)
    diary.warn(step, monitor.variety(step, pixels))


def _last_scalars(run: Run) -> dict[str, float]:
    """What was logged last, for a run that had no step left to train."""
    lines = (line for line in reversed(run.metrics()) if "scalars" in line)
    return next(({name: line[name] for name in line["scalars"]} for line in lines), {})


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
