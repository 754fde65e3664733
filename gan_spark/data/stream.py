"""A stream of images into a dataset: Structured Streaming, of which each micro-batch is an append.

Exactly once: Spark's checkpoint says which files or rows a micro-batch has, and the dataset's ids which of them are
there already, so that a micro-batch that is done again, after a job that died, adds what is missing and nothing twice.
"""

import contextlib
import dataclasses
import datetime
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from pyspark.sql import functions as F
from pyspark.sql.utils import StreamingQueryException

from .. import failures, lake
from ..config import Config, UserError, check_sections
from . import ingest, schema
from .sources import arriving

log = logging.getLogger(__name__)


@dataclasses.dataclass
class _Done:
    """What a job's micro-batches came to."""

    batches: int = 0
    added: int = 0
    known: int = 0
    rejected: int = 0


class _Turns:
    """Work that the thread of a query's micro-batches has the main one do, and waits for: a training takes the signals
    of its process, which no other thread can.
    """

    def __init__(self):
        self._waiting: queue.SimpleQueue[tuple[Callable[[], None], Future]] = queue.SimpleQueue()
        self._has_ended = threading.Event()

    def take(self, work: Callable[[], None]) -> None:
        """Has `work` done; raises where the main thread has given up."""
        future = Future()
        self._waiting.put((work, future))
        while not self._has_ended.is_set():
            with contextlib.suppress(TimeoutError):
                return future.result(0.5)
        raise RuntimeError("the job has ended")

    def give(self, query) -> None:
        """Does what is asked for, until the query has ended; raises what ended either."""
        try:
            while query.isActive:
                with contextlib.suppress(queue.Empty):
                    work, future = self._waiting.get(timeout=0.5)
                    work()
                    future.set_result(None)
            query.awaitTermination()
        finally:
            self._has_ended.set()


def stream(spark, config: Config, after: Callable[[], None] = lambda: None) -> dict:
    """Adds what arrives at `ingest.path` to the config's dataset: all that is there (`stream.trigger` is
    "availableNow"), or for ever, every so often. `after` is called, in this thread, once a micro-batch is added.
    """
    config = dataclasses.replace(config, ingest=dataclasses.replace(config.ingest, mode="append"))
    check_sections(config, "ingest")
    url, options = lake.dataset_url(config), config.stream
    ingest.check_replaceable(spark, url, config.tables)
    lake.tidy(f"{url}.rejected", url)
    done, turns = _Done(), _Turns()

    def add(batch, number: int) -> None:
        _add(spark, config, url, batch, number, done)
        turns.take(after)

    rows = arriving.stream(spark, config.ingest, options)
    writer = rows.writeStream.foreachBatch(add)
    writer = writer.queryName(f"{config.dataset} from {config.ingest.path}")
    writer = writer.option("checkpointLocation", checkpoint(config))
    query = triggered(writer, options.trigger).start()
    try:
        turns.give(query)
    except StreamingQueryException as error:
        if config.ingest.source == "kafka" and not done.batches and "org.apache.kafka.common." in str(error):
            raise UserError(
                f"ingest.path = {config.ingest.path!r}: the topic cannot be read at stream.servers ="
                f" {options.servers!r}: {failures.summary(error)}"
            ) from error
        raise
    finally:
        query.stop()
    has_dataset = lake.exists(lake.join(url, schema.MANIFEST))
    manifest = schema.read_manifest(url) if has_dataset else None
    return {
        "dataset": url,
        **dataclasses.asdict(done),
        "snapshot": manifest.number if manifest else 0,
        "rows": sum(manifest.rows.values()) if manifest else 0,
        "checkpoint": checkpoint(config),
    }


def triggered(writer, trigger: str):
    """The writer of a stream with `stream.trigger`; `UserError` where that is none."""
    if trigger == "availableNow":
        return writer.trigger(availableNow=True)
    try:
        return writer.trigger(processingTime=trigger)
    except Exception as error:  # Java's, and PySpark's own of an empty one
        raise UserError(
            f"stream.trigger = {trigger!r}: expected 'availableNow', or an interval such as '10 seconds'"
        ) from error


def checkpoint(config: Config) -> str:
    """URL of the folder in which Spark keeps what the stream of the config's dataset has read."""
    return lake.join(lake.to_url(config.lake), "streams", lake.dataset_url(config).rsplit("/", 1)[1])


def _add(spark, config: Config, url: str, batch, number: int, done: _Done) -> None:
    """One micro-batch."""
    began = time.monotonic()
    batch = batch.persist()
    try:
        if not batch.head(1):
            return
        has_dataset = lake.exists(lake.join(url, schema.MANIFEST))
        classes = schema.read_manifest(url).classes if has_dataset else ()
        source = arriving.source(batch, config.ingest, classes)
        answer = ingest.write(spark, source, url, config.ingest, config.tables, is_first=not has_dataset)
        waited = _waited(batch)
    finally:
        batch.unpersist()
    added = answer.get("added", answer["rows"])
    done.batches += 1
    done.added += added
    done.known += answer.get("known", 0)
    done.rejected += answer["rejected"]
    log.info(
        "stream: batch %d: %d of %d images added, %d rejected, %d known, in %.1f s%s; snapshot %d",
        *(number, added, source.count, answer["rejected"], answer.get("known", 0), time.monotonic() - began, waited),
        answer["snapshot"],
    )


def _waited(batch) -> str:
    """For how long the oldest file of the micro-batch had been there."""
    if "modificationTime" not in batch.columns:
        return ""
    oldest = batch.agg(F.min("modificationTime")).first()[0]
    return f", the oldest of which waited {max(0.0, (datetime.datetime.now() - oldest).total_seconds()):.0f} s"
