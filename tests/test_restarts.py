"""How a training job ends and is taken up again: no slots, no network, another job's run, a run that others are built
on.
"""

import collections
import dataclasses

import pytest
from conftest import MODEL_CONFIGS, make_config

from gan_spark import lake as lakes
from gan_spark import models, process
from gan_spark.config import TaskFailure, Train, UserError, parse
from gan_spark.data import schema
from gan_spark.runs import loading
from gan_spark.runs.store import Run
from gan_spark.training import driver, progress, ranks


def ends(monkeypatch, *ways) -> list:
    """Lets the job's attempts end in these ways, one after the other: each a function of (run, job). Returns the jobs
    that began.
    """
    begun = []

    def run(spark, function, job, config, ask_to_end):
        begun.append(job)
        return ways[len(begun) - 1](Run.of(parse(job["config"], models.config_class)), job)

    monkeypatch.setattr(ranks, "run", run)
    return begun


def checkpoint_of(run: Run, step: int) -> None:
    run.save_checkpoint(step, lambda prefix: open(prefix + ".index", "wb").close(), 3)


def no_slots(run, job):
    raise ranks.NoSlots("no slots")


def no_slots_for_a_run_that_another_trains(run, job):
    run.start({})
    raise ranks.NoSlots("no slots")


def no_slots_for_a_run_that_has_a_checkpoint(run, job):
    checkpoint_of(run, 2)
    raise ranks.NoSlots("no slots")


def another_user_error(run, job):
    raise UserError("the dataset was replaced")


def a_user_error_of_a_rank(run, job):
    run.append_metrics(
        {
            "event": "error",
            "owner": job["owner"],
            "wrong": "the dataset was replaced",
            "error": "rank 1: UserError: the dataset was replaced",
        }
    )
    raise ranks.RankFailure("a rank failed")


def a_user_error_of_a_rank_that_began(run, job):
    run.append_metrics({"event": "start"})
    a_user_error_of_a_rank(run, job)


def no_network(run, job):
    raise ranks.NoNetwork("no route")


def a_rank_that_died_at_once(run, job):
    raise ranks.RankFailure("exit code 1")


def a_rank_that_raised_before_its_first_step(run, job):
    run.append_metrics({"event": "error", "owner": job["owner"], "error": "rank 1: OSError: no disk"})
    raise ranks.RankFailure("a rank failed")


def ctrl_c(run, job):
    raise KeyboardInterrupt


def sigterm(run, job):
    raise SystemExit(143)


def sigterm_after_the_first_step(run, job):
    run.append_metrics({"event": "start"})
    sigterm(run, job)


@pytest.mark.parametrize(
    "way, stays",
    [
        (no_slots, False),
        (no_slots_for_a_run_that_another_trains, True),
        (no_slots_for_a_run_that_has_a_checkpoint, True),
        (another_user_error, False),
        (a_user_error_of_a_rank, False),
        (a_user_error_of_a_rank_that_began, True),
        (no_network, False),
        (a_rank_that_died_at_once, False),
        (a_rank_that_raised_before_its_first_step, False),
        (ctrl_c, False),
        (sigterm, False),
        (sigterm_after_the_first_step, True),
    ],
)
def test_only_a_run_that_never_began_is_removed(spark, lake, digits, monkeypatch, way, stays):
    config = make_config(lake, run=way.__name__.replace("_", "-"), train={"restarts": 0})
    begun = ends(monkeypatch, way)
    with pytest.raises(
        (UserError, TaskFailure, KeyboardInterrupt, SystemExit),
        match="^(no slots|the dataset was replaced|no route|.* could not start, .*|.*no disk|143|)$",
    ):
        driver.train(spark, config)
    assert len(begun) == 1 and lakes.exists(Run.of(config).url) == stays


@pytest.mark.parametrize("name", ["write_record", "write_json"])
def test_a_signal_while_the_run_is_claimed_leaves_nothing(spark, lake, digits, monkeypatch, name):
    """Once its record is written; once its owner is."""
    config, write = make_config(lake, run="unclaimed"), getattr(lakes, name)

    def interrupted(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(lakes, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        driver.train(spark, config)
    assert not lakes.exists(Run.of(config).url)


def test_ranks_that_cannot_start_are_not_started_again(spark, lake, digits, monkeypatch):
    config = make_config(lake, run="no-start", train={"restarts": 2})
    begun = ends(monkeypatch, *[a_rank_that_died_at_once] * 3)
    with pytest.raises(
        driver.TrainingStopped, match="no-start: the ranks could not start, and are not started again: exit code 1"
    ):
        driver.train(spark, config)
    assert len(begun) == 1


def test_ranks_that_cannot_start_after_others_have_trained_are_started_again(spark, lake, digits, monkeypatch):
    def trains_and_dies(run, job):
        run.append_metrics({"event": "start", "owner": job["owner"]})
        raise ranks.RankFailure("killed")

    config = make_config(lake, run="starts-again", train={"restarts": 2})
    begun = ends(monkeypatch, trains_and_dies, a_rank_that_died_at_once, a_rank_that_died_at_once)
    with pytest.raises(ranks.RankFailure, match="3 attempts failed"):
        driver.train(spark, config)
    assert len(begun) == 3


def test_where_training_goes_on_is_told(spark, lake, digits, monkeypatch, caplog):
    config, bars = make_config(lake, run="goes-on", train={"steps": 6}), []

    def interrupted(run, job):
        raise KeyboardInterrupt

    class Bar(progress.Progress):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            bars.append((self.bar.initial, self.bar.n))

    dataset = {"url": digits, "fingerprint": schema.read_manifest(digits).fingerprint}
    Run.of(config).start({"config": {}, "dataset": dataset})
    monkeypatch.setattr(Run, "check", lambda *arguments: None)
    monkeypatch.setattr(driver, "Progress", Bar)
    checkpoint_of(Run.of(config), 4)
    ends(monkeypatch, interrupted)
    caplog.set_level("INFO", "gan_spark")
    with pytest.raises(KeyboardInterrupt) as stop:
        driver.train(spark, config)
    assert any(message.endswith("goes-on, which goes on from step 4") for message in caplog.messages)
    assert bars == [(4, 4)]
    assert stop.value.__notes__ == ["the run goes-on is at step 4; the same command goes on"]


def test_a_run_that_was_there_before_stays_where_it_gets_no_slots(spark, lake, digits, monkeypatch):
    config = make_config(lake, run="was-there")
    Run.of(config).append_metrics({"event": "none"})
    ends(monkeypatch, no_slots)
    with pytest.raises(ranks.NoSlots):
        driver.train(spark, config)
    assert lakes.exists(Run.of(config).url)


def test_a_job_whose_run_was_taken_over_stops_for_good(spark, lake, digits, monkeypatch):
    owners = []

    def taken_over(run, job):
        owners.append(run.start({}))
        run.check_owner(job["owner"])

    def fails(run, job):
        try:
            taken_over(run, job)
        except TaskFailure as error:
            raise ranks.RankFailure(str(error)) from error

    config = make_config(lake, run="taken-over", train={"restarts": 2})
    begun = ends(monkeypatch, fails, fails, fails)
    with pytest.raises(
        driver.TrainingStopped,
        match="taken-over was taken over by another job, or removed, .*One job at a time can train a run",
    ):
        driver.train(spark, config)
    assert len(begun) == 1 and Run.of(config).is_owner(owners[0])


def test_what_other_jobs_failed_of_is_not_told_as_the_reason(spark, lake, digits, monkeypatch):
    def fails(run, job):
        run.append_metrics(
            {"event": "error", "rank": 0, "attempt": 0, "owner": "another", "error": "rank 0: of the other job"}
        )
        run.append_metrics(
            {"event": "error", "rank": 0, "attempt": 0, "owner": job["owner"], "error": "rank 0: of this job"}
        )
        raise ranks.RankFailure("failed")

    ends(monkeypatch, fails)
    with pytest.raises(ranks.RankFailure, match="the last one: rank 0: of this job$"):
        driver.train(spark, make_config(lake, run="two-fail", train={"restarts": 0}))


@pytest.mark.parametrize(
    "wait, error, message",
    [
        (
            "wait_for_initial_registration",
            ranks.NoSlots,
            "train.workers = 2: not that many free task slots in train.start_timeout = 9 s",
        ),
        (
            "wait_for_task_to_task_address_updates",
            ranks.NoNetwork,
            (
                r"train.workers = 2: .*start_timeout = 9 s \(Timed out waiting for Spark tasks to update task-to-task"
                r" addresses\): a network problem between executors"
            ),
        ),
    ],
)
def test_what_horovod_waited_for_in_vain_is_told_apart(monkeypatch, wait, error, message):
    """By Horovod's own driver, which no task ever calls."""
    import horovod.spark
    from horovod.runner.common.util import secret
    from horovod.runner.common.util.timeout import Timeout
    from horovod.spark.driver.driver_service import SparkDriverService

    class Session:
        class sparkContext:
            master = "local[2]"

    def run(*arguments, **options):
        driver = SparkDriverService(2, 2, None, (), {}, secret.make_secret_key(), {"lo"})
        try:
            getattr(driver, wait)(
                Timeout(-1, "Timed out waiting for {activity}. Please check that you have enough resources.")
            )
        finally:
            driver.shutdown()

    monkeypatch.setattr(horovod.spark, "run", run)
    with pytest.raises(error, match=message):
        ranks.run(Session, None, None, Train(workers=2, start_timeout=9))


def test_a_rank_that_timed_out_itself_is_a_failure_of_the_rank(monkeypatch):
    import horovod.spark

    class Session:
        class sparkContext:
            master = "local[2]"

    def run(*arguments, **options):
        raise RuntimeError("rank 0: Timed out waiting for Spark tasks to start")

    monkeypatch.setattr(horovod.spark, "run", run)
    with pytest.raises(ranks.RankFailure):
        ranks.run(Session, None, None, Train(workers=2))


def test_a_best_checkpoint_from_later_is_not_what_is_compared_with(spark, lake, digits):
    """It is damaged where training begins before it."""
    config = make_config(
        lake, "lenet", run="best-is-lost", train={"steps": 4, "validate_every": 2, "checkpoint_every": 2}
    )
    driver.train(spark, config)
    run = Run.of(config)
    lakes.remove(run.path("checkpoints", "step-00000004"))
    run.save_best({"step": 4, "accuracy": 2.0})
    driver.train(spark, config)
    assert run.best()["step"] == 4 and run.best()["accuracy"] <= 1 and run.checkpoints() == [2, 4]


# --- runs that a run is built on -------------------------------------------------------


def test_a_run_that_is_built_on_another_resumes_after_that_one_went_on(tmp_path):
    first, second = (make_config(str(tmp_path), "srgan", run=name) for name in ("first", "second"))
    second = dataclasses.replace(second, model=dataclasses.replace(second.model, pretrained="first"))
    Run.of(first).start({"config": {"model": MODEL_CONFIGS["srgan"], "uses": {}}, "dataset": {}})
    with pytest.raises(UserError, match="model.pretrained = 'first': run .* has no whole checkpoint yet"):
        loading.used_runs(second)
    checkpoint_of(Run.of(first), 4)
    record = {"config": {"uses": loading.used_runs(second)}, "dataset": {}}
    assert record["config"]["uses"]["pretrained"]["step"] == 4
    Run.of(second).start(record)
    for step in (6, 8):
        checkpoint_of(Run.of(first), step)
    assert loading.used_runs(second) == record["config"]["uses"]
    Run.of(second).check({"config": {"uses": loading.used_runs(second)}, "dataset": {}}, {})
    checkpoint_of(Run.of(first), 10)  # the checkpoint of step 4 is gone
    with pytest.raises(
        UserError,
        match=(
            "second was started with checkpoint 4 of .*first, which is gone .there are: 6, 8, 10., and has none of"
            " its own"
        ),
    ):
        loading.used_runs(second)
    checkpoint_of(Run.of(second), 1)  # it holds what it was started with
    assert loading.used_runs(second) == record["config"]["uses"]


def test_a_run_that_was_removed_and_trained_again_is_loaded_again(monkeypatch):
    built = []
    monkeypatch.setattr(loading, "build", lambda config, uses: built.append(config) or object())
    monkeypatch.setattr(loading, "restore", lambda *arguments: None)
    monkeypatch.setattr(process, "_cache", collections.OrderedDict())
    record = {"config": {"model": MODEL_CONFIGS["dcgan"], "uses": {}}, "created": "2024-01-01T00:00:00+00:00"}
    first = loading.load_model("file:///runs/r", 4, record)
    assert loading.load_model("file:///runs/r", 4, dict(record)) is first and len(built) == 1
    assert (
        loading.load_model("file:///runs/r", 4, {**record, "created": "2024-01-02T00:00:00+00:00"}) is not first
        and len(built) == 2
    )
