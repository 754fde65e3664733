"""Models of runs: built, restored, loaded once in a process."""

import contextlib
import dataclasses
import hashlib
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .. import lake, models, process
from ..config import Config, UserError, differences, parse, resolved
from ..models.statistics import of_whole_batch
from ..process import Team
from . import registry
from .store import Run

log = logging.getLogger(__name__)
PROMOTED = "promoted:"  # how `train.start_from` names the promoted run of a registered model


def used_runs(config: Config) -> dict[str, dict]:
    """For each field of the model's config that names a run: its URL, checkpoint and model.

    The checkpoint is the one that `config.run` was started with, where it was started, and else the newest.
    """
    run = Run.of(config)
    started = run.record()["config"].get("uses", {}) if lake.exists(run.path("config.json")) else {}
    uses = {}
    for field in dataclasses.fields(config.model):
        name, kind = getattr(config.model, field.name), field.metadata.get("run")
        if kind and name:
            key = f"model.{field.name} = {name!r}"
            used = Run.named(config.lake, name)
            recorded = used.record()["config"]
            if recorded["model"]["name"] != kind:
                raise UserError(f"{key}: expected the run of a {kind}, found {recorded['model']['name']}")
            step = _used_step(key, run, used, started.get(field.name, {}))
            uses[field.name] = {"url": used.url, "step": step, "model": recorded["model"], "uses": recorded["uses"]}
    return uses


def _used_step(key: str, run: Run, used: Run, before: dict) -> int:
    """Step of the checkpoint of `used` that `run` is built on; `before` is what its record says of it, if anything."""
    steps = used.checkpoints()
    if before.get("url") == used.url:
        if before["step"] not in steps and not run.checkpoints():
            raise UserError(
                f"{key}: run {run.url} was started with checkpoint {before['step']} of {used.url}, which is gone (there"
                f" are: {', '.join(map(str, steps)) or 'none'}), and has none of its own; remove it or name another run"
            )
        return before["step"]
    if not steps:
        raise UserError(f"{key}: run {used.url} has no whole checkpoint yet; train it first")
    return steps[-1]


def started_from(config: Config) -> dict | None:
    """The run that `train.start_from` names: its URL, the step of its checkpoint, and its dataset; None where it names
    none, or a registered model of which nothing is promoted.

    The checkpoint is the one that `config.run` was started with, where it was started, and else the newest, or the
    promoted one. `UserError` where there is none, or where the run has another model, other than one of fewer classes
    where the model widens.
    """
    if not (name := config.train.start_from):
        return None
    run, key = Run.of(config), f"train.start_from = {name!r}"
    if name == config.run:
        raise UserError(f"{key}: expected another run than the one that begins; the same command again goes on with it")
    is_promoted, step = name.startswith(PROMOTED), 0
    if lake.exists(run.path("config.json")):
        recorded = run.record().get("started_from")
        if recorded or is_promoted:  # What is promoted by now is another question.
            return recorded
    if is_promoted:
        version = registry.current(config.lake, name.removeprefix(PROMOTED))
        if version is None:
            log.info("train: %s: nothing is promoted yet, so that the run begins fresh", key)
            return None
        name, step = version["run"], version["step"]
    other = Run.named(config.lake, name)
    # With what options that there were not when that run was started stand for.
    record = other.record()
    model = {**resolved(type(config.model)()), **record["config"]["model"]}
    ours = _as_recorded(config, model)
    if models.find(config.model.name).widens and ours["classes"] > model["classes"]:
        model["classes"] = ours["classes"]
    if changed := differences(model, ours, where="model."):
        raise UserError(f"{key}: its weights are of another model than this run's; restore these: {'; '.join(changed)}")
    keys = ("url", "snapshot", "fingerprint", "classes")
    dataset = {name: record["dataset"][name] for name in keys if name in record["dataset"]}
    return {"url": other.url, "step": other.checkpoint_step(step), "dataset": dataset}


def _as_recorded(config: Config, recorded: dict) -> dict:
    """The config's model as a run's record holds it: files by their URLs."""
    model = resolved(config.model)
    for field in dataclasses.fields(config.model):
        path = model[field.name]
        if field.metadata.get("file") and path and recorded.get(field.name) == lake.to_url(path):
            model[field.name] = recorded[field.name]
    return model


def build(config, team: Team = Team(), seed: int = 0, uses: dict[str, dict] | None = None, statistics: str = "rank"):
    """The model of a model config; every rank starts from the same weights and draws other latents.

    `uses`: the models of other runs that it is built on, as `used_runs` describes them. `statistics`: over the images
    of each "rank", or of the whole "batch".
    """
    import tensorflow as tf

    run_of = {field.name: field.metadata.get("run") for field in dataclasses.fields(config)}
    used = {}
    for field, other in (uses or {}).items():
        name = other["model"]["name"]
        if name == run_of.get(field):
            models.config_class(name)  # The code of this model names that one, not the lake alone.
        used[field] = build(model_config(other["model"]), Team(), 0, other["uses"])
    tf.keras.utils.set_random_seed(seed)
    whole = statistics == "batch"
    with of_whole_batch(team.rank, team.size, team.reduce, team.gather) if whole else contextlib.nullcontext():
        model = models.find(config.name)(config, team.reduce, seed * 4096 + team.rank, **used)
    _seed_dropout(model)
    return model


def _seed_dropout(model) -> None:
    """Seeds what draws by TensorFlow's own state, which must differ from rank to rank."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed((model.seed + 1) % 2**32)  # NumPy takes 32 bits.


def begin_from(model, start: dict) -> None:
    """Gives the model all that another run's has at the checkpoint that `started_from` describes, but for the step.

    Where the model has more classes, those of the other come first in its last layer, and the others begin as they are.
    `UserError` where the checkpoint is gone.
    """
    run, former = Run(start["url"]), model
    config = model_config(run.record()["config"]["model"])
    if is_wider := getattr(config, "classes", 0) != getattr(model.config, "classes", 0):
        former = build(config)
        _seed_dropout(model)
    if not restore(former, run, start["step"]):
        raise UserError(f"train.start_from: run {run.url} has no whole checkpoint at step {start['step']}")
    if is_wider:
        sizes = config.classes, model.config.classes
        for variable, values in zip(model.state(), former.state(), strict=True):
            variable.assign(_widened(variable.numpy(), values.numpy(), *sizes))
    model.step.assign(0)


def _widened(values: np.ndarray, former: np.ndarray, classes: int, more: int) -> np.ndarray:
    """`former`, and what `values` has beyond it along the axis that is the classes'."""
    axes = [(old, new) for old, new in zip(former.shape, values.shape, strict=True) if old != new]
    if axes not in ([], [(classes, more)]):
        raise ValueError(f"weights {former.shape} and {values.shape} differ otherwise than by their classes")
    values = np.array(values)
    values[tuple(slice(0, length) for length in former.shape)] = former
    return values


def model_config(table: dict):
    """The model config that a run's record holds."""
    return parse({"run": "r", "dataset": "d", "model": table}, models.recorded_config).model


def restore(model, run: Run, step: int = 0) -> int:
    """Loads checkpoint `step` (0: the newest whole one) into `model`; returns its step, 0 where there is none."""
    with run.checkpoint(step) as checkpoint:
        if checkpoint is None:
            return 0
        step, prefix = checkpoint
        _read(model, prefix, f"run {run.url}: checkpoint at step {step}")
    return step


def _read(model, prefix: str, name: str) -> None:
    """Loads TensorFlow's files at `prefix`; `UserError` with the `name` of the checkpoint where it is of another model.

    Its files are whole, so that nothing but another checkpoint, or the model that it was written by, can help.
    """
    import tensorflow as tf

    try:
        tf.train.Checkpoint(model=model).read(prefix).assert_existing_objects_matched()
    except (ValueError, AssertionError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{name} does not fit the model that the run's config.json describes, and is left as it is ({reason:.400});"
            " restore the config.json, or the code, that it was written with, or name another run"
        ) from error


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A run's checkpoint as a driver has read it, small enough to travel in a task's closure.

    Whatever a training does to the run meanwhile, all tasks and all retries load this one.
    """

    url: str  # of the run
    step: int
    record: dict
    digest: str
    files: Any  # a broadcast of their bytes by name


def read_checkpoint(spark, run: Run, step: int = 0) -> Checkpoint:
    """Checkpoint `step` of the run, or for 0 the newest whole one; `UserError` where there is none."""
    record = run.record()
    step, files = run.read_checkpoint(step)
    digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
    return Checkpoint(run.url, step, record, digest, spark.sparkContext.broadcast(files))


def carried_model(checkpoint: Checkpoint, weights: str = "average"):
    """The model of a checkpoint that a driver has read, as `load_model` gives it.

    With `weights` "newest", one whose samples are drawn from them and not from their moving averages.
    """

    def fill(model) -> None:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in checkpoint.files.value.items():
                Path(folder, name).write_bytes(data)
            name = f"run {checkpoint.url}: checkpoint at step {checkpoint.step}"
            _read(model, os.path.join(folder, "checkpoint"), name)
        if weights == "newest":
            model.use_newest_weights()

    return _kept(checkpoint.url, checkpoint.step, checkpoint.record, f"{checkpoint.digest} {weights}", fill)


def load_model(url: str, step: int, record: dict):
    """The model of the run at `url` at a checkpoint, to sample from or look through; kept by `process.cached`.

    It is read from the lake, where a training may have removed it (`train.keep`); jobs whose tasks come later begin
    with `read_checkpoint`.

    In a task of Spark TensorFlow gets one thread, and there one seed is one image to the bit, whatever the task. On a
    driver it keeps the threads that it has. Images of dcgan, vae and wgan_gp came out the same to the bit with 1, 2 and
    8 threads, but TensorFlow does not promise it: sums in another order would differ in their last bits, and a pixel
    between two of its 256 values by 1.

    A model outside of the package must have been named by the user (`models.find`). In a task that holds, since the
    driver has looked the record's model up before it started the task.
    """
    return _kept(url, step, record, "", lambda model: restore(model, Run(url), step))


def _kept(url: str, step: int, record: dict, digest: str, fill):
    def load():
        process.limit_task_threads()
        table = record["config"]["model"]
        if process.in_task():
            models.config_class(table["name"])
        model = build(model_config(table), uses=record["config"]["uses"])
        fill(model)
        return model

    return process.cached(("model", url, step, record.get("created"), digest), load)


def compiled(method):
    """`tf.function` of a model's method, traced once in a process and not in each of its tasks."""
    import tensorflow as tf

    return process.cached(("compiled", method), lambda: tf.function(method, reduce_retracing=True))


def checksum(model) -> str:
    """SHA-256 over everything the model carries, optimizer slots included."""
    return digest(model.state())


def digest(variables) -> str:
    """SHA-256 over the values of the variables."""
    sum_of_values = hashlib.sha256()
    for variable in variables:
        sum_of_values.update(variable.numpy().tobytes())
    return sum_of_values.hexdigest()[:16]
