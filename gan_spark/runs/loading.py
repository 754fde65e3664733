"""Models of runs: built, restored, loaded once in a process."""

import dataclasses
import functools
import hashlib

from .. import lake, models, process
from ..config import Config, UserError, parse
from ..process import Team
from .store import Run

_loaded: dict = {}  # (run URL, step, when the run was created) -> model


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
            used = Run.named(config.lake, name)
            record, steps = used.record(), used.checkpoints()
            kind = record["config"]["model"]["name"]
            if kind != field.metadata["run"]:
                raise UserError(
                    f"model.{field.name} = {name!r}: expected the run of a {field.metadata['run']}, found {kind}"
                )
            if started.get(field.name, {}).get("url") == used.url:
                step = started[field.name]["step"]
                if step not in steps and not run.checkpoints():
                    raise UserError(
                        f"model.{field.name} = {name!r}: run {run.url} was started with checkpoint {step} of"
                        f" {used.url}, which is gone (there are: {', '.join(map(str, steps)) or 'none'}), and has none"
                        " of its own; remove it or name another run"
                    )
            elif not steps:
                raise UserError(
                    f"model.{field.name} = {name!r}: run {used.url} has no whole checkpoint yet; train it first"
                )
            else:
                step = steps[-1]
            found[field.name] = {
                "url": used.url,
                "step": step,
                "model": record["config"]["model"],
                "uses": record["config"]["uses"],
            }
    return found


def build(config, team: Team = Team(), seed: int = 0, uses: dict[str, dict] | None = None):
    """The model of a model config; every rank starts from the same weights and draws other latents.

    `uses`: the models of other runs that it is built on, as `used_runs` describes them.
    """
    import tensorflow as tf

    used = {
        field: build(model_config(other["model"]), Team(), 0, other["uses"]) for field, other in (uses or {}).items()
    }
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
        process.set_threads(1)
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


def checksum(model) -> str:
    """SHA-256 over everything the model carries, optimizer slots included."""
    digest = hashlib.sha256()
    for variable in model.state():
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()[:16]
