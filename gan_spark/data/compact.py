"""Compaction: the many small files of a dataset that was added to become few large ones, as another snapshot of the
same rows.

Files are put together in Spark tasks, one row group after another. Former snapshots keep theirs, aside, until they are
expired.
"""

import collections
import dataclasses
import datetime
import logging
import math
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from .. import lake
from ..config import Ingest
from . import schema, snapshots, tasks

log = logging.getLogger(__name__)
_FILE_BYTES = 128 * 2**20


def compact(spark, url: str) -> dict:
    """Writes the small files of the dataset's newest snapshot anew as larger ones; {dataset, snapshot, files_before,
    files}.

    `UserError` where another job has made a snapshot meanwhile.
    """
    lake.check_replaceable(url, "dataset")
    snapshots.tidy(url)
    number = schema.next_number(url)
    manifest = schema.read_manifest(url)
    places = snapshots.files(url)
    answer = {"dataset": url, "snapshot": manifest.number, "files_before": len(places), "files": len(places)}
    token = uuid.uuid4().hex[:8]
    merges = list(_merges(places, token))
    if not merges:
        return answer
    folder, group_rows, rows = snapshots.aside(url), _group_rows(manifest), tasks.rows_schema(manifest)
    try:
        written = dict(
            spark.sparkContext.parallelize(merges, len(merges))
            .map(lambda merge: _merged(merge[0], merge[1], folder, group_rows, rows, manifest))
            .collect()
        )
        merged = {name for _, sources in merges for name in sources}
        files = {name: groups for name, groups in snapshots.row_groups(url, manifest).items() if name not in merged}
        files |= {name: groups for name, (groups, _) in written.items()}
        seals = {name: seal for name, seal in manifest.seals.items() if name in files}
        seals |= {name: seal for name, (_, seal) in written.items()}
        base = schema.read_base(url)
        snapshots.commit(
            url,
            dataclasses.replace(
                manifest,
                number=number,
                files=files,
                seals=seals,
                base=manifest.base or base.identity,
                created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                made_by=snapshots.job_name(spark),
            ),
        )
    except BaseException:
        snapshots.remove_uncommitted(url, token, number)
        raise
    return {**answer, "snapshot": number, "files": len(files)}


def _group_rows(manifest: schema.Manifest) -> int:
    """Rows of a row group: as many as an ingest of all of it would choose."""
    workers = manifest.ingest.get("planned_workers", Ingest().planned_workers)
    row_bytes = math.prod(manifest.shape) + 4 * math.prod(manifest.embedding or (0,))
    smallest = manifest.rows["train"] // max(1, len(manifest.parts))
    return max(1, min(tasks.ROW_GROUP_BYTES // row_bytes, smallest // (8 * workers)))


def _merges(places: dict[str, str], token: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(path of a file to write, URLs of the files that it is made of by their paths), of files of one folder each."""
    small = collections.defaultdict(list)
    for name, place in places.items():
        fs, path = lake.filesystem(place)
        size = fs.size(path) or 0
        if size < _FILE_BYTES // 2:
            small[name.rsplit("/", 1)[0]].append((name, place, size))
    count = 0
    for folder, files in small.items():
        bundle, total = {}, 0
        for name, place, size in [*files, ("", "", _FILE_BYTES)]:
            if total + size > _FILE_BYTES:
                if len(bundle) > 1:
                    suffix = next(iter(bundle)).rsplit("/", 1)[1].rsplit("-", 1)[1]  # train.parquet
                    yield f"{folder}/part-{count:05d}-0-{token}-{suffix}", bundle
                    count += 1
                bundle, total = {}, 0
            bundle[name] = place
            total += size


def _merged(
    name: str, sources: dict[str, str], folder: str, group_rows: int, rows: pa.Schema, manifest: schema.Manifest
) -> tuple[str, tuple[int, str]]:
    """In a task: writes the file, of all rows of its sources in their order; (its path, (how many row groups, its
    seal)).
    """
    with tasks.ParquetFile(lake.join(folder, name), rows, group_rows) as file:
        count = 0
        for url in sources.values():
            fs, path = lake.filesystem(url)
            with fs.open(path, "rb") as stream:
                source = pq.ParquetFile(stream)
                schema.check_seal(manifest, url, mark=(source.metadata.metadata or {}).get(schema.MARK, b""))
                count += source.metadata.num_rows
                for group in range(source.num_row_groups):
                    table = source.read_row_group(group)
                    for column in set(rows.names) - set(table.column_names):  # of a former version
                        table = table.append_column(column, pa.nulls(table.num_rows, pa.binary()))
                    file.add(table.select(rows.names).cast(rows))
    if file.rows != count:
        raise RuntimeError(f"{name}: {file.rows} rows of {count} were written: nothing was changed")
    return name, (file.groups, file.seal)
