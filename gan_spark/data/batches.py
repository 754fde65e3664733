"""Rows that Spark hands to Python at once.

Spark counts them, 10,000 unless it is told otherwise, and not their bytes: of photographs that is gigabytes. Where a
batch outgrows the JVM's memory outside of its heap, the thread that writes it dies, and the task waits for ever.

The setting is the session's, and is read when a job's plan is made: at an action, and not where a function is put into
a DataFrame.
"""

import contextlib
import logging
import math
from collections.abc import Iterator

import pandas as pd

from . import schema

log = logging.getLogger(__name__)
SETTING = "spark.sql.execution.arrow.maxRecordsPerBatch"
BYTES = 16 * 2**20  # at once, of a dataset, whose images are all of one size
FILES = 4  # rows at once, where each holds an image as large as a camera makes it


def rows_of(manifest: schema.Manifest) -> int:
    """How many rows of a dataset are handed to Python at once."""
    return max(1, BYTES // (math.prod(manifest.shape) + 4 * math.prod(manifest.embedding or (0,))))


def _lower(spark, rows: int) -> str:
    """Lowers the session's setting to `rows` where it is higher, or without a limit (0 and below); what it was."""
    before = spark.conf.get(SETTING)
    if not 0 < int(before) <= rows:
        spark.conf.set(SETTING, str(rows))
    return before


@contextlib.contextmanager
def at_most(spark, rows: int) -> Iterator[None]:
    """Jobs that run meanwhile hand Python no more than `rows` rows at once."""
    before = _lower(spark, rows)
    try:
        yield
    finally:
        spark.conf.set(SETTING, before)


def lower(spark, rows: int) -> None:
    """Jobs of this session hand Python no more than `rows` rows at once from now on, and the log says so: for a
    DataFrame of which nobody knows when it is computed.
    """
    before = _lower(spark, rows)
    if before != spark.conf.get(SETTING):
        log.warning(
            "%s = %s is lowered to %d in this session, for a stage that hands images to Python: that many could be more"
            " than memory holds; set it again once the stage's jobs have run",
            SETTING,
            before,
            rows,
        )


def of_size(frames: Iterator[pd.DataFrame], size: int) -> Iterator[pd.DataFrame]:
    """In a task: the rows that it is handed, `size` at once, the last ones of what is left."""
    rest = None
    for frame in frames:
        rest = frame if rest is None else pd.concat([rest, frame])
        while rest is not None and len(rest) >= size:
            yield rest.iloc[:size]
            rest = rest.iloc[size:] if len(rest) > size else None
    if rest is not None and len(rest):
        yield rest
