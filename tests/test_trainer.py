"""The training loop: in one process, on two Horovod ranks, and through a death."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading

import cloudpickle
import numpy as np
import psutil
import pytest
import tensorflow as tf
from conftest import ROOT, make_config, write_config
from processes import ranks_under, wait_for

from gan_spark import check, job, models, process
from gan_spark import lake as lakes
from gan_spark.config import Train, UserError, resolved
from gan_spark.data import images, schema
from gan_spark.models.statistics import of_whole_batch
from gan_spark.runs import loading
from gan_spark.runs.store import Run
from gan_spark.training import checks, driver, progress, ranks

pytestmark = pytest.mark.slow

# Ranks cannot import this module, so what they run of it travels by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(sys.modules["conftest"])
BATCH = 16


# --- two ranks against one -------------------------------------------------------------


# What of a model that takes statistics over the batch cannot be the same on two ranks: noise of layers.
QUIET = {"ssgan": {"dropout": 0.0, "noise": 0.0}, "lenet": {"dropout": 0.0}, "attributes": {"dropout": 0.0}}
AIDS = {"minibatch": 4, "feature_matching": 10.0}
STEPS = {name: (name, QUIET.get(name, {})) for name in models.MODELS} | {
    "dcgan with aids": ("dcgan", AIDS),
    "dcgan, synchronised by itself": ("dcgan", {"normalisation": "synchronised"}),
    "cgan, perceptrons": ("cgan", {"network": "perceptron", "dropout": 0.0}),
    "classifier, frozen": ("classifier", {"batch_norm": "frozen"}),
}

OWN = ("vae", "dcgan", "text_encoder")  # are tried by each rank's own statistics too
# One whose statistics are none, one of batch norm, one of a contrastive loss; the others are as many minutes.
SHORT = OWN
MODELS = ("dcgan", "began", "vae")
NAMES = [name if name in MODELS else pytest.param(name, marks=pytest.mark.long) for name in models.MODELS]
CASES = [case if case in SHORT else pytest.param(case, marks=pytest.mark.long) for case in STEPS]


def kind_of(case: str) -> str:
    name, changes = STEPS[case]
    return models.find(name).batch_statistics(check.small_config(name, **changes))


def one_step(team: process.Team, case: str, statistics: str) -> list[np.ndarray]:
    """Weights after one step of SGD on this rank's share of a batch, and of the noise that one process would draw."""
    name, changes = STEPS[case]
    whole = of_whole_batch(team.rank, team.size, team.reduce, team.gather)
    with whole if statistics == "batch" else contextlib.nullcontext():
        model = check.make_model(name, team.reduce, **changes)

    def share(rows):
        return tf.split(rows, team.size)[team.rank]

    def drawn(draw):
        def of_all(shape, *args, **options):
            count, *others = tf.unstack(tf.convert_to_tensor(shape))
            return share(draw([count * team.size, *others], *args, **options))

        return of_all

    model.normal, model.uniform = drawn(model.normal), drawn(model.uniform)
    for group, variables in [*model.groups.items()]:
        model.optimize(group, tf.keras.optimizers.SGD(0.1), variables)
    batches = [check.make_batch(name, BATCH, seed) for seed in range(model.batches_per_step)]
    model.train_step(tf.nest.map_structure(share, batches))
    return [variable.numpy() for group in model.groups.values() for variable in group]


def both(team: process.Team, argument: dict) -> dict:
    return {
        "identical": {name: check.three_steps(team, name) for name in argument["models"]},
        "steps": {
            (case, statistics): one_step(team, case, statistics)
            for case in argument["steps"]
            for statistics in (("batch", "rank") if case in OWN else ("batch",))
        },
    }


@pytest.fixture(scope="module")
def two_ranks(spark):
    """What both ranks of one Horovod job computed."""
    return ranks.run(spark, both, {"models": MODELS, "steps": SHORT}, Train(workers=2))


@pytest.fixture(scope="module")
def two_ranks_of_the_rest(spark):
    rest = {"models": [name for name in models.MODELS if name not in MODELS]}
    rest["steps"] = [case for case in STEPS if case not in SHORT]
    return ranks.run(spark, both, rest, Train(workers=2))


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_hold_identical_weights_and_draw_different_noise(request, name):
    both_ranks = request.getfixturevalue("two_ranks" if name in MODELS else "two_ranks_of_the_rest")
    first, second = (result["identical"][name] for result in both_ranks)
    assert first["state"] and first["state"] == second["state"]
    assert first["noise"] != second["noise"]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_of_half_a_batch_step_as_one_process_of_the_whole(request, case):
    both_ranks = request.getfixturevalue("two_ranks" if case in SHORT else "two_ranks_of_the_rest")
    alone = one_step(process.Team(), case, "rank")

    def difference(statistics: str) -> float:
        first, second = (result["steps"][case, statistics] for result in both_ranks)
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
        return max(float(np.abs(a - b).max()) for a, b in zip(alone, first, strict=True))

    assert (difference("batch") < 1e-5) == (kind_of(case) != "rank")
    # Each rank by its own statistics, where there are some: the comparison can fail.
    assert case not in OWN or (difference("rank") > 1e-4) == (kind_of(case) != "none")


@pytest.mark.parametrize(
    "model, batch, workers, asked, statistics",
    [
        ("dcgan", 16, 2, "auto", "rank"),
        ("dcgan", 14, 2, "auto", "batch"),
        ("dcgan", 4, 4, "auto", "batch"),  # One image a rank, and four to take statistics over.
        ("dcgan", 16, 1, "auto", "batch"),  # The same, and more ranks may come.
        ("dcgan", 14, 2, "rank", "rank"),
        ("dcgan", 64, 2, "batch", "batch"),
        ("vae", 2, 2, "auto", "rank"),
        ("classifier", 8, 2, "auto", "rank"),
    ],
)
def test_statistics_are_of_the_batch_where_a_rank_has_few_images(lake, model, batch, workers, asked, statistics):
    train = {"batch_size": batch, "workers": workers, "statistics": asked, "launcher": "spark"}
    config = make_config(lake, model, "statistics-of-none", train=train)
    assert checks.settings(config)["train"]["statistics"] == statistics


@pytest.mark.parametrize(
    "model, train, message",
    [
        ("dcgan", {"statistics": "rank", "batch_size": 2, "workers": 2}, "statistics over the images of a rank, and"),
        ("dcgan", {"batch_size": 1}, "statistics over the images of a batch, and has one: expected two or more"),
        ("classifier", {"batch_size": 2, "workers": 2}, "takes statistics over the images of a rank"),
        ("classifier", {"statistics": "batch"}, 'takes statistics over each rank\'s images alone; use "auto"'),
    ],
)
def test_statistics_that_are_none_are_refused(lake, model, train, message):
    config = make_config(lake, model, "statistics-of-one", train={**train, "launcher": "spark"})
    with pytest.raises(UserError, match=message):
        checks.settings(config)


@pytest.mark.parametrize("model, statistics", [("gan", "auto"), ("dcgan", "batch")])
def test_a_run_goes_on_with_more_workers_where_nothing_depends_on_them(spark, lake, digits, model, statistics):
    name = f"more-workers-{model}"
    driver.train(spark, make_config(lake, model, name, train={"steps": 2, "statistics": statistics}))
    two = make_config(lake, model, name, train={"steps": 4, "workers": 2, "launcher": "spark"})
    run = Run.of(two)
    checks.check_record(two, run, {**run.record(), "config": {**run.record()["config"], **checks.settings(two)}})


def test_a_run_whose_ranks_have_statistics_of_their_own_keeps_its_workers(spark, lake, digits):
    driver.train(spark, make_config(lake, run="as-many-workers", train={"steps": 2, "statistics": "rank"}))
    two = make_config(lake, run="as-many-workers", train={"steps": 4, "workers": 2, "launcher": "spark"})
    with pytest.raises(UserError, match=r"was started on 1, and model 'dcgan' takes statistics over each rank's share"):
        driver.train(spark, two)


# --- the loop --------------------------------------------------------------------------


def test_a_run_leaves_what_it_promises(spark, lake, digits):
    config = make_config(lake, run="leaves", train={"steps": 5})
    result = driver.train(spark, config)
    run = Run.of(config)
    assert result["steps"] == 5 and result["workers"] == 1 and result["run"] == run.url and result["restarts"] == 0
    assert run.checkpoints() == [2, 4, 5]
    steps = [line["step"] for line in run.metrics() if "scalars" in line]
    assert steps == [2, 4, 5]
    for name in ("step-00000004.png", "step-00000005.png"):
        assert images.decode_png(lakes.read_bytes(run.path("samples", name))).shape == (8 * 18 + 2, 8 * 18 + 2, 1)
    events = [name for name in os.listdir(lakes.filesystem(run.path("events"))[1]) if "tfevents" in name]
    tags = {
        value.tag
        for name in events
        for event in tf.compat.v1.train.summary_iterator(lakes.filesystem(run.path("events", name))[1])
        for value in event.summary.value
    }
    assert {"d_loss", "g_loss", "samples"} <= tags
    record = run.record()
    assert (
        record["config"]["model"]["width"] == 4
        and record["dataset"]["fingerprint"]
        and record["versions"]["tensorflow"] == tf.__version__
    )


def test_a_finished_run_is_not_trained_again_and_a_longer_one_goes_on(spark, lake, digits):
    config = make_config(lake, run="longer")
    first = driver.train(spark, config)
    again = driver.train(spark, config)
    assert again["checksum"] == first["checksum"] and again["g_loss"] == first["g_loss"]
    longer = driver.train(spark, make_config(lake, run="longer", train={"steps": 6}))
    assert longer["steps"] == 6 and longer["checksum"] != first["checksum"]
    assert [line["step"] for line in Run.of(config).metrics() if line.get("event") == "start"] == [0, 4, 4]


def test_the_same_seed_trains_the_same_model_up_to_the_order_of_rows(spark, lake, digits):
    """Weights start equal for equal seeds and differ for others."""
    a, b, c = (loading.build(make_config(lake).model, seed=seed) for seed in (1, 1, 2))
    assert loading.checksum(a) == loading.checksum(b) != loading.checksum(c)


RESUMED = """
import dataclasses, json, sys
from gan_spark import job, models, process
from gan_spark.config import parse, replaced
from gan_spark.training import driver

process.prepare()
spark = job.session("resumed")
for table in json.loads(sys.argv[1]):
    config = parse(table, models.config_class)
    whole = driver.train(spark, config)["checksum"]
    half = replaced(config, train={"steps": config.train.steps // 2})
    halves = [driver.train(spark, dataclasses.replace(half, run=config.run + "-halves"))["checksum"]]
    halves.append(driver.train(spark, dataclasses.replace(config, run=config.run + "-halves"))["checksum"])
    print(json.dumps([config.model.name, whole, *halves]))
"""


@pytest.mark.parametrize(
    "names", [("dcgan",), pytest.param(("cgan", "lenet", "wgan_gp"), marks=pytest.mark.long)], ids=" ".join
)
def test_a_resumed_run_is_the_run_that_was_not_interrupted(lake, digits, names):
    """To the bit, in one process of one thread: rows, noise and dropout go on where they were."""
    options = {"steps": 40, "checkpoint_every": 20, "sample_every": 40, "threads": 1, "shuffle_buffer": 64}
    configs = [make_config(lake, model, f"resumed-{model}", train=options) for model in names]
    job = subprocess.run(
        [sys.executable, "-c", RESUMED, json.dumps([resolved(config) for config in configs])],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert job.returncode == 0, job.stderr[-2000:]
    lines = [json.loads(line) for line in job.stdout.splitlines() if line.startswith("[")]
    assert tuple(name for name, *_ in lines) == names
    for name, whole, half, resumed in lines:
        assert resumed == whole, name
        assert half != whole, name


@pytest.mark.parametrize("rank", [0, 3])
def test_the_highest_seed_builds_a_model(lake, rank):
    config = make_config(lake, train={"seed": 2**31 - 1})
    built = loading.build(config.model, process.Team(rank, 4), config.train.seed)
    assert np.isfinite(built.normal([4])).all()


def test_a_non_finite_loss_stops_with_the_step_and_keeps_the_checkpoint_from_before(spark, lake, digits, monkeypatch):
    step = models.find("vae").train_step

    def breaks(self, batches):
        scalars = step(self, batches)
        return {**scalars, "kl": tf.where(self.step >= 3, float("nan"), scalars["kl"])}

    monkeypatch.setattr(models.find("vae"), "train_step", breaks)
    config = make_config(lake, model="vae", run="explodes", train={"steps": 8})
    with pytest.raises(driver.TrainingStopped, match="step 4: kl is nan; .*Lower the learning rate"):
        driver.train(spark, config)
    assert Run.of(config).checkpoints() == [2]


def test_ranks_are_told_of_paths_that_are_the_same_in_every_folder(spark, lake, digits, monkeypatch):
    told = []
    monkeypatch.setattr(ranks, "run", lambda spark, function, job, *_: told.append(job["config"]) or [])
    monkeypatch.chdir(os.path.dirname(lake))
    config = make_config(os.path.basename(lake), "srgan", run="relative")
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, content="vgg19", content_weights="vgg19.h5")
    )
    with pytest.raises(IndexError):
        driver.train(spark, config)
    assert told[0]["lake"] == lakes.to_url(lake) and told[0]["model"]["content_weights"] == lakes.to_url(
        f"{os.path.dirname(lake)}/vgg19.h5"
    )


def test_a_step_that_spoils_the_weights_spoils_no_checkpoint(spark, lake, digits, monkeypatch):
    model = models.find("dcgan")
    step = model.train_step

    def spoiling(self, batches):
        scalars = step(self, batches)
        kernel = self.generator.trainable_variables[0]
        kernel.assign(tf.where(self.step == 3, tf.fill(tf.shape(kernel), float("nan")), kernel))
        return scalars

    monkeypatch.setattr(model, "train_step", spoiling)
    config = make_config(lake, run="spoiled", train={"steps": 6, "checkpoint_every": 2, "log_every": 1, "keep": 1})
    with pytest.raises(
        driver.TrainingStopped,
        match="step 4: this step made weights that are not finite; the last checkpoint is from before",
    ):
        driver.train(spark, config)
    assert Run.of(config).checkpoints() == [2]


def test_bfloat16_layers_keep_float32_weights(spark, lake, digits):
    config = make_config(lake, run="bfloat16", train={"precision": "mixed_bfloat16"})
    result = driver.train(spark, config)
    assert np.isfinite(result["d_loss"])
    assert tf.keras.mixed_precision.global_policy().name == "float32"


def test_more_ranks_than_slots_are_refused_and_nothing_is_written(spark, lake, digits):
    config = make_config(lake, run="refused", train={"launcher": "spark", "workers": 16})
    with pytest.raises(UserError, match="train.workers = 16, but local.* has . task slots"):
        driver.train(spark, config)
    assert not lakes.exists(Run.of(config).url)


def test_a_session_that_moves_its_executors_is_refused(spark, lake, digits):
    class Conf:
        get = staticmethod(lambda key, default=None: "true" if key == "spark.dynamicAllocation.enabled" else default)

    class Session:
        class sparkContext:
            getConf = staticmethod(Conf)

    with pytest.raises(UserError, match="spark.dynamicAllocation.enabled = true: all ranks must run at once"):
        ranks.check(Session, Train(workers=2))


def test_a_lake_that_workers_cannot_reach_is_told_before_training(spark, lake, digits, tmp_path, monkeypatch):
    train, there = Train(workers=2), f"{digits}/{schema.MANIFEST}"
    ranks.check_reach(spark, train, f"file://{tmp_path}/runs", [there])
    assert os.listdir(tmp_path / "runs") == []  # what was tried is gone
    with pytest.raises(
        UserError,
        match="worker .*: file:.*/nothing cannot be read .FileNotFoundError.*Every worker must reach the lake",
    ):
        ranks.check_reach(spark, train, f"file://{tmp_path}/runs", [there, f"file://{tmp_path}/nothing"])
    (tmp_path / "in the way").write_text("")
    with pytest.raises(UserError, match="in the way/.probe-.* cannot be written"):
        ranks.check_reach(spark, train, f"file://{tmp_path}/in the way", [there])
    # A path that is there on both machines, but is not the same folder.
    monkeypatch.setattr(lakes, "exists", lambda url: False)
    with pytest.raises(UserError, match="what it writes to .* is not seen from the driver"):
        ranks.check_reach(spark, train, f"file://{tmp_path}/runs", [there])


# --- the progress bar ------------------------------------------------------------------


def test_what_follows_the_metrics_outlives_a_store_that_does_not_answer(lake, monkeypatch, caplog):
    config = make_config(lake, run="followed")
    run = Run.of(config)

    class Looks:
        """An event that is set at the fourth look, and needs no time."""

        left = 4

        def wait(self, seconds):
            self.left -= 1
            if self.left == 1:
                monkeypatch.undo()
                run.append_metrics({"step": 2, "d_loss": 1.5, "scalars": ["d_loss"]})
            return self.left == 0

    def fails(self, offset):
        raise ConnectionError("503 slow down")

    bar = progress.Progress(run, config)
    bar.done = Looks()
    monkeypatch.setattr(Run, "watch", fails)
    bar.run()
    assert bar.bar.n == 2
    assert [message for message in caplog.messages if "503 slow down" in message] == [
        f"run {run.url}: its metrics could not be followed (ConnectionError: 503 slow down); trying on"
    ]
    bar.bar.close()


@pytest.mark.fault("training", "a rank raises", "the job ends with that rank's own error, once its attempts are over")
def test_an_error_on_a_rank_is_named_after_the_last_attempt(spark, lake, digits):
    config = make_config(lake, run="fails", train={"launcher": "spark", "workers": 1, "restarts": 0})
    run = Run.of(config)
    run.append_metrics({"event": "none"})
    os.makedirs(lakes.filesystem(run.path("checkpoints", "step-00000002"))[1] + "/manifest.json.d")
    # A file stands where the folder of samples should be.
    with open(lakes.filesystem(run.path("samples"))[1], "w") as out:
        out.write("in the way")
    with pytest.raises(
        ranks.RankFailure, match="1 attempts failed, the last one: rank 0: .*(FileExistsError|NotADirectoryError)"
    ):
        driver.train(spark, config)


def refuses(team: process.Team, job: dict):
    from gan_spark.training import loop

    def raises(team, job):
        raise UserError("the dataset was replaced")

    loop._train_rank = raises
    return loop.work(team, job)


@pytest.mark.long
@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")  # as of Horovod's thread
def test_a_users_error_on_a_rank_is_one_line_and_exit_code_2(spark, lake, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(driver, "work", refuses)
    config = make_config(lake, run="refuses", train={"launcher": "spark", "workers": 1, "restarts": 2})
    code = job.main(driver.train, "A job.", ["--config", write_config(tmp_path, config)])
    errors = capsys.readouterr().err
    assert code == 2 and errors.splitlines()[-1] == "error: the dataset was replaced" and "Traceback" not in errors
    assert not lakes.exists(Run.of(config).url)


def dies(team: process.Team, job: dict):
    os._exit(3)


@pytest.mark.fault(
    "training", "every rank dies before its first step", "the job ends at once, says so, and leaves no run behind"
)
@pytest.mark.long
def test_ranks_that_cannot_start_are_started_once_and_leave_no_run(spark, lake, digits, monkeypatch, caplog):
    monkeypatch.setattr(driver, "work", dies)
    config = make_config(lake, run="cannot-start", train={"launcher": "spark", "workers": 1, "restarts": 2})
    with pytest.raises(
        driver.TrainingStopped, match="the ranks could not start, and are not started again: .*Exit code: 3"
    ):
        driver.train(spark, config)
    assert "attempt 2 of" not in caplog.text and not lakes.exists(Run.of(config).url)


@pytest.mark.long
def test_a_rank_that_cannot_import_what_it_runs_says_so(spark, tmp_path, monkeypatch):
    (tmp_path / "here_alone.py").write_text("def function(team, argument):\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import here_alone

    with pytest.raises(
        UserError,
        match="^rank 0 cannot import what it runs .ModuleNotFoundError: No module named 'here_alone', in .*python.*"
        "install it for the Python of every executor$",
    ):
        ranks.run(spark, here_alone.function, None, Train(workers=1))


# --- death -----------------------------------------------------------------------------


def train_command(folder, lake: str, run: str) -> list[str]:
    """jobs/train.py for 1,500 small steps on two ranks."""
    train = {
        "steps": 1500,
        "workers": 2,
        "launcher": "spark",
        "log_every": 50,
        "checkpoint_every": 100,
        "sample_every": 1500,
    }
    return [
        sys.executable,
        str(ROOT / "jobs" / "train.py"),
        "--config",
        write_config(folder, make_config(lake, run=run, train=train)),
    ]


@pytest.mark.fault(
    "training",
    "SIGTERM of the job (preemption), far from its next checkpoint",
    "the ranks save one within its grace, exit code 143, and the last line says at which step the run is",
)
def test_sigterm_ends_the_job_with_a_checkpoint_instead_of_starting_it_again(lake, digits, tmp_path):
    """What a scheduler sends to stop a job."""
    config = make_config(lake, run="told-to-stop")
    command = [*train_command(tmp_path, lake, config.run), "--set", "train.checkpoint_every=1500"]
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = Run.of(config)
    wait_for(lambda: [line for line in run.metrics() if line.get("step", 0) >= 50], "progress")
    begun.send_signal(signal.SIGTERM)
    output, errors = begun.communicate(timeout=180)
    assert begun.returncode == 128 + signal.SIGTERM, errors
    assert output == "" and "attempt 1 of" not in errors
    (step,) = run.checkpoints()
    assert 50 <= step < 1500 and run.read_checkpoint(step)[0] == step
    assert errors.splitlines()[-1] == (
        f"error: stopped by SIGTERM; the run told-to-stop is at step {step}; the same command goes on"
    )


@pytest.mark.long
@pytest.mark.fault(
    "training",
    "the driver is killed, and later a rank (SIGKILL)",
    "its ranks end; the same command goes on from the newest checkpoint, and the run ends whole",
)
def test_a_killed_driver_and_then_a_killed_rank_lose_nothing_but_time(lake, digits, tmp_path):
    """SIGKILL for the driver, the same command again, SIGKILL for a rank: the run ends complete."""
    config = make_config(lake, run="dies")
    command = train_command(tmp_path, lake, config.run)
    run = Run.of(config)

    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(run.checkpoints, "checkpoint")
    orphans = list(ranks_under(first.pid).values())
    assert len(orphans) >= 2
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    psutil.wait_procs(orphans, timeout=60)
    assert not any(child.is_running() for child in orphans)
    reached = run.checkpoints()[-1]

    second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    errors = []
    reader = threading.Thread(target=lambda: errors.extend(second.stderr), daemon=True)
    reader.start()
    wait_for(lambda: run.checkpoints()[-1] > reached, "checkpoint after the restart")
    os.kill(ranks_under(second.pid)[1].pid, signal.SIGKILL)
    output = second.stdout.read()
    assert second.wait() == 0, "".join(errors)
    assert '"steps": 1500' in output and '"restarts": 1' in output

    starts = [(line["step"], line["attempt"]) for line in run.metrics() if line.get("event") == "start"]
    assert [attempt for _, attempt in starts] == [0, 0, 1]
    assert starts[0][0] == 0 and starts[1][0] == reached and starts[2][0] > reached
    assert run.checkpoints()[-1] == 1500
    assert "attempt 1 of 3 failed" in "".join(errors)
