"""Tracking of a run in MLflow, where the config has `tracking.uri`.

MLflow takes parameters and metrics while the run trains, then samples, checkpoint, grid and quality.
One MLflow run a run in the lake, found by its tag, so that resuming and evaluating go on with the same one.
"""

import contextlib
import functools
import logging
import math
import os
import posixpath
import tempfile
import time
from collections.abc import Mapping, Sequence

from .. import lake
from ..config import Config, UserError, leaves
from .store import Run

log = logging.getLogger(__name__)
TAG = "gan_spark.run"
_BATCH, _METRICS = 100, 1000  # parameters and metrics that MLflow takes at once
_PAUSE = 600


def tracker(config: Config, run: Run) -> "Tracker | None":
    """The run's tracker; None where the config has no `tracking.uri`.

    `UserError` where MLflow is missing or cannot be reached.
    """
    return Tracker(config, run) if config.tracking.uri else None


@contextlib.contextmanager
def training(config: Config, run: Run, record: dict):
    """The `tracker` of a training, which is told what is trained (`record`: the run's config.json) and how it ended."""
    run_tracker = tracker(config, run)
    if run_tracker:
        run_tracker.begin(record)
    try:
        yield run_tracker
    except BaseException:
        if run_tracker:
            run_tracker.end(False)
        raise
    if run_tracker:
        run_tracker.end(True)


def _forgiving(method):
    """The method with a warning in place of an error where MLflow fails: the run is in the lake, and goes on.

    MLflow tries for minutes before it fails, so after a failure it is told nothing for `_PAUSE` seconds.
    """

    @functools.wraps(method)
    def forgiving(self, *arguments):
        if time.monotonic() < self.silent_until:
            return
        try:
            method(self, *arguments)
        except Exception as error:
            log.warning(
                "MLflow did not take %s of run %s, and is told nothing for %d s: %s: %s",
                method.__name__,
                self.run.url,
                _PAUSE,
                type(error).__name__,
                error,
            )
            self.silent_until = time.monotonic() + _PAUSE

    return forgiving


class Tracker:
    """The MLflow run of a run in the lake."""

    def __init__(self, config: Config, run: Run):
        try:
            import mlflow
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise UserError(
                f"tracking.uri = {config.tracking.uri!r}: MLflow is not installed; install gan-spark[mlflow]"
            ) from error
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.run, self.mlflow, self.silent_until = run, mlflow, 0.0
        try:
            self.client = MlflowClient(tracking_uri=config.tracking.uri)
            experiment = self.client.get_experiment_by_name(config.tracking.experiment)
            experiment_id = (
                experiment.experiment_id
                if experiment
                else self.client.create_experiment(config.tracking.experiment, config.tracking.artifacts or None)
            )
            queries = (f"tags.`{TAG}` = '{url}'" for url in (run.url, *lake.spellings(run.url)))
            found = next(filter(None, (self.client.search_runs([experiment_id], query) for query in queries)), None)
            self.id = (
                found[0] if found else self.client.create_run(experiment_id, run_name=config.run, tags={TAG: run.url})
            ).info.run_id
        except MlflowException as error:
            raise UserError(f"tracking.uri = {config.tracking.uri!r}: {error}") from error

    @_forgiving
    def begin(self, record: dict) -> None:
        """Parameters of the run; those that MLflow holds already stay, as it does not let one change."""
        present = self.client.get_run(self.id).data.params
        values = {**record["config"], "dataset": record["dataset"], "versions": record["versions"]}
        missing = {name: text for name, text in leaves(values) if name not in present}
        params = [self.mlflow.entities.Param(name, text[:6000]) for name, text in missing.items()]
        for start in range(0, len(params), _BATCH):
            self.client.log_batch(self.id, params=params[start : start + _BATCH])
        self.client.update_run(self.id, status="RUNNING")

    @_forgiving
    def metrics(self, values: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Values by name, at each step."""
        now = int(time.time() * 1000)
        metrics = [
            self.mlflow.entities.Metric(name, float(value), now, step)
            for step, named in values
            for name, value in named.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(metrics), _METRICS):
            self.client.log_batch(self.id, metrics=metrics[start : start + _METRICS])

    def end(self, ok: bool) -> None:
        self.silent_until = 0.0
        self._end(ok)

    @_forgiving
    def _end(self, ok: bool) -> None:
        """Samples, and the newest whole checkpoint with the config that rebuilds its model."""
        if ok:
            steps = self.run.checkpoints()
            folders = {
                "samples": self.run.path("samples"),
                "model": self.run.path("checkpoints", f"step-{steps[-1]:08d}") if steps else "",
            }
            for name, url in folders.items():
                if url and lake.exists(url):
                    fs, path = lake.filesystem(url)
                    for file in fs.find(path):
                        self.artifact(lake.join(url, posixpath.relpath(file, path)), name)
            self.artifact(self.run.path("config.json"), "model")
        self.client.set_terminated(self.id, "FINISHED" if ok else "FAILED")

    @_forgiving
    def artifact(self, url: str, folder: str) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            local = os.path.join(temporary, url.rsplit("/", 1)[1])
            fs, path = lake.filesystem(url)
            fs.get_file(path, local)
            self.client.log_artifact(self.id, local, folder)

    def quality(self, report: dict, url: str) -> None:
        """An evaluation's figures, at the step of the checkpoint that was measured, and its report."""
        figures = {
            f"quality_{name}": value
            for name, value in report.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name != "step"
        }
        self.metrics([(report["step"], figures)])
        self.artifact(url, "quality")
