"""Retraining, weekly: what has arrived is added to the dataset, a run is trained on all of it, measured, and promoted
only if it is better than the promoted one; that one then generates.

Where nothing has arrived, task `ingest` ends as skipped, and the others with it. That is so whatever else is asked for,
but where `run` is named.
The parameter `begin` says with what a run begins: "further", with the weights and optimizer state of the promoted run,
or fresh where none is promoted yet; or "fresh".
New images are another measure: where there are some, task `promote` first makes images with the promoted model (table
`gan_spark_retrain-promoted`) and measures them as the new run's were.
A run is named after its date, so a task that is tried again, or cleared from `train` on, goes on from the run's last
checkpoint.
With the parameter `run` set to the name of a run, that one is trained further instead (raise train.steps in
GAN_SPARK_SET), on the images that it was started with.
"""

import pendulum
from airflow import DAG
from airflow.models.param import Param
from gan_spark_jobs import job

RUN = "{{ params.run or 'retrain-' ~ ds_nodash }}"


def nothing_new(answer: dict, context) -> str:
    """Why there is nothing to train on, after what task `ingest` has answered."""
    if answer.get("added", answer["rows"]) or context["params"]["run"]:
        return ""
    # A try that died once its images were in the dataset would be followed by one that finds nothing new.
    if context["ti"].try_number > 1:
        return ""
    return f"nothing has arrived: all of {answer['known']} images are in snapshot {answer['snapshot']} already"


with DAG(
    "gan_spark_retrain",
    description="add what has arrived, train, measure, promote if better, generate",
    schedule="@weekly",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": pendulum.duration(seconds=30)},
    params={
        "run": Param("", type="string", description="run to train further; empty for a new one, named after the date"),
        "begin": Param(
            "further", enum=["further", "fresh"], description="a new run: with the promoted one's weights, or fresh"
        ),
    },
    tags=["gan_spark"],
    doc_md=__doc__,
) as dag:
    ingest = job("ingest", "ingest", is_over=nothing_new, ingest__mode="append")
    train = job(
        "train",
        "train",
        run=RUN,
        train__start_from="{{ 'promoted:' ~ dag.dag_id if params.begin == 'further' else '' }}",
    )
    sample = job("sample", "generate", run=RUN)
    evaluate = job("evaluate", "evaluate", run=RUN)
    promote = job("promote", "promote", run=RUN, promote__model="{{ dag.dag_id }}")
    generate = job("generate", "generate", generate__model="{{ dag.dag_id }}")
    ingest >> train >> sample >> evaluate >> promote >> generate
