"""Ingest: a Petastorm dataset of a source's images, and a table of what was rejected and why.

Rows in = rows written + rows in `<dataset>.rejected`. A whole ingest is staged first and put in place by renames, so a
job that fails leaves the old dataset as it was; one that adds to what is there is in `append`.
"""

import dataclasses
import datetime
import functools
import logging
import uuid

from pyspark.sql import functions as F

from .. import lake, progress
from ..config import Config, Ingest, UserError, check_sections
from ..lake import tables
from . import append, parts, passes, petastorm_view, schema, snapshots, sources, tasks

log = logging.getLogger(__name__)


def ingest(spark, config: Config) -> dict:
    """Reads the config's source into `<lake>/datasets/<dataset>`, replacing what was there or adding to it
    (`ingest.mode`).
    """
    check_sections(config, "ingest")
    url = lake.dataset_url(config)
    check_replaceable(spark, url, config.tables)
    lake.tidy(f"{url}.rejected", url)  # Before the source, which may not open.
    with progress.part("listing", spark):
        source = sources.open_source(spark, config.ingest)
    return write(spark, source, url, config.ingest, config.tables)


def write(
    spark, source: sources.Source, url: str, config: Ingest, format: str = "parquet", is_first: bool = False
) -> dict:
    """Decodes, splits, shuffles and writes `source`, as a dataset of its own or as more of the one that is there;
    returns the counts.

    Raises `UserError` where no image at all can be used for training, unless it `is_first` of others to come: then
    there is no dataset yet where all are rejected.
    """
    check_replaceable(spark, url, format)
    lake.tidy(f"{url}.rejected", url)
    if config.mode == "append" and lake.exists(lake.join(url, schema.MANIFEST)):
        return append.append(spark, source, url, config, format)
    return _replace(spark, source, url, config, format, is_first)


class _NoImages(Exception):
    """All rows of a source are rejected."""


def _replace(spark, source: sources.Source, url: str, config: Ingest, format: str, is_first: bool) -> dict:
    from petastorm.etl.dataset_metadata import materialize_dataset

    rejects = f"{url}.rejected"
    manifest = _manifest_to_fill(spark, source, config)
    config = passes.without_stated_splits(source, config)
    files, group_rows = passes.layout(spark, source, config, manifest)
    log.info("ingest: about %d images to %s in %d files a split", source.count, url, files)

    staged, staged_rejects = lake.staging(url), lake.staging(rejects)
    rows = passes.shuffled(passes.versioned(source.frame), files).withColumn("known_hash", F.lit(None).cast("binary"))
    work = tasks.Work(config, manifest, _kept(spark, source, config), staged, staged_rejects, group_rows)
    is_known = petastorm_view.filesystem(staged) is None
    factory = None if is_known else functools.partial(petastorm_view.filesystem, staged)
    try:
        lake.claim(staged, "dataset")
        lake.claim(staged_rejects, "rejects", tasks.rejects_schema().names)
        with (
            passes.batches_that_fit(spark, source, config),
            materialize_dataset(spark, lake.mounted(staged), schema.unischema(manifest), filesystem_factory=factory),
        ):
            with progress.part("writing images", spark, source.count):
                written = passes.run(rows, work)
            counts = written.counts()
            _settle(staged, staged_rejects, written)
            _check_images(spark, counts, staged_rejects, is_first)
        rejected = counts.pop(tasks.REJECTED)
        with progress.part("counting", spark):
            by_class = passes.counts_by_class(spark.read.parquet(staged), counts, manifest.classes)
        manifest = _filled(manifest, written, counts, rejected, url)
        schema.write_manifest(staged, manifest)
        lake.write_bytes(lake.join(staged_rejects, lake.SUCCESS), b"")
        if is_first:
            _keep_former(spark, staged_rejects, rejects)
        with progress.part("putting in place", spark):
            check_replaceable(spark, url, format)  # Writing took a while.
            _put_in_place(spark, staged, url, staged_rejects, rejects, format)
    except _NoImages:
        rejected = append.add_rejects(spark, staged_rejects, rejects, format, uuid.uuid4().hex[:8])
        return {"dataset": url, "snapshot": 0, "rows": 0, "rejected": rejected, "rejects": rejects}
    finally:
        lake.remove(staged)
        lake.remove(staged_rejects)
    _tell(counts, by_class, written.flat())
    return {
        "dataset": url,
        "snapshot": manifest.number,
        "rows": sum(counts.values()),
        "rejected": rejected,
        "splits": counts,
        "classes": by_class,
        "rejects": rejects,
        "fingerprint": manifest.fingerprint,
    }


def _kept(spark, source: sources.Source, config: Ingest) -> frozenset:
    """What `parts.chosen` chooses, of a dataset of the parts that labels make."""
    if config.parts != "labels":
        return frozenset()
    with passes.batches_that_fit(spark, source, config), progress.part("choosing parts", spark, source.count):
        return parts.chosen(source.frame, config, tasks.decode)


def _check_images(spark, counts: dict[str, int], staged_rejects: str, is_first: bool) -> None:
    """Raises `UserError` where there are no images to train on; of the first of others `_NoImages` where there are no
    images.
    """
    if is_first and counts[tasks.REJECTED] == sum(counts.values()):
        raise _NoImages
    if not counts["train"] and not is_first:
        raise UserError(
            f"no image to train on among {sum(counts.values())}: "
            + (passes.reasons(spark, staged_rejects) or f"the splits leave none: {passes.in_words(counts)}")
        )


def _keep_former(spark, staged_rejects: str, rejects: str) -> None:
    """Puts what was rejected before there was a dataset beside what is about to replace it."""
    if lake.exists(rejects):
        former = tables.load(spark, rejects)
        former = former.join(spark.read.parquet(staged_rejects), ["id", "reason"], "left_anti")
        tables.add_file(former.select(tasks.rejects_schema().names), staged_rejects, "part-former.parquet")


def check_replaceable(spark, url: str, format: str) -> None:
    """`UserError` where somebody else's folder is where the dataset or its rejects go."""
    lake.check_replaceable(url, "dataset")
    tables.check(spark, f"{url}.rejected", format, "rejects", tasks.rejects_schema().names)


def _number(url: str) -> int:
    """The number of the snapshot that a whole ingest makes: they go on counting."""
    try:
        return schema.next_number(url)
    except UserError:  # There is none, or none that can be understood.
        return 1


def _manifest_to_fill(spark, source: sources.Source, config: Ingest) -> schema.Manifest:
    """The manifest without what is known once the rows are written: counts, files and fingerprint."""
    shape = (config.height, config.width, config.channels)
    return schema.Manifest(
        *shape,
        encoding=schema.choose_encoding(config.encoding, shape),
        classes=source.classes,
        rows={},
        rejected=0,
        fingerprint="",
        ingest=dataclasses.asdict(config),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        parts=parts.names(config),
        captioned=source.captioned,
        embedding=source.embedding,
        made_by=snapshots.job_name(spark),
    )


def _filled(
    manifest: schema.Manifest, written: passes.Written, counts: dict[str, int], rejected: int, url: str
) -> schema.Manifest:
    """The manifest with what was written."""
    return dataclasses.replace(
        manifest,
        rows=counts,
        rejected=rejected,
        fingerprint=passes.fingerprint(written.sums()),
        sums=written.sums(),
        files=written.files(),
        seals=written.seals(),
        number=_number(url),
    )


def _put_in_place(spark, staged: str, url: str, staged_rejects: str, rejects: str, format: str) -> None:
    if format == "delta":
        tables.write_delta(spark.read.parquet(staged_rejects), rejects, "overwrite")
        lake.replace(staged, url)
    else:
        lake.replace_all({staged_rejects: rejects, staged: url})


def _settle(staged: str, staged_rejects: str, written: passes.Written) -> None:
    """Removes the files of tasks that failed, and sees to it that the table of rejects has a file."""
    for folder in (staged, staged_rejects):
        fs, path = lake.filesystem(folder)
        for name in fs.find(path):
            if name.rsplit("/", 1)[1] not in {*written.names(), lake.OWNER}:
                fs.rm_file(name)
    if not written.rows(tasks.REJECTED):
        with tasks.ParquetFile(lake.join(staged_rejects, "part-00000.parquet"), tasks.rejects_schema(), 1) as file:
            file.flush()


def _tell(counts: dict[str, int], by_class: dict[str, int], flat: int) -> None:
    """Logs what was written, and what of it a user may not have meant."""
    log.info("ingest: images by split: %s", passes.in_words(counts))
    if by_class:
        log.info("ingest: images by class: %s", passes.in_words(dict(list(by_class.items())[:30])))
    if empty := [name for name, count in by_class.items() if not count]:
        log.warning("ingest: %d classes have no image: %s", len(empty), ", ".join(empty[:10]))
    names = list(by_class)
    if names[:1] == ["1"] and sources.are_numbers(names):
        log.warning("ingest: labels begin at 1: class '1' is label 0 of the dataset")
    elif empty[:1] == names[:1] != []:
        log.warning("ingest: no image has label 0, %r: do the source's labels begin at 1?", names[0])
    passes.tell_of_flat(flat)
