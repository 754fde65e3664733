"""Retraining, weekly: what is new is ingested, a run is trained, measured, and promoted only if it is better than the
promoted one; that one then generates.

New images are another measure: where there are some, task `promote` first makes images with the promoted model (table
`gan_spark_retrain-promoted`) and measures them as the new run's were.
A run is named after its date, so a task that is tried again, or cleared from `train` on, goes on from the run's last
checkpoint.
With the parameter `run` set to a name, that run is trained further instead (raise train.steps in GAN_SPARK_SET); it is
refused where task `ingest` found other images than it was started with.
"""

import pendulum
from airflow import DAG
from airflow.models.param import Param
from gan_spark_jobs import job

RUN = "{{ params.run or 'retrain-' ~ ds_nodash }}"

with DAG(
    "gan_spark_retrain",
    description="ingest, train, measure, promote if better, generate",
    schedule="@weekly",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 1, "retry_delay": pendulum.duration(seconds=30)},
    params={
        "run": Param("", type="string", description="run to train further; empty for a fresh one, named after the date")
    },
    tags=["gan_spark"],
    doc_md=__doc__,
):
    ingest = job("ingest", "ingest")
    train = job("train", "train", run=RUN)
    sample = job("sample", "generate", run=RUN)
    evaluate = job("evaluate", "evaluate", run=RUN)
    promote = job("promote", "promote", run=RUN, promote__model="{{ dag.dag_id }}")
    generate = job("generate", "generate", generate__model="{{ dag.dag_id }}")
    ingest >> train >> sample >> evaluate >> promote >> generate
