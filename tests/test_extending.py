"""Models and sources outside of the package: the walk of docs/extending.md, and what is refused."""

import contextlib
import dataclasses
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from conftest import MODEL_CONFIGS, ROOT, make_config

from gan_spark import check, config, models
from gan_spark import lake as lakes
from gan_spark.__main__ import main
from gan_spark.config import UserError
from gan_spark.data import images, sources
from gan_spark.ml.classifier import ImageClassifier
from gan_spark.models import GenerativeModel
from gan_spark.runs import catalogue, loading
from gan_spark.runs.store import Run
from gan_spark.sampling import generate, latent

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"^`([\w./]+)`:\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^(?:gan-spark|export) .*", PAGE.replace("\\\n", " "), re.MULTILINE)
SHORT = ["train.steps=6", "train.checkpoint_every=3", "train.sample_every=6"]
# Every command in one process, so that the session starts once.
WALK = """
import json, sys
from gan_spark import job, process
process.prepare()
spark = job.session("walk")
process.prepare(spark)
from gan_spark.__main__ import main
for command in json.loads(sys.argv[1]):
    print("$", *command, flush=True)
    if code := main(command):
        sys.exit(code)
rejects = spark.read.parquet("lake/datasets/arrays.rejected").collect()
print(json.dumps([[row["id"], row["reason"]] for row in rejects]))
spark.stop()
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """The page's files, and real digits as .npy files, with one that is none."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    digits = sklearn.datasets.load_digits()
    for index in range(120):
        label = tmp_path / "arrays" / str(digits.target[index])
        label.mkdir(parents=True, exist_ok=True)
        np.save(label / f"{index}.npy", (digits.images[index] * 15).astype(np.uint8))
    (tmp_path / "arrays" / "0" / "bad.npy").write_bytes(b"no array")
    return tmp_path


def test_the_page_has_its_files_and_commands():
    assert list(FILES) == ["my_package/lsgan.py", "lsgan.toml", "my_package/npy.py"]
    names = [shlex.split(command)[1] for command in COMMANDS]
    assert names == ["PYTHONPATH=$PWD", "check", "ingest", "train", "generate", "ingest", "reference"]


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_the_walk_of_the_page(folder, workers):
    """Its commands, with fewer steps, in a folder of their own: ingest, train, generate, and the source; with the two
    ranks of the page also the check, which has two itself.
    """
    commands = []
    for command in COMMANDS[1:-1]:
        words = shlex.split(command.replace("/data/arrays", str(folder / "arrays")))[1:]
        if words[0] == "train":
            words += [word for change in (*SHORT, f"train.workers={workers}") for word in ("--set", change)]
        if words[0] != "check" or workers == 2:
            commands.append(words)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    walk = subprocess.run(
        [sys.executable, "-c", WALK, json.dumps(commands)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert walk.returncode == 0, walk.stdout[-2000:] + walk.stderr[-4000:]
    assert ("two Horovod ranks end with the same weights" in walk.stdout) == (workers == 2)
    results = [json.loads(line) for line in walk.stdout.splitlines() if line.startswith(("{", "["))]
    digits, trained, generated, arrays, rejects = results
    assert digits["rows"] == 1797 and (trained["workers"], trained["steps"]) == (workers, 6)
    assert generated["images"] == 64 and trained["model"] == "my_package.lsgan:LSGAN"
    grid = images.decode_png((folder / "lake" / "generated" / "lsgan.png").read_bytes())
    assert grid.shape == (8 * 18 + 2, 8 * 18 + 2, 1)
    assert (arrays["rows"], arrays["rejected"]) == (120, 1)
    ((name, reason),) = rejects
    assert name == "0/bad.npy" and reason.startswith("not a .npy file: ")


# --- what is looked up, and what is refused --------------------------------------------


@pytest.fixture
def package(folder, monkeypatch) -> Path:
    """The page's package where Python finds it, with modules to try; this process has named nothing yet."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(models, "_named_by_user", set())
    (folder / "my_package" / "odd.py").write_text("""
import dataclasses
from gan_spark.config import option
from gan_spark.models import TrainedModel

class NoConfig(TrainedModel):
    pass

class Loose(TrainedModel):
    @dataclasses.dataclass
    class Config:
        name: str = option("", "")

class Nameless(TrainedModel):
    @dataclasses.dataclass(frozen=True)
    class Config:
        image_size: int = option(16, "")

class Plain:
    pass

def function(spark, config):
    return [1, 2]
""")
    (folder / "my_package" / "broken.py").write_text("1 / 0\n")
    (folder / "my_package" / "lacking.py").write_text("import not_installed_at_all\n")
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.parametrize(
    "name, message",
    [
        ("my_package.lsgan:", "expected package.module:attribute"),
        ("my package:LSGAN", "expected package.module:attribute"),
        ("other_package.lsgan:LSGAN", "no module 'other_package' where Python looks"),
        ("my_package.lsgn:LSGAN", "no module 'my_package.lsgn' where Python looks"),
        ("my_package.lsgan:LSGN", r"module my_package.lsgan \(.*lsgan.py\) has no 'LSGN'; did you mean 'LSGAN'"),
        ("my_package.broken:Model", "importing my_package.broken failed with ZeroDivisionError: division by zero"),
        ("my_package.lacking:Model", "my_package.lacking imports 'not_installed_at_all', which is not installed"),
        ("my_package.odd:function", "expected a subclass of TrainedModel .*, found an object of type function"),
        ("my_package.odd:Plain", "expected a subclass of TrainedModel .*, found class Plain"),
        ("my_package.odd:NoConfig", "expected a class attribute Config that is a frozen dataclass, found None"),
        ("my_package.odd:Loose", "expected a class attribute Config that is a frozen dataclass, found <class"),
        ("my_package.odd:Nameless", "its Config has no field channels, name"),
    ],
)
def test_a_model_that_cannot_be_used_says_why(package, name, message):
    with pytest.raises(UserError, match=f"model.name = {re.escape(repr(name))}: .*{message}"):
        config.parse({"run": "r", "dataset": "d", "model": {"name": name}}, models.config_class)


def test_a_config_of_a_model_outside_is_checked_and_comes_back_from_its_record(package):
    table = {"run": "r", "dataset": "d", "model": {"name": "my_package.lsgan:LSGAN", "image_size": 16}}
    parsed = config.parse(table, models.config_class)
    assert (parsed.model.name, parsed.model.image_size, parsed.model.width) == ("my_package.lsgan:LSGAN", 16, 32)
    record = json.loads(json.dumps(config.resolved(parsed)))
    assert config.parse(record, models.config_class) == parsed
    assert loading.model_config(record["model"]) == parsed.model
    with pytest.raises(UserError, match="model.widht: unknown key; did you mean model.width"):
        config.parse({**table, "model": {**table["model"], "widht": 3}}, models.config_class)
    assert "LSGAN: least squares" in models.describe("my_package.lsgan:LSGAN")


@pytest.mark.parametrize(
    "name, message",
    [
        ("folders", "expected one of 'digits', .*, or package.module:attribute; did you mean 'folder'"),
        ("my_package.npy:sauce", "has no 'sauce'; did you mean 'source'"),
        ("my_package.npy:CHUNK", r"expected a function of \(spark, config.ingest\), found an object of type int"),
        ("my_package.odd:function", "expected a gan_spark.data.sources.Source, got an object of type list"),
        ("my_package.npy:source", r"ingest.path = '/nowhere/at/all': expected a folder of .npy files"),
    ],
)
def test_a_source_that_cannot_be_used_says_why(package, name, message):
    table = {"run": "r", "dataset": "d", "ingest": {"source": name, "path": "/nowhere/at/all"}}
    with pytest.raises(UserError, match=message):
        sources.open_source(None, config.parse(table).ingest)


# --- a record of the lake decides nothing ----------------------------------------------


@pytest.fixture
def planted(package, spark, lake, digits) -> tuple[config.Config, Path]:
    """A config of the user's, whose run in the lake names a module that leaves a file behind when it is imported."""
    trace = package / "trace"
    (package / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\n" + FILES["my_package/lsgan.py"])
    user = make_config(lake, run="planted", generate={"images": 2, "batch_size": 2})
    with contextlib.suppress(FileNotFoundError):
        lakes.remove(Run.of(user).url)
    run = Run.of(user)
    run.start(
        {
            "config": {"run": "planted", "model": {"name": "evil:LSGAN", "image_size": 16}, "uses": {}},
            "dataset": {"url": digits, "fingerprint": "", "classes": list("0123456789"), "fit": "crop"},
            "versions": {},
            "created": "2024-01-01T00:00:00+00:00",
        }
    )
    run.save_checkpoint(1, lambda prefix: Path(f"{prefix}.index").write_bytes(b""), 1)
    yield user, trace
    lakes.remove(run.url)
    sys.modules.pop("evil", None)


def test_a_record_does_not_decide_what_is_imported(planted, spark, lake, capsys):
    user, trace = planted
    run, refused = Run.of(user), "only a record in the lake names this code .* name it in your own config"
    for look in (
        lambda: generate.generate(spark, user),
        lambda: latent.latent(spark, user),
        lambda: loading.load_model(run.url, 1, run.record()),
        lambda: ImageClassifier(run=run.url).transform(spark.createDataFrame([(b"",)], "image binary")),
    ):
        with pytest.raises(UserError, match=refused):
            look()
    assert main(["runs", "--lake", lake]) == 0 and main(["show", "planted", "--lake", lake]) == 0
    assert "evil:LSGAN" in capsys.readouterr().out
    assert catalogue.lineage(lake, "planted")["config"]["model"]["name"] == "evil:LSGAN"
    assert not trace.exists() and "evil" not in sys.modules


def test_a_run_that_a_model_is_built_on_decides_nothing_either(planted, spark):
    user, trace = planted
    table = {"name": "dcgan", "image_size": 16}
    uses = {"stage1": {"url": "", "step": 1, "model": Run.of(user).record()["config"]["model"], "uses": {}}}
    with pytest.raises(UserError, match="only a record in the lake names this code"):
        loading.build(loading.model_config(table), uses=uses)
    assert not trace.exists()


def test_the_users_own_config_decides(planted):
    user, trace = planted
    record = Run.of(user).record()
    assert config.parse(
        {"run": "r", "dataset": "d", "model": {"name": "evil:LSGAN"}}, models.config_class
    ).model.name.startswith("evil")
    assert trace.exists()
    assert loading.model_config(record["config"]["model"]).image_size == 16


# --- a check that a model does not pass ------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SmallConfig:
    name: str = config.option("", "")
    image_size: int = config.option(64, "pixels a side", low=4, high=64)
    channels: int = config.option(1, "of the image")
    latent: int = config.option(4, "size of z", low=1)


class Small(GenerativeModel):
    """One layer that learns the mean image; the models below break a promise each."""

    Config = SmallConfig

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        pixels = config.image_size**2
        z = tf.keras.Input([config.latent])
        layers = [tf.keras.layers.Dense(pixels, "tanh"), tf.keras.layers.Reshape([config.image_size] * 2 + [1])]
        x = z
        for layer in layers:
            x = layer(x)
        self.network = tf.keras.Model(z, tf.keras.layers.Activation("linear", dtype="float32")(x))
        self.optimize("g", tf.keras.optimizers.Adam(0.01), self.network.trainable_variables)

    def train_step(self, batches):
        z = self.normal([tf.shape(batches[0]["image"])[0], self.config.latent])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.network(z) - batches[0]["image"]))
        self.minimize("g", tape, loss)
        return {"loss": loss}

    def generate(self, inputs, seeds):
        return self.network(self.latents(seeds, self.config.latent))


class Unowned(Small):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.forgotten = tf.Variable(1.0, name="forgotten")


class Unmoved(Small):
    def train_step(self, batches):
        return {"loss": tf.constant(1.0)}


class Counting(Small):
    def train_step(self, batches):
        self.step.assign_add(1)
        return super().train_step(batches)


class Infinite(Small):
    def train_step(self, batches):
        return {**super().train_step(batches), "loss": tf.constant(float("inf"))}


class Loud(Small):
    def generate(self, inputs, seeds):
        return 2.0 + super().generate(inputs, seeds)


class Sideways(Small):
    def generate(self, inputs, seeds):
        return super().generate(inputs, seeds)[:, :-1]


class Batched(Small):
    def generate(self, inputs, seeds):
        return 0.5 * super().generate(inputs, seeds) + 0.5 * tf.reduce_mean(super().generate(inputs, seeds), 0)


class Seedless(Small):
    def generate(self, inputs, seeds):
        return super().generate(inputs, tf.zeros_like(seeds))


class Selfish(Small):
    """Steps by its own gradients, and not by those that all ranks share."""

    def train_step(self, batches):
        reduce, self.reduce = self.reduce, list
        try:
            return super().train_step(batches)
        finally:
            self.reduce = reduce


class Forgetful(Small):
    """Carries something that no checkpoint holds."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.carried = []

    def train_step(self, batches):
        self.carried.append(0.01)
        return super().train_step(batches)

    def generate(self, inputs, seeds):
        return super().generate(inputs, seeds) * (1.0 - sum(self.carried))


class Raising(Small):
    def train_step(self, batches):
        raise ValueError("no such thing")


@pytest.mark.parametrize(
    "model, message",
    [
        ("Unowned", "belongs to one optimizer: expected an optimizer .* found none for forgotten:0"),
        ("Unmoved", "every variable that is trained: expected all of them other than before, found unchanged: dense"),
        ("Counting", "expected `step` at 0, which the trainer counts, found 2"),
        ("Infinite", "expected finite scalars, found loss = inf"),
        ("Loud", r"expected values in \[-1, 1\], found 1"),
        ("Sideways", r"expected 4 images of shape \(4, 16, 16, 1\), found \(4, 15, 16, 1\)"),
        ("Batched", "expected the image of a batch of 4 in a batch of 1, found differences up to"),
        ("Seedless", "expected another image of another seed, found that of 5 for 3"),
        ("Selfish", "every gradient goes through reduce: expected no change .*, found changes of dense"),
        ("Forgetful", "a restored checkpoint .*: expected the same images, found differences up to"),
        ("Raising", "expected no error, found ValueError: no such thing"),
    ],
)
def test_a_model_that_breaks_a_promise_does_not_pass(monkeypatch, model, message):
    monkeypatch.setattr(models, "_named_by_user", set())
    with pytest.raises(check.CheckFailed, match=message):
        list(check.check(f"test_extending:{model}"))


def test_a_model_that_keeps_them_passes_each_check(monkeypatch):
    monkeypatch.setattr(models, "_named_by_user", set())
    monkeypatch.setattr(check, "ranks_end_alike", lambda name: None)
    lines = list(check.check("test_extending:Small"))
    assert len(lines) == len(check.MODEL_CHECKS) + len(check.IMAGE_CHECKS) + 1
    assert all(re.fullmatch(r"passed \( *\d+\.\d s\): .*", line) for line in lines)
    assert check.small_config("test_extending:Small") == SmallConfig("test_extending:Small", 16)
    monkeypatch.setattr(Small, "check_config", {"image_size": 8, "latent": 2}, raising=False)
    assert check.small_config("test_extending:Small") == SmallConfig("test_extending:Small", 8, latent=2)
    with pytest.raises(UserError, match="did you mean 'dcgan'"):
        next(check.check("dcgann"))


def test_ranks_that_end_apart_do_not_pass(monkeypatch):
    states = [{"0: dense/kernel:0": "a", "1: dense/bias:0": side} for side in "bc"]
    monkeypatch.setattr(check.job, "session", lambda name: None)
    monkeypatch.setattr(check.ranks, "check", lambda spark, config: None)
    answers = [{"state": state, "noise": index} for index, state in enumerate(states)]
    monkeypatch.setattr(check.ranks, "run", lambda spark, function, name, config: answers)
    from pyspark.sql import SparkSession

    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: object())
    with pytest.raises(check.CheckFailed, match="what is carried must be reduced, found 1: dense/bias:0"):
        check.ranks_end_alike("dcgan")


def test_the_registrys_configs_are_the_checks_own():
    assert MODEL_CONFIGS is check.MODEL_CONFIGS
