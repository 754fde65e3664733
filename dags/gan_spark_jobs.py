"""Tasks of gan_spark's DAGs: one script of jobs/ each, by spark-submit or on Databricks.

Set as Airflow Variables, or as environment variables `AIRFLOW_VAR_<NAME>`:

    GAN_SPARK_HOME      folder of the checkout, with its .venv; on Databricks the path of its repository or bundle
    GAN_SPARK_CONFIG    config of the run, relative to it (conf/quickstart.toml)
    GAN_SPARK_LAKE      URL or path of the lake
    GAN_SPARK_SET       more overrides, as JSON: {"train.steps": 1000}
    GAN_SPARK_PLATFORM  "spark" (the default) or "databricks"
    GAN_SPARK_CLUSTER   databricks: id of an existing cluster, with gan_spark's dependencies installed

Spark's master is that of the connection `spark_default`. What a job answers, the JSON object that is its last line, is
the XCom of its task.
"""

import json
from collections.abc import Callable, Iterable, Iterator

from airflow.exceptions import AirflowSkipException
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


def answer_in(lines: Iterable[str]) -> dict | None:
    """The last JSON object among the lines that a job printed; None where there is none."""
    objects = [line for line in map(str.strip, lines) if line.startswith("{") and line.endswith("}")]
    for line in reversed(objects):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return None


def skips(answer: dict | None, context, is_over: Callable[[dict, dict], str]) -> dict | None:
    """The answer; the task ends as skipped, and with it those that follow, where `is_over` has a reason for that."""
    if answer and (reason := is_over(answer, context)):
        raise AirflowSkipException(reason)
    return answer


def goes_on(answer: dict, context) -> str:
    """The reason of a task that never has one."""
    return ""


def job(task_id: str, script: str, is_over: Callable[[dict, dict], str] = goes_on, **overrides: str) -> BaseOperator:
    """A task that runs jobs/<script>.py; keyword arguments are config keys, with `__` for the dot.

    `is_over(answer, context)` is asked once the job has ended whether what follows has nothing to do, and why.
    """
    parameters = arguments(**{key.replace("__", "."): value for key, value in overrides.items()})
    application = "{{ var.value.GAN_SPARK_HOME }}/jobs/" + f"{script}.py"
    if setting("GAN_SPARK_PLATFORM", "spark") == "databricks":
        return _databricks(task_id, script, application, parameters, is_over)
    return _spark(task_id, script, application, parameters, is_over)


def _databricks(task_id: str, script: str, application: str, parameters: list[str], is_over) -> BaseOperator:
    from airflow.providers.databricks.operators.databricks import DatabricksSubmitRunOperator

    class DatabricksJob(DatabricksSubmitRunOperator):
        def execute(self, context):
            super().execute(context)
            run = self._hook.get_run(self.run_id)
            task = run.get("tasks", [run])[0]["run_id"]
            output = self._hook.get_run_output(task).get("logs") or ""
            return skips(answer_in(output.splitlines()), context, is_over)

    return DatabricksJob(
        task_id=task_id,
        json={
            "run_name": f"gan_spark {script}",
            "existing_cluster_id": "{{ var.value.GAN_SPARK_CLUSTER }}",
            "spark_python_task": {"python_file": application, "parameters": parameters},
        },
    )


def _spark(task_id: str, script: str, application: str, parameters: list[str], is_over) -> BaseOperator:
    from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

    class SparkJob(SparkSubmitOperator):
        def execute(self, context):
            self._hook, printed = self._get_hook(), []
            process = self._hook._process_spark_submit_log

            def kept(lines: Iterable[str]) -> Iterator[str]:
                for line in lines:
                    printed.append(line)
                    del printed[:-100]
                    yield line

            self._hook._process_spark_submit_log = lambda lines: process(kept(lines))
            super().execute(context)
            return skips(answer_in(printed), context, is_over)

    home = setting("GAN_SPARK_HOME", "")
    return SparkJob(
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
