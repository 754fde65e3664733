"""Runs told to MLflow, in a SQLite store."""

import pytest
from conftest import make_config
from mlflow import MlflowClient

from gan_spark.config import UserError
from gan_spark.quality import evaluate
from gan_spark.runs.store import Run
from gan_spark.runs.tracking import Tracker
from gan_spark.sampling import generate
from gan_spark.training import driver, loop

pytestmark = pytest.mark.slow


def files(client: MlflowClient, id: str, path: str = "") -> list[str]:
    found = client.list_artifacts(id, path)
    return [name for each in found for name in (files(client, id, each.path) if each.is_dir else [each.path])]


def test_training_generation_and_quality_go_to_one_run(spark, lake, digits, tmp_path):
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "artifacts": f"file://{tmp_path}/files"}
    config = make_config(
        lake,
        run="tracked",
        tracking=tracking,
        generate={"images": 20},
        evaluate={"classifier_steps": 5},
    )
    client = MlflowClient(tracking_uri=tracking["uri"])

    def told():
        (run,) = client.search_runs(
            [client.get_experiment_by_name("gan_spark").experiment_id], "tags.`gan_spark.run` LIKE '%/tracked'"
        )
        return run

    driver.train(spark, config)
    run = told()
    assert run.info.status == "FINISHED" and run.info.run_name == "tracked"
    assert (
        run.data.params["model.name"] == "dcgan"
        and run.data.params["train.steps"] == "4"
        and run.data.params["dataset.url"] == digits
    )
    ours = [(line["step"], line["d_loss"]) for line in Run.of(config).metrics() if "scalars" in line]
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "d_loss")] == ours and len(
        ours
    ) == 2
    assert files(client, run.info.run_id) == [
        "model/checkpoint.data-00000-of-00001",
        "model/checkpoint.index",
        "model/config.json",
        "model/manifest.json",
        "samples/step-00000004.png",
    ]

    generate.generate(spark, config)
    report = evaluate.evaluate(spark, config)
    run = told()
    assert run.data.metrics["quality_fid"] == report["fid"]
    assert {"generated/tracked.png", "quality/tracked.quality.json"} <= set(files(client, run.info.run_id))


def test_a_run_that_goes_on_is_the_same_one_and_one_that_fails_is_told_to_have(
    spark, lake, digits, tmp_path, monkeypatch
):
    tracking = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    monkeypatch.chdir(tmp_path)
    config = make_config(lake, run="tracked-twice", tracking=tracking)
    driver.train(spark, config)

    def stop(*_):
        return "enough"

    longer = make_config(lake, run="tracked-twice", tracking=tracking, train={"steps": 8})
    with monkeypatch.context() as patch, pytest.raises(driver.TrainingStopped):
        patch.setattr(loop, "_problem", stop)
        driver.train(spark, longer)
    client = MlflowClient(tracking_uri=tracking["uri"])
    experiment = client.get_experiment_by_name("gan_spark").experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["FAILED"]
    driver.train(spark, longer)
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert [each.step for each in client.get_metric_history(run.info.run_id, "d_loss")] == [2, 4, 6, 8]


def test_a_server_that_stops_answering_is_not_waited_for_at_every_line(tmp_path, caplog):
    config = make_config(
        str(tmp_path),
        run="silent",
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db", "artifacts": f"file://{tmp_path}/files"},
    )
    tracker = Tracker(config, Run.of(config))
    asked = []

    def fails(*arguments, **_):
        asked.append(arguments)
        raise OSError("no answer")

    tracker.client.log_batch = tracker.client.log_artifact = fails
    for step in range(5):
        tracker.metrics([(step, {"loss": 1.0})])
    assert len(asked) == 1 and caplog.text.count("MLflow did not take metrics") == 1
    tracker.end(False)
    assert tracker.client.get_run(tracker.id).info.status == "FAILED"


def test_a_tracker_that_is_not_there_is_told_before_anything_is_written(spark, lake, digits):
    with pytest.raises(UserError, match="tracking.uri = 'nowhere://x'"):
        driver.train(spark, make_config(lake, run="untracked", tracking={"uri": "nowhere://x"}))
    assert not Run(f"file://{lake}/runs/untracked").checkpoints()


def test_a_run_is_one_by_every_spelling_of_its_bucket(tmp_path):
    config = make_config(str(tmp_path), run="r", tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"})
    ids = [Tracker(config, Run(f"{scheme}://bucket/lake/runs/r")).id for scheme in ("s3", "s3a", "s3n", "hdfs")]
    assert ids[0] == ids[1] == ids[2] != ids[3]
