"""One pass of an ingest over its source, seen from the driver: rows are given to tasks, and what these wrote is summed
up and checked.

A task decodes its rows and writes its own Parquet files (`tasks`), and hands the driver one line a file. Files of tasks
that failed half-way are in no line, and are removed.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import logging
import math
from collections.abc import Iterator

from pyspark.sql import functions as F

from .. import lake
from ..config import Ingest
from . import batches, schema, sources, splits, tasks

log = logging.getLogger(__name__)
_FILE_BYTES = 128 * 2**20
_ARROW_BYTES = 2**30
_IDS_OF_A_TASK = 200_000
_ROWS_OF_A_TASK = 256  # worth a task of its own, where few are added


@dataclasses.dataclass(frozen=True)
class Written:
    """What the tasks wrote: one row of `tasks.REPORT` a file."""

    report: list

    def counts(self) -> dict[str, int]:
        """Rows by split, and of the rejects."""
        return {split: self.rows(split) for split in (*schema.SPLITS, tasks.REJECTED)}

    def rows(self, split: str) -> int:
        return sum(file["rows"] for file in self.report if file["split"] == split)

    def names(self) -> set[str]:
        """Names of all files, those of rejects too, without their folders."""
        return {file["name"] for file in self.report}

    def files(self) -> dict[str, int]:
        """Row groups of the files of images, by their paths in the dataset."""
        return {name: file["groups"] for name, file in self._images().items()}

    def seals(self) -> dict[str, str]:
        """Seals of the files of images, by their paths in the dataset."""
        return {name: file["seal"] for name, file in self._images().items()}

    def _images(self) -> dict:
        return {
            lake.join(splits.folder("", file["split"], file["part"]), file["name"]).lstrip("/"): file
            for file in self.report
            if file["split"] in schema.SPLITS
        }

    def flat(self) -> int:
        """How many images use little of their range."""
        return sum(file["flat"] for file in self.report)

    def sums(self, former: dict[str, str] | None = None) -> dict[str, str]:
        """'rows:sum of the rows' digests' by split and part, on top of `former` ones."""
        totals = {key: tuple(map(int, text.split(":"))) for key, text in (former or {}).items()}
        for file in self.report:
            if file["split"] in schema.SPLITS:
                key = f"{file['split']}/{file['part']}"
                rows, digest = totals.get(key, (0, 0))
                totals[key] = rows + file["rows"], (digest + int.from_bytes(file["digest"], "big")) % 2**64
        return {key: f"{rows}:{digest}" for key, (rows, digest) in sorted(totals.items())}


def fingerprint(sums: dict[str, str]) -> str:
    """Fingerprint of every id, image, label and split, in whatever order, files and number of ingests they came."""
    text = ",".join(f"{key}:{value}" for key, value in sorted(sums.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def layout(
    spark, source: sources.Source, config: Ingest, manifest: schema.Manifest, former_rows: int = 0
) -> tuple[int, int]:
    """(number of files a split, rows of a row group), of a dataset that has `former_rows` rows already."""
    row_bytes = math.prod(manifest.shape) + 4 * math.prod(source.embedding or (0,))
    # A task a file: every core decodes. Few files, as Petastorm's metadata takes a task for each.
    tasks_at_once = max(config.planned_workers, spark.sparkContext.defaultParallelism)
    if former_rows:
        tasks_at_once = min(tasks_at_once, math.ceil(source.count / _ROWS_OF_A_TASK))
    files = max(1, tasks_at_once, math.ceil(source.count * row_bytes / _FILE_BYTES))
    # Training images of one part, where a source has no split of its own.
    smallest = (former_rows + source.count) * (1.0 - config.validation - config.test) / max(1, len(manifest.parts))
    return files, max(1, min(tasks.ROW_GROUP_BYTES // row_bytes, int(smallest) // (8 * config.planned_workers)))


def without_stated_splits(source: sources.Source, config: Ingest) -> Ingest:
    """The config by which splits are made: nothing is taken from the training images for a split that the source has
    itself.
    """
    if source.splits:
        log.info("ingest: the source states split %s of its images", ", ".join(sorted(source.splits)))
    return dataclasses.replace(config, **{name: 0.0 for name in source.splits & {"validation", "test"}})


def versioned(frame):
    """The source's rows with what tells whether one of them changed: `source_version` of 16 bytes, null where the
    source does not tell it without the file being read.
    """
    if "version" not in frame.columns:  # a source of somebody else's
        frame = frame.withColumn("version", F.lit(None).cast("string"))
    told = F.xxhash64("version", "label", "caption", "embedding", "height", "width", "channels")
    content = F.when(F.col("content").isNotNull(), F.substring(F.sha2("content", 256), 1, 16))
    content = F.coalesce(content, F.when(F.col("version").isNotNull(), F.lit("0" * 16)))
    return frame.withColumn("source_version", F.unhex(F.concat(content, F.lpad(F.hex(told), 16, "0"))))


def shuffled(frame, files: int):
    """The source's rows in `files` partitions, in the order of their ids' hashes; equal ids are neighbours."""
    return (
        frame.withColumn("order", F.xxhash64("id"))
        .repartition(files, "order")
        .sortWithinPartitions("order", "id", F.xxhash64("content", "url"))
        .drop("order", "version")
    )


def batches_that_fit(spark, source: sources.Source, config: Ingest) -> contextlib.AbstractContextManager[None]:
    """Of sources of whole files, tasks are handed no more rows at once than fit into an Arrow column, which ends at
    2 GiB.
    """
    if not source.holds_files:
        return contextlib.nullcontext()
    return batches.at_most(spark, max(1, _ARROW_BYTES // (config.max_file_mb * 2**20)))


@contextlib.contextmanager
def partitions_for(spark, rows: int) -> Iterator[None]:
    """Jobs that run meanwhile sort and join ids of so many rows in no more tasks than that is worth: Spark's own 200
    take longer to start than some thousand ids to compare.
    """
    key = "spark.sql.shuffle.partitions"
    before = spark.conf.get(key)
    spark.conf.set(key, str(max(spark.sparkContext.defaultParallelism, math.ceil(rows / _IDS_OF_A_TASK))))
    try:
        yield
    finally:
        spark.conf.set(key, before)


def run(rows, work: tasks.Work) -> Written:
    """The pass itself, over rows as `shuffled` gives them, with the hashes by which known ones are compared."""
    return Written(rows.mapInArrow(functools.partial(tasks.write, work), tasks.REPORT).collect())


def counts_by_class(frame, counts: dict[str, int], classes: tuple[str, ...]) -> dict[str, int]:
    """Images by class; `RuntimeError` where what the tasks say that they wrote is not what is there to be read."""
    keys = ["split", "label"] if classes else ["split"]
    rows = frame.groupBy(*keys).count().collect()
    readable, by_class = collections.Counter(), dict.fromkeys(classes, 0)
    for row in rows:
        readable[row["split"]] += row["count"]
        if classes and row["label"] >= 0:
            by_class[classes[row["label"]]] += row["count"]
    if readable != {split: count for split, count in counts.items() if count}:
        raise RuntimeError(
            f"{counts} rows were written and {readable} are to be read: rows were lost, nothing was replaced"
        )
    return by_class


def in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)


def reasons(spark, staged_rejects: str) -> str:
    """The three most frequent reasons, with their counts."""
    rejects = (
        spark.read.parquet(staged_rejects)
        .groupBy("reason")
        .count()
        .orderBy(F.desc("count"), "reason")
        .limit(3)
        .collect()
    )
    return "; ".join(f"{row['count']} x {row['reason']}" for row in rejects)


def tell_of_flat(flat: int) -> None:
    """Warns of images that use little of their range."""
    if flat:
        log.warning(
            "ingest: %d images use under 1/16 of their range, which makes them almost of one colour; for grey files of"
            " 16 bits that use fewer, ingest.range says which values are black and white",
            flat,
        )
