"""Images of every day, from the promoted model: table `<lake>/generated/daily/<date>`.

Safe to backfill and to run again: the seeds of a date are its own, and its table is replaced whole.
A model that takes images or text of a dataset makes the same of them every day.
"""

import pendulum
from airflow import DAG
from airflow.models.param import Param
from gan_spark_jobs import job

with DAG(
    "gan_spark_generate",
    description="images of a date",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=30)},
    params={"images": Param(1000, type="integer", minimum=1, description="how many a day")},
    tags=["gan_spark"],
    doc_md=__doc__,
):
    job(
        "generate",
        "generate",
        generate__model="gan_spark_retrain",
        generate__images="{{ params.images }}",
        generate__first_seed="{{ (logical_date.int_timestamp // 86400) * 1000000 }}",
        generate__table="{{ var.value.get('GAN_SPARK_LAKE', 'lake') }}/generated/daily/{{ ds }}",
    )
