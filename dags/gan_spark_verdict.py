"""The verdict on the challenger of a registered model, daily: task `verdict` draws its page, and promotes or ends the
challenger where the parameter `act` says so and the evidence allows.
"""

import pendulum
from airflow import DAG
from airflow.models.param import Param
from gan_spark_jobs import job

with DAG(
    "gan_spark_verdict",
    description="judge the challenger of a registered model",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": pendulum.duration(seconds=30)},
    params={
        "model": Param("gan_spark_retrain", type="string", description="name of the registered model"),
        "act": Param(False, type="boolean", description="promote or end the challenger, where the evidence allows"),
    },
    tags=["gan_spark"],
    doc_md=__doc__,
):
    job("verdict", "verdict", verdict__model="{{ params.model }}", verdict__act="{{ params.act | tojson }}")
