"""One seed is one image, whatever the partitioning and wherever it is made."""

import contextlib
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_config

from gan_spark import lake as lakes
from gan_spark.config import UserError, replaced
from gan_spark.data import images
from gan_spark.lake import tables
from gan_spark.quality import evaluate
from gan_spark.runs import loading
from gan_spark.runs.store import Run
from gan_spark.sampling import dream, generate, inpaint, latent
from gan_spark.training import driver


@pytest.fixture(scope="module", params=["dcgan", "vae"])
def run(request, spark, lake, digits):
    config = make_config(
        lake,
        model=request.param,
        run=f"generates-{request.param}",
        generate={"images": 50, "batch_size": 16, "first_seed": 7},
    )
    driver.train(spark, config)
    return config


def pngs(spark, config, partitions):
    seeds = spark.range(7, 57, 1, partitions).withColumnRenamed("id", "seed")
    return {
        row["seed"]: bytes(row["image"]) for row in generate.generated(seeds, Run.of(config), config.generate).collect()
    }


@pytest.mark.slow
def test_the_same_seed_is_the_same_image_for_any_partitioning_and_in_this_process(spark, run):
    one, seven = pngs(spark, run, 1), pngs(spark, run, 7)
    assert len(one) == 50 and one == seven
    model = loading.load_model(Run.of(run).url, 4, Run.of(run).record())
    seeds = np.resize(np.arange(7, 57), 64).reshape(4, 16)
    local = np.concatenate(
        [images.to_pixels(tf.function(model.generate)({}, tf.constant(part, tf.int64))) for part in seeds]
    )
    different = [
        seed for seed, image in zip(seeds.ravel(), local, strict=True) if images.encode_png(image) != one[seed]
    ]
    assert different == []


def test_the_table_says_where_each_image_is_from(spark, run):
    result = generate.generate(spark, run)
    rows = spark.read.parquet(result["table"]).orderBy("seed").collect()
    assert result["images"] == len(rows) == 50
    assert [row["seed"] for row in rows] == list(range(7, 57))
    assert {(row["run"], row["model"], row["step"], row["height"], row["width"], row["channels"]) for row in rows} == {
        (f"lake:/runs/{run.run}", run.model.name, 4, 16, 16, 1)  # of the lake that the table is in
    }
    assert {row["run"] for row in generate.images_of(spark, run).collect()} == {Run.of(run).url}
    assert images.decode_png(rows[0]["image"]).shape == (16, 16, 1)
    assert images.decode_png(lakes.read_bytes(result["grid"])).shape == (7 * 18 + 2, 8 * 18 + 2, 1)


def test_generate_refuses_a_run_or_a_checkpoint_that_is_not_there(spark, lake, run):
    with pytest.raises(UserError, match="no run at .*never-trained"):
        generate.generate(spark, make_config(lake, run="never-trained"))
    with pytest.raises(UserError, match=r"no checkpoint at step 3 \(there are: 2, 4\)"):
        generate.generate(spark, make_config(lake, run=run.run, generate={"checkpoint": 3}))


def test_a_table_says_by_which_weights_its_images_are(spark, run):
    newest = replaced(run, generate={"weights": "newest", "table": f"{run.run}-newest"})
    if run.model.name == "vae":
        with pytest.raises(
            UserError, match="generate.weights = 'newest': model 'vae' of run .* keeps no moving averages"
        ):
            generate.generate(spark, newest)
        return
    pixels = {}
    for config in (run, newest, run):  # the last is not by what a task has kept of the second
        result = generate.generate(spark, config)
        rows = generate.images_of(spark, config).collect()
        names = {row["model"] for row in rows}
        assert names == ({"dcgan (newest weights)"} if config is newest else {"dcgan"})
        assert result.get("weights") == ("newest" if config is newest else None)
        images_now = {row["seed"]: bytes(row["image"]) for row in rows}
        assert pixels.setdefault(config.generate.weights, images_now) == images_now and len(images_now) == 50
    assert pixels["average"] != pixels["newest"]
    with pytest.raises(UserError, match=r"has no images of run .*; it has those of .* at step 4 \(newest weights\)"):
        generate.images_of(spark, replaced(newest, generate={"weights": "average"}))


@pytest.mark.slow
@pytest.mark.parametrize("other", ["no", "another"])
def test_all_tasks_load_the_checkpoint_that_was_chosen_whatever_a_training_makes_of_it(spark, lake, digits, other):
    """It may be removed, or saved anew with other weights by a run that had gone back before it."""
    configs = [
        make_config(lake, "gan", f"{name}-{other}", train={"steps": 2, "seed": seed}, generate={"batch_size": 4})
        for seed, name in enumerate(("chosen", "saved-anew"))
    ]
    for config in configs:
        driver.train(spark, config)
    run, another = map(Run.of, configs)
    local, others = (
        images.to_pixels(
            loading.load_model(each.url, 2, each.record()).generate({}, tf.range(4, dtype=tf.int64))
        ).astype(int)
        for each in (run, another)
    )
    assert np.abs(local - others).max() > 5
    frame = generate.generated(spark.range(4).withColumnRenamed("id", "seed"), run, configs[0].generate)
    shutil.rmtree(lakes.filesystem(run.path("checkpoints"))[1])
    if other == "another":
        shutil.copytree(*(lakes.filesystem(each.path("checkpoints"))[1] for each in (another, run)))
    pixels = {row["seed"]: images.decode_png(row["image"]) for row in frame.collect()}
    np.testing.assert_allclose(np.stack([pixels[seed] for seed in range(4)]).astype(int), local, atol=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "job, model",
    [
        (generate.generate, "dcgan"),
        pytest.param(inpaint.inpaint, "dcgan", marks=pytest.mark.long),
        pytest.param(latent.latent, "dcgan", marks=pytest.mark.long),
        (dream.dream, "lenet"),
    ],
)
def test_a_checkpoint_that_a_training_removes_meanwhile_serves_the_job_to_its_end(
    spark, lake, digits, monkeypatch, job, model
):
    name = f"goes-on-{job.__name__}"
    config = make_config(
        lake,
        model,
        run=name,
        train={"steps": 1},
        generate={"images": 6, "batch_size": 4},
        inpaint={"images": 3, "iterations": 1, "draws": 4, "starts": 1},
        latent={"paths": 2, "steps": 3},
        dream={"network": "run", "run": name, "layers": ("conv2",), "octaves": 1, "iterations": 1, "images": 3},
    )
    driver.train(spark, config)
    whole, chosen = Run.checkpoint, []

    @contextlib.contextmanager
    def removed_afterwards(run, step=0):
        with whole(run, step) as checkpoint:
            yield checkpoint
        chosen.append(checkpoint[0])
        lakes.remove(run.path("checkpoints"))

    monkeypatch.setattr(Run, "checkpoint", removed_afterwards)
    result = job(spark, config)
    assert chosen == [1] and lakes.exists(result.get("grid") or result["paths"])


@pytest.mark.slow
@pytest.mark.long
def test_an_evaluation_reads_the_checkpoint_of_the_images_before_it_measures_them(spark, lake, digits, monkeypatch):
    config = make_config(
        lake,
        "vae",
        "measured-meanwhile",
        train={"steps": 1},
        generate={"images": 12, "batch_size": 4},
        evaluate={"classifier_steps": 2, "classifier_batch": 16, "neighbours": 2},
    )
    driver.train(spark, config)
    generate.generate(spark, config)
    moments = evaluate.feature_moments

    def removed_before(*arguments):
        lakes.remove(Run.of(config).path("checkpoints"))
        return moments(*arguments)

    monkeypatch.setattr(evaluate, "feature_moments", removed_before)
    assert any(name.startswith("held_out_") for name in evaluate.evaluate(spark, config))


@pytest.mark.parametrize("option, value", [("label", "3"), ("captions", ("a red circle",)), ("part", "a")])
def test_what_the_model_does_not_take_is_refused(spark, run, option, value):
    with pytest.raises(
        UserError, match=f"generate.{option} = .*: model '{run.model.name}' of run .* takes seeds alone"
    ):
        generate.generate(spark, replaced(run, generate={option: value}))


def test_a_table_that_a_killed_job_had_displaced_is_put_back_by_one_that_fails(spark, tmp_path):
    url = lakes.to_url(str(tmp_path / "table"))
    spark.range(3).write.parquet(lakes.displaced(url))
    left = lakes.staging(url)
    lakes.write_bytes(lakes.join(left, "part"), b"")
    lakes.claim(left, generate.KIND)
    for name in ("part", lakes.OWNER):
        os.utime(lakes.filesystem(lakes.join(left, name))[1], (0, 0))
    with pytest.raises(RuntimeError, match="no more"), tables.replacing(spark.range(5), url, generate.KIND):
        raise RuntimeError("no more")
    assert tables.read(spark, url).count() == 3 and not lakes.exists(left)


def test_a_classifier_generates_nothing(spark, lake, digits):
    config = make_config(lake, model="lenet", run="classifies", train={"steps": 1})
    driver.train(spark, config)
    with pytest.raises(UserError, match="model 'lenet' does not generate images"):
        generate.generate(spark, config)
