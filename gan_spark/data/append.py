"""Append: the images of a source that a dataset does not hold yet become its next snapshot.

Ids are compared by Spark, and no task reads a file again that is there unchanged: a source tells by a version of each
image (size and change of a file, or the image itself where a row holds it) whether it may be another one. Under a known
id nothing is replaced: an image that has changed is rejected.

What is written lies aside until one object, the snapshot's manifest, is written last (`snapshots.commit`). A job that
dies before leaves the snapshot before, and the next one adds what this one did not.
"""

import dataclasses
import datetime
import logging
import uuid

from pyspark import StorageLevel
from pyspark.sql import functions as F

from .. import lake, progress
from ..config import Ingest, UserError, differences
from ..lake import tables
from . import parts, passes, schema, snapshots, sources, tasks

log = logging.getLogger(__name__)
# Settings that decide what an image becomes, or where: all ingests of a dataset have them in common.
_COMMON = (
    *("height", "width", "channels", "fit", "range", "validation", "test", "parts", "domains", "labels", "held_out"),
)
_BROADCAST_ROWS = 100_000
_NEW, _SAME, _UNTOLD, _UNSURE, _CHANGED = "new", "same", "untold", "unsure", "changed"


def append(spark, source: sources.Source, url: str, config: Ingest, format: str) -> dict:
    """Adds to the dataset at `url` what of `source` it does not hold; returns the counts.

    `UserError` where the source's images would not become such as the dataset has, and where another job has added
    something meanwhile.
    """
    snapshots.tidy(url)
    number = schema.next_number(url)
    former = schema.read_manifest(url)
    manifest = _grown(former, source, config)
    config = passes.without_stated_splits(source, config)
    former_rows = sum(former.rows.values())
    answer = {"dataset": url, "snapshot": former.number, "rows": former_rows, "added": 0}
    answer |= {"rejected": 0, "splits": former.rows, "classes": {}, "rejects": f"{url}.rejected"}
    with passes.partitions_for(spark, source.count + former_rows):
        with progress.part("comparing", spark, source.count):
            compared, counts = _compared(spark, source, former, url)
        answer["known"] = counts.get(_SAME, 0) + counts.get(_UNTOLD, 0)
        if counts.get(_UNTOLD):
            log.warning(
                "ingest: %d images were ingested before it was kept what they were read from: whether one of them has"
                " changed since is not known, and they stay as they are",
                counts[_UNTOLD],
            )
        if left := sum(counts.values()) - answer["known"]:
            source = dataclasses.replace(source, frame=_left_to_do(source, compared, counts), count=left)
            manifest = dataclasses.replace(manifest, number=number)
            answer |= _added(spark, source, url, config, format, manifest, answer["known"])
        compared.unpersist()
    if not answer["added"]:
        log.info("ingest: nothing is new: all of %d images are there already", answer["known"])
    return {**answer, "fingerprint": schema.read_manifest(url).fingerprint}


def _added(
    spark, source: sources.Source, url: str, config: Ingest, format: str, manifest: schema.Manifest, known: int
) -> dict:
    """Writes the rows of `source` and makes `manifest`, once it is filled, the dataset's newest; what of the answer
    this changes.
    """
    former_rows = sum(manifest.rows.values())
    files, group_rows = passes.layout(spark, source, config, manifest, former_rows)
    log.info("ingest: about %d images to add to %s, in %d files a split", source.count, url, files)
    token, rejects = uuid.uuid4().hex[:8], f"{url}.rejected"
    staged_rejects = lake.staging(rejects)
    work = tasks.Work(config, manifest, frozenset(), snapshots.aside(url), staged_rejects, group_rows, token)
    try:
        lake.claim(staged_rejects, "rejects", tasks.rejects_schema().names)
        with passes.batches_that_fit(spark, source, config), progress.part("writing images", spark, source.count):
            written = passes.run(passes.shuffled(source.frame, files), work)
        counts = written.counts()
        rejected, known = counts.pop(tasks.REJECTED), known + written.rows(tasks.UNCHANGED)
        added = sum(counts.values())
        snapshots.remove_unfinished(url, token, written.names())
        by_class = _counts_by_class(spark, url, written, counts, manifest) if added else {}
        fresh = add_rejects(spark, staged_rejects, rejects, format, token) if rejected else 0
        if added:
            with progress.part("putting in place", spark):
                manifest = _filled(spark, manifest, written, counts, fresh, url)
                snapshots.commit(url, manifest)
    except BaseException:
        snapshots.remove_uncommitted(url, token, manifest.number)
        raise
    finally:
        lake.remove(staged_rejects)
    answer = {"known": known, "added": added, "rejected": rejected, "classes": by_class}
    if not added:
        return answer
    log.info("ingest: images added by split: %s", passes.in_words(counts))
    if by_class:
        log.info("ingest: images added by class: %s", passes.in_words(dict(list(by_class.items())[:30])))
    passes.tell_of_flat(written.flat())
    return {
        **answer,
        "snapshot": manifest.number,
        "rows": former_rows + added,
        "splits": manifest.rows,
    }


def _grown(former: schema.Manifest, source: sources.Source, config: Ingest) -> schema.Manifest:
    """The manifest of the next snapshot before anything is written; `UserError` where the source's images would not
    become such as the dataset has.
    """
    ours = {name: former.ingest.get(name, getattr(Ingest(), name)) for name in _COMMON}
    changed = differences(ours, {name: getattr(config, name) for name in _COMMON}, where="ingest.")
    encoding = schema.choose_encoding(config.encoding, former.shape)
    if encoding != former.encoding and not changed:
        changed = [f"ingest.encoding: was {former.encoding!r}, is {encoding!r}"]
    columns = ("labels", "captions", "embeddings")
    has = (bool(former.classes), former.captioned, former.embedding)
    found = (bool(source.classes), source.captioned, source.embedding)
    changed += [
        f"{name}: the dataset has {a or 'none'}, the source {b or 'none'}"
        for name, a, b in zip(columns, has, found, strict=True)
        if a != b
    ]
    if changed:
        raise UserError(
            "ingest.mode = 'append': what is added must become such images as are there; restore these, or use"
            " ingest.mode = 'replace' or another dataset: " + "; ".join(changed)
        )
    new = tuple(name for name in source.classes if name not in former.classes)
    if new and config.new_classes == "refuse":
        raise UserError(
            f"ingest.mode = 'append': the source has {len(new)} classes that the dataset has not:"
            f" {', '.join(map(repr, new[:10]))}. ingest.new_classes = 'add' puts them behind the other"
            f" {len(former.classes)}, to which models of this dataset are bound; or leave these images out, or use"
            " another dataset"
        )
    return dataclasses.replace(
        former,
        classes=former.classes + new,
        ingest=dataclasses.asdict(config),
        parts=parts.names(config),
    )


def _compared(spark, source: sources.Source, former: schema.Manifest, url: str) -> tuple:
    """(the source's rows without their images, persisted: id, source_version, known_hash, and `state`, what is known of
    them; how many there are of each state).
    """
    stored = snapshots.known(spark, url)
    if former.parts == ("a", "b") and former.ingest["parts"] != "classes":
        stored = stored.withColumn("id", F.expr("substring(id, 3)")).dropDuplicates(["id"])  # of a/<id> and b/<id>
    stored = stored.select(
        F.col("id").alias("known_id"), F.col("source_version").alias("known_version"), F.col("source_hash")
    )
    rows = passes.versioned(source.frame).select("id", "source_version", "reason").persist(StorageLevel.DISK_ONLY)
    # Row groups whose ids are all before or behind these are not read: where ids count up, or begin with a date.
    first, last = rows.agg(F.min("id"), F.max("id")).first()
    stored = stored.where(F.col("known_id").between(first, last))
    if source.count <= _BROADCAST_ROWS:  # What is there is read, and neither sorted nor sent about.
        stored = stored.join(F.broadcast(rows.select("id")), F.col("known_id") == F.col("id"), "left_semi")
    has_changed = ~F.col("source_version").eqNullSafe(F.col("known_version"))
    state = (
        F.when(F.col("known_id").isNull() | F.col("reason").isNotNull(), _NEW)
        .when(F.col("known_version").isNull() & F.col("source_hash").isNull(), _UNTOLD)
        .when(F.col("source_version").isNotNull() & ~has_changed, _SAME)
        .when(F.col("source_hash").isNotNull(), _UNSURE)
        .otherwise(_CHANGED)
    )
    joined = rows.join(stored, rows["id"] == stored["known_id"], "left").withColumn("state", state)
    known_hash = F.when(F.col("state") == _UNSURE, F.col("source_hash"))
    compared = joined.select("id", "source_version", known_hash.alias("known_hash"), "state")
    compared = compared.persist(StorageLevel.DISK_ONLY)
    counts = {row["state"]: row["count"] for row in compared.groupBy("state").count().collect()}
    rows.unpersist()
    return compared, counts


def _left_to_do(source: sources.Source, compared, counts: dict[str, int]):
    """The rows of the source that are not there, or may be others; those that have changed are rejected."""
    rows = passes.versioned(source.frame)
    if counts.keys() == {_NEW}:
        return rows.withColumn("known_hash", F.lit(None).cast("binary"))
    wanted = compared.where(~F.col("state").isin(_SAME, _UNTOLD)).dropDuplicates(["id", "source_version"])
    wanted = wanted.select(
        F.col("id").alias("wanted_id"), F.col("source_version").alias("wanted_version"), "known_hash", "state"
    )
    is_small = sum(count for state, count in counts.items() if state not in (_SAME, _UNTOLD)) <= _BROADCAST_ROWS
    alike = (rows["id"] == wanted["wanted_id"]) & rows["source_version"].eqNullSafe(wanted["wanted_version"])
    rows = rows.join(F.broadcast(wanted) if is_small else wanted, alike)
    reason = F.coalesce("reason", F.when(F.col("state") == _CHANGED, tasks.CHANGED))
    return rows.withColumn("reason", reason).drop("wanted_id", "wanted_version", "state")


def _counts_by_class(spark, url: str, written: passes.Written, counts: dict, manifest: schema.Manifest) -> dict:
    folder = snapshots.aside(url)
    places = [lake.join(folder, name) for name in written.files()]
    frame = tables.read_files(spark, *places, basePath=folder)
    return {name: count for name, count in passes.counts_by_class(frame, counts, manifest.classes).items() if count}


def _filled(
    spark, manifest: schema.Manifest, written: passes.Written, counts: dict, rejects: int, url: str
) -> schema.Manifest:
    """The manifest with what was written, on top of what it had."""
    sums = written.sums(manifest.sums)
    fingerprint = passes.fingerprint(sums)
    if not manifest.sums:  # of a version that did not keep them
        sums, fingerprint = {}, passes.fingerprint({"former": manifest.fingerprint, **written.sums()})
    base = schema.read_base(url)
    return dataclasses.replace(
        manifest,
        rows={split: manifest.rows.get(split, 0) + counts[split] for split in schema.SPLITS},
        rejected=manifest.rejected + rejects,
        sums=sums,
        fingerprint=fingerprint,
        files={**snapshots.row_groups(url, manifest), **written.files()},
        seals={**manifest.seals, **written.seals()},
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        base=manifest.base or base.identity,
        made_by=snapshots.job_name(spark),
    )


def add_rejects(spark, staged: str, rejects: str, format: str, token: str) -> int:
    """Adds what was rejected to the table, but for what it says already; how many rows that are."""
    found = spark.read.parquet(staged)
    if format == "delta":
        if lake.exists(rejects):
            found = found.join(spark.read.format("delta").load(rejects), ["id", "reason"], "left_anti")
        if count := found.count():
            tables.write_delta(found, rejects, "append")
        return count
    if not lake.exists(rejects):
        lake.claim(rejects, "rejects", tasks.rejects_schema().names)
        lake.write_bytes(lake.join(rejects, lake.SUCCESS), b"")
    elif names := tables.files(rejects):
        found = found.join(tables.read_files(spark, *names), ["id", "reason"], "left_anti")
    if count := found.count():
        tables.add_file(found, rejects, f"part-{token}.parquet")
    return count
