"""Learning goes on: old and new images in a stated share, more classes, and promotion beyond chance alone."""

import collections
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
import sklearn.datasets
from conftest import MODEL_CONFIGS, ROOT, make_config, write_config
from processes import ranks_under, wait_for

from gan_spark import config as configs
from gan_spark import lake as lakes
from gan_spark import models, online
from gan_spark.config import UserError
from gan_spark.data import images, ingest, reader, schema, sources, stream
from gan_spark.quality import compare
from gan_spark.runs import catalogue, loading, registry
from gan_spark.runs.store import Run
from gan_spark.training import driver, loop

pytestmark = pytest.mark.slow

DIGITS = sklearn.datasets.load_digits()
OLD = np.flatnonzero(DIGITS.target < 8)
NEW = np.flatnonzero(DIGITS.target >= 8)
# The test is of who is promoted and when, not of how well a network learns.
LENET = {"name": "lenet", "image_size": 8, "classes": 8, "features": 64, "dropout": 0.0, "filters": [8, 16]}


def arrive(folder, indices) -> None:
    """Digits, each into the folder of its class; whole, as Spark wants files to appear."""
    for index in indices:
        place = folder / str(DIGITS.target[index])
        place.mkdir(parents=True, exist_ok=True)
        part = folder.parent / "part"
        part.write_bytes(images.encode_png((DIGITS.images[index] * 15.9375).astype(np.uint8)[:, :, None]))
        part.rename(place / f"{index}.png")


def settings(root, folder=None, run: str = "online", model: dict | None = None, **sections) -> configs.Config:
    ingested = {"source": "folder", "path": str(folder), "height": 8, "width": 8, "new_classes": "add"}
    made = make_config(
        str(root),
        run=run,
        ingest={**ingested, **sections.pop("ingest", {})},
        train={"batch_size": 32, "steps": 150, "checkpoint_every": 1000, "log_every": 50, **sections.pop("train", {})},
        promote={"model": "digits"},
        **sections,
    )
    table = {"run": run, "dataset": "digits", "model": model or LENET}
    return dataclasses.replace(made, model=configs.parse(table, models.config_class).model)


@pytest.fixture(scope="module")
def grown(spark, tmp_path_factory) -> tuple[str, str]:
    """(URL of the dataset, that of its first snapshot): eight classes, and then ten."""
    folder = tmp_path_factory.mktemp("grown")
    config = settings(folder / "lake", folder / "in")
    arrive(folder / "in", OLD[:300])
    url = stream.stream(spark, config)["dataset"]
    arrive(folder / "in", NEW[:90])
    stream.stream(spark, config)
    assert [manifest.number for manifest in schema.snapshots(url)] == [2, 1]
    return url, lakes.at_snapshot(url, 1)


# --- train.new_share -------------------------------------------------------------------


def drawn(grown, count: int, rank: int = 0, size: int = 1, start: int = 0, new: int = 2, seed: int = 3) -> list:
    """(labels, images) of `count` batches of 8."""
    url, since = grown
    batches = iter(reader.batches(url, "train", 8, rank, size, seed, 50, (), start, since, new))
    taken = [next(batches) for _ in range(count)]
    return [(batch["label"].numpy(), batch["image"].numpy()) for batch in taken]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_has_the_stated_share_of_new_images(grown, rank):
    for labels, _ in drawn(grown, 40, rank, 2):
        assert (labels[:2] >= 8).all() and (labels[2:] < 8).all()
    assert all((labels >= 8).all() for labels, _ in drawn(grown, 5, rank, 2, new=8))


def test_new_and_old_images_each_come_equally_often_and_to_every_rank(grown):
    seen = [collections.Counter(), collections.Counter()]
    by_rank = [set(), set()]
    for rank in range(2):
        for labels, pixels in drawn(grown, 120, rank, 2):
            for label, image in zip(labels, pixels, strict=True):
                seen[int(label >= 8)][image.tobytes()] += 1
                if label >= 8:
                    by_rank[rank].add(image.tobytes())
    rows = schema.read_manifest(grown[1]).rows["train"], schema.read_manifest(grown[0]).rows["train"]
    assert len(seen[0]) == rows[0] and len(seen[1]) == rows[1] - rows[0]
    assert max(seen[1].values()) - min(seen[1].values()) <= 2 and len(by_rank[0] & by_rank[1]) > 0.9 * len(seen[1])


def test_a_resumed_run_goes_on_with_the_images_that_were_next(grown):
    whole, rest = drawn(grown, 12), drawn(grown, 7, start=5 * 8)
    for (labels, pixels), (same_labels, same_pixels) in zip(whole[5:], rest, strict=True):
        assert (labels == same_labels).all() and (pixels == same_pixels).all()
    other = drawn(grown, 12, seed=4)
    assert any((pixels != others).any() for (_, pixels), (_, others) in zip(whole, other, strict=True))


def test_a_share_that_a_batch_cannot_have_is_refused(grown, spark):
    for train, message in (
        ({"new_share": 0.5}, "train.new_share = 0.5 without train.start_from"),
        ({"new_share": 0.01, "start_from": "a"}, "train.new_share = 0.01 of the 32 images that a rank has"),
        ({"new_share": 0.99, "start_from": "a"}, "at least one of them to be new, and one not"),
    ):
        with pytest.raises(UserError, match=message):
            configs.check_sections(settings("lake", train=train), "train")
    with pytest.raises(UserError, match="has no images beyond snapshot 2"):
        reader.check_split(grown[0], "train", since=lakes.at_snapshot(grown[0], 2))


# --- more classes ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param("classifier", marks=pytest.mark.long), "lenet", "ssgan"])
def test_a_wider_model_begins_with_the_narrower_ones_weights(name, tmp_path):
    import tensorflow as tf

    def built(classes: int, seed: int):
        table = {"run": "r", "dataset": "d", "model": MODEL_CONFIGS[name] | {"classes": classes}}
        return loading.build(configs.parse(table, models.config_class).model, seed=seed)

    former, model, untouched = built(8, 1), built(10, 2), built(10, 2)
    for variable in former.state():
        if variable.dtype.is_floating:
            variable.assign_add(tf.ones_like(variable))
    run = Run(f"file://{tmp_path}/runs/narrow")
    run.write_record({"config": {"model": configs.resolved(former.config), "uses": {}}, "dataset": {}})
    run.save_checkpoint(7, tf.train.Checkpoint(model=former).write, 1)
    loading.begin_from(model, {"url": run.url, "step": 7})
    assert int(model.step) == 0
    grew = 0
    for before, after, fresh in zip(former.state(), model.state(), untouched.state(), strict=True):
        before, after, fresh = (variable.numpy() for variable in (before, after, fresh))
        if before.shape == after.shape:
            assert (before == after).all() or after.dtype == np.int64
            continue
        grew += 1
        assert (after[..., :8] == before).all() and (after[..., 8:] == fresh[..., 8:]).all()
    assert grew >= 2 * 3  # Kernel and bias, and their slots of Adam.
    size, channels = model.config.image_size, getattr(model.config, "channels", 1)
    some = tf.random.stateless_uniform([5, size, size, channels], [1, 2])
    narrow, wide = former.classify(some).numpy(), model.classify(some).numpy()[:, :8]
    assert np.allclose(narrow, wide / wide.sum(1, keepdims=True), atol=1e-5)


# --- what is better --------------------------------------------------------------------


@pytest.mark.parametrize(
    "gained, lost, p", [(0, 0, 1.0), (5, 0, 0.0625), (6, 0, 0.03125), (0, 6, 0.03125), (3, 3, 1.0), (9, 1, 22 / 1024)]
)
def test_mcnemar(gained, lost, p):
    assert compare.mcnemar(gained, lost) == pytest.approx(p)


@pytest.mark.parametrize(
    "kid, before, is_better", [(0.010, 0.020, True), (0.010, 0.012, False), (0.020, 0.010, False), (0.01, 0.01, False)]
)
def test_a_kid_is_better_beyond_its_error_alone(kid, before, is_better):
    def report(value):
        return {"kid": value, "kid_error": 0.001, "fid": 1.0, "generated_images": 9, "real_images": 9}

    answer = compare.kid_difference(report(kid), report(before))
    assert answer["better"] is is_better and answer["error"] == pytest.approx(0.001 * 2**0.5)
    with pytest.raises(UserError, match="not measured alike \\(generated_images\\)"):
        compare.kid_difference(report(kid), report(before) | {"generated_images": 8})


# --- the stream ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eight_learnt(spark, tmp_path_factory):
    """A folder of images and a lake where eight classes are learnt, and that run is promoted."""
    place = tmp_path_factory.mktemp("online")
    arrive(place / "in", OLD[:500])
    first = settings(place / "lake", place / "in", "first")
    stream.stream(spark, first)
    driver.train(spark, first)
    registry.promote(first.lake, "first", "digits")
    return place


@pytest.fixture
def begun(eight_learnt) -> tuple:
    """(the stream's config, its folder) where eight classes are learnt: as it was, whatever tests before have added."""
    kept = eight_learnt.with_name("kept")
    if not kept.exists():
        shutil.copytree(eight_learnt, kept)
    shutil.rmtree(eight_learnt)
    shutil.copytree(kept, eight_learnt)
    root, folder = eight_learnt / "lake", eight_learnt / "in"
    online_settings = {"train_every": 100, "steps": 100, "files_a_batch": 2000}
    return settings(root, folder, train={"new_share": 0.5}, stream=online_settings), folder


@pytest.mark.timeout(1200)
def test_what_arrives_is_learnt_and_promoted_beyond_chance_alone(spark, begun, caplog):
    config, folder = begun
    caplog.set_level("INFO")
    assert online.stream(spark, config)["rounds"] == 0
    arrive(folder, NEW[:60])
    assert online.stream(spark, config)["rounds"] == 0  # 60 of 100.
    arrive(folder, NEW[60:300])
    answer = online.stream(spark, config)
    assert (answer["rounds"], answer["promotions"], answer["run"], answer["version"]) == (1, 1, "online-3", 2)
    run = Run.named(config.lake, "online-3")
    record = run.record()
    assert record["dataset"]["snapshot"] == 3 and record["config"]["model"]["classes"] == 10
    assert record["started_from"]["url"].endswith("/first") and record["config"]["train"]["new_share"] == 0.5
    compared = registry.current(config.lake, "digits")["compared"]
    classes = compared["classes"]
    assert classes["8"]["before"] == classes["9"]["before"] == 0 and classes["8"]["accuracy"] > 0.5
    assert compared["p"] < 0.05 and compared["gained"] > compared["lost"] and compared["split"] == "test"
    assert compared["images"] == schema.read_manifest(answer["dataset"]).rows["test"]
    assert catalogue.show(config.lake, "online-3")["compared"] == {"digits v2": compared}
    # What one step changes is nothing beyond chance: a version, and not the promoted one.
    arrive(folder, NEW[300:])
    few = configs.replaced(config, stream={"train_every": 10, "steps": 1}, train={"new_share": 0.0})
    answer = online.stream(spark, few)
    assert (answer["rounds"], answer["promotions"], answer["run"]) == (1, 0, "online-3")
    assert [version["run"] for version in registry.read(config.lake, "digits")["versions"]][-1] == "online-4"
    assert "not promoted" in caplog.text
    assert online.stream(spark, few)["rounds"] == 0
    assert registry.rollback(config.lake, "digits")["run"] == "first"


class Killed(BaseException):
    """What no code of the project catches."""


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_job_that_died_goes_on_and_trains_nothing_twice(spark, begun, monkeypatch):
    config, folder = begun
    arrive(folder, NEW[:200])
    trained, plain = [], driver.train

    def dies(*_):
        raise Killed

    def trains(spark, config):
        trained.append(config.run)
        return plain(spark, config)

    # Between append and training.
    monkeypatch.setattr(driver, "train", dies)
    with pytest.raises(Killed):
        online.stream(spark, config)
    url = lakes.dataset_url(config)
    assert schema.read_manifest(url).number == 2 and len(registry.read(config.lake, "digits")["versions"]) == 1
    # Between training and comparison; the training itself dies once, too.
    monkeypatch.setattr(driver, "train", trains)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "average_statistics", dies)
        with pytest.raises(Killed):
            online.stream(spark, config)
    with monkeypatch.context() as patch:
        patch.setattr(compare, "compare", dies)
        with pytest.raises(Killed):
            online.stream(spark, config)
    assert Run.named(config.lake, "online-2").checkpoints() == [100]
    trained.clear()
    answer = online.stream(spark, config)
    assert (answer["rounds"], answer["promotions"], answer["run"]) == (1, 1, "online-2") and trained == []
    assert answer["rows"] == 700 and schema.read_manifest(url).number == 2
    assert online.stream(spark, config)["rounds"] == 0 and trained == []


def test_a_stream_that_cannot_learn_says_why_before_anything_is_added(spark, tmp_path):
    arrive(tmp_path / "in", OLD[:20])
    config = settings(tmp_path / "lake", tmp_path / "in", stream={"train_every": 10})
    with pytest.raises(UserError, match="no version of promote.model = 'digits' is promoted in"):
        online.stream(spark, config)
    with pytest.raises(UserError, match="the config has no \\[model\\] section"):
        online.stream(spark, dataclasses.replace(config, model=None))
    assert not lakes.exists(lakes.dataset_url(config))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_classes_that_come_in_front_and_what_was_compacted_are_refused(spark, begun):
    from gan_spark.data import compact

    config, folder = begun
    arrive(folder, NEW[:60])
    stream.stream(spark, config)
    model = dataclasses.replace(config.model, classes=10)
    further = dataclasses.replace(
        configs.replaced(config, train={"start_from": "first", "steps": 1}), run="further", model=model
    )
    other = dataclasses.replace(further, dataset="other", run="other")
    source = sources.open_source(spark, dataclasses.replace(config.ingest, classes=tuple("9876543210")))
    ingest.write(spark, source, lakes.dataset_url(other), dataclasses.replace(config.ingest, mode="replace"))
    with pytest.raises(UserError, match="are not the first of the 10 of this one \\(0, 1, .*9, 8"):
        driver.train(spark, configs.replaced(other, train={"new_share": 0.0}))
    assert not Run.of(other).checkpoints()
    compact.compact(spark, lakes.dataset_url(config))
    with pytest.raises(UserError, match="train.new_share = 0.5: what is new to run first cannot be told"):
        driver.train(spark, further)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_model_that_makes_images_is_compared_by_what_it_makes(spark, tmp_path):
    root, folder = tmp_path / "lake", tmp_path / "in"
    arrive(folder, OLD[:200])
    few = {"steps": 2, "batch_size": 16}
    measured = {"generate": {"images": 40}, "evaluate": {"classifier_steps": 20, "classifier_batch": 16}}
    sizes = {"ingest": {"height": 16, "width": 16, "new_classes": "refuse"}}
    first = settings(root, folder, "first", MODEL_CONFIGS["dcgan"], train=few, **sizes)
    stream.stream(spark, first)
    driver.train(spark, first)
    registry.promote(str(root), "first", "digits")
    arrive(folder, OLD[200:230])
    often = {"train_every": 20, "steps": 2}
    config = settings(root, folder, "online", MODEL_CONFIGS["dcgan"], train=few, stream=often, **sizes, **measured)
    answer = online.stream(spark, config)
    assert answer["rounds"] == 1
    version = registry.read(config.lake, "digits")["versions"][1]
    compared = version["compared"]
    assert version["run"] == "online-2" and compared["measure"] == "kid" and compared["error"] > 0
    assert compared["better"] == (compared["value"] < compared["before"] and compared["p"] < 0.05)
    assert answer["promotions"] == compared["better"] and answer["run"] == (
        "online-2" if compared["better"] else "first"
    )
    assert all(lakes.exists(f"{root}/generated/{name}-compared") for name in ("online-2", "digits"))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_ranks_learn_on_in_a_job_that_is_killed(spark, begun, tmp_path):
    """SIGKILL in mid-training; the same command again goes on from the checkpoint, and from the images that are new."""
    config, folder = begun
    arrive(folder, NEW[:200])
    train = {"workers": 2, "launcher": "spark", "checkpoint_every": 50}
    config = configs.replaced(config, train=train, stream={"steps": 1500})
    command = [sys.executable, str(ROOT / "jobs" / "stream.py"), "--config", write_config(tmp_path, config)]
    run = Run.named(config.lake, "online-2")
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    wait_for(lambda: job.poll() is not None or run.checkpoints(), "save a checkpoint", 600)
    assert job.poll() is None, (tmp_path / "log").read_text()[-3000:]
    ranks = list(ranks_under(job.pid).values())
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.wait(60)
    reached = run.checkpoints()[-1]
    assert reached < 1500
    again = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert again.returncode == 0, again.stderr[-3000:]
    answer = json.loads(again.stdout.splitlines()[-1])
    assert (answer["rounds"], answer["run"], answer["rows"]) == (1, "online-2", 700)
    starts = [line["step"] for line in run.metrics() if line.get("event") == "start"]
    assert starts == [0, reached] and run.checkpoints()[-1] == 1500
