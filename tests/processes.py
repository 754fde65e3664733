"""Processes that tests start, wait for and hurt: jobs, and the ranks that are theirs."""

import os
import sys
import time

import psutil
from conftest import ROOT

from gan_spark import job


def wait_for(condition, what: str, seconds: float = 600):
    """What `condition()` gives once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"no {what} in {seconds} s")


def ranks_under(pid: int) -> dict[int, psutil.Process]:
    """Horovod's ranks among the descendants of a process, by their numbers."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            command = process.cmdline()
            if "horovod.spark.task.gloo_exec_fn" in command and os.path.basename(command[0]).startswith("python"):
                found[int(process.environ()["HOROVOD_RANK"])] = process
        except (psutil.NoSuchProcess, KeyError):
            continue
    return found


def submit_environment(**variables: str) -> dict[str, str]:
    """That of bin/spark-submit of the PySpark that is installed, on loopback."""
    import pyspark

    made = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYSPARK_GATEWAY")},
        "SPARK_HOME": os.path.dirname(pyspark.__file__),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_CONF_DIR": str(ROOT / "conf"),
        **variables,
    }
    if packaged := job.java_home():
        made["JAVA_HOME"] = packaged
    return made
