"""Tasks of gan_spark's DAGs: one script of jobs/ each, by spark-submit or on Databricks.

Set as Airflow Variables, or as environment variables `AIRFLOW_VAR_<NAME>`:

    GAN_SPARK_HOME      folder of the checkout, with its .venv; on Databricks the path of its repository or bundle
    GAN_SPARK_CONFIG    config of the run, relative to it (conf/quickstart.toml)
    GAN_SPARK_LAKE      URL or path of the lake
    GAN_SPARK_SET       more overrides, as JSON: {"train.steps": 1000}
    GAN_SPARK_PLATFORM  "spark" (the default) or "databricks"
    GAN_SPARK_CLUSTER   databricks: id of an existing cluster, with gan_spark's dependencies installed

Spark's master is that of the connection `spark_default`.
"""

import json

from airflow.models import Variable
from airflow.models.baseoperator import BaseOperator


def setting(name: str, default: str | None = None) -> str:
    return Variable.get(name, default_var=default) if default is not None else Variable.get(name)


def arguments(**overrides: str) -> list[str]:
    """--config and --set of a job; values are Jinja templates that are filled in when the task runs."""
    options = [
        "--config",
        "{{ var.value.GAN_SPARK_HOME }}/{{ var.value.get('GAN_SPARK_CONFIG', 'conf/quickstart.toml') }}",
    ]
    sets = {
        "lake": "{{ var.value.get('GAN_SPARK_LAKE', 'lake') }}",
        **json.loads(setting("GAN_SPARK_SET", "{}")),
        **overrides,
    }
    for key, value in sets.items():
        options += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return options


def job(task_id: str, script: str, **overrides: str) -> BaseOperator:
    """A task that runs jobs/<script>.py; keyword arguments are config keys, with `__` for the dot."""
    parameters = arguments(**{key.replace("__", "."): value for key, value in overrides.items()})
    application = "{{ var.value.GAN_SPARK_HOME }}/jobs/" + f"{script}.py"
    if setting("GAN_SPARK_PLATFORM", "spark") == "databricks":
        from airflow.providers.databricks.operators.databricks import DatabricksSubmitRunOperator

        return DatabricksSubmitRunOperator(
            task_id=task_id,
            json={
                "run_name": f"gan_spark {script}",
                "existing_cluster_id": "{{ var.value.GAN_SPARK_CLUSTER }}",
                "spark_python_task": {"python_file": application, "parameters": parameters},
            },
        )
    from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

    home = setting("GAN_SPARK_HOME", "")
    return SparkSubmitOperator(
        task_id=task_id,
        application=application,
        application_args=parameters,
        name=f"gan_spark {script}",
        # Its own Spark and Python, not those that Airflow's provider brought along.
        spark_binary=f"{home}/.venv/bin/spark-submit",
        properties_file=f"{home}/conf/spark-defaults.conf",
        env_vars={
            "SPARK_HOME": f"{home}/.venv/lib/python3.11/site-packages/pyspark",
            "PYSPARK_PYTHON": f"{home}/.venv/bin/python",
            "PYSPARK_DRIVER_PYTHON": f"{home}/.venv/bin/python",
            "PYTHONPATH": home,
            # Java hands on what its encoding has: without this, nothing but ASCII of captions and paths.
            "LC_ALL": "C.UTF-8",
        },
    )
