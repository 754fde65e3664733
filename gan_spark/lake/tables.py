"""Tables in the lake: folders of Parquet files that are put in place whole, or Delta tables."""

import contextlib
import fnmatch
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import cast

from .. import lake
from ..config import UserError

_DELTA = (
    "Delta's jars are not in the session: start it with --packages io.delta:delta-core_2.12:2.4.0, as"
    " docs/object-stores.md says"
)


def read(spark, url: str):
    """The DataFrame of the table at `url`; `UserError` where there is none, or where it is not whole."""
    if not lake.exists(url):
        raise UserError(f"no generated table at {url}; make it with jobs/generate.py")
    if is_delta(url):
        _check_delta(spark, url)
        _check_commit(url)
        return spark.read.format("delta").load(url)
    if lake.is_object_store(url) and not lake.exists(lake.join(url, lake.SUCCESS)):
        raise UserError(
            f"table {url} is not whole (it has no {lake.SUCCESS}): a job is replacing it, or died over it; wait, or run"
            " that job again"
        )
    return spark.read.parquet(url)


def load(spark, url: str):
    """The DataFrame of a Parquet file or folder, or of the Delta table, which anybody may have written.

    `UserError` for a folder of a format in which files hold rows that were deleted, where it cannot be read as such.
    """
    if root := _root_of(url, "_delta_log"):
        if root != url:
            raise UserError(f"{url} lies in the Delta table {root}: name that, or its deleted rows come back")
        _check_delta(spark, url)
        _check_commit(url)
        return spark.read.format("delta").load(url)
    check_parquet(url)
    return read_parquet(spark, url)


def check_parquet(url: str) -> None:
    """`UserError` where the folder is of a format whose Parquet files hold rows that were deleted."""
    for marker, format in ((".hoodie", "Hudi"), ("metadata/*.metadata.json", "Iceberg")):
        if root := _root_of(url, marker):
            raise UserError(
                f"{url}: {root} is a table of {format}, whose deleted rows are still in its files; name it as it"
                " stands in a Spark catalog, or write its rows to a folder of their own"
            )


def read_parquet(spark, *urls: str):
    """The DataFrame of Parquet files and folders, by their names: Spark takes them for patterns."""
    return read_files(spark, *(re.sub(r"([\\{}\[\]*?])", r"\\\1", url) for url in urls))


def read_files(spark, *urls: str, schema: str = "", **options: str):
    """The DataFrame of many Parquet files, of which Spark is told the `schema`, or looks it up.

    Spark looks at more than 32 files in a job that has a task for each, of some 10 ms; here it has one for each core.
    """
    key = "spark.sql.sources.parallelPartitionDiscovery.parallelism"
    before = spark.conf.get(key)
    spark.conf.set(key, str(spark.sparkContext.defaultParallelism))
    try:
        reader = spark.read.options(**options)
        return (reader.schema(schema) if schema else reader).parquet(*urls)
    finally:
        spark.conf.set(key, before)


def _root_of(url: str, marker: str) -> str | None:
    """URL of the folder at `url` or around it that has a file or folder in it by the pattern `marker`."""
    fs, path = lake.filesystem(url)
    folder, _, pattern = marker.rpartition("/")
    while path.strip("/"):
        place = f"{path}/{folder}".rstrip("/")
        if fs.isdir(place) and fnmatch.filter(map(posixpath.basename, fs.ls(place, detail=False)), pattern):
            return url
        path, url = path.rpartition("/")[0], url.rpartition("/")[0]
    return None


def column_names(schema: str) -> list[str]:
    """Names of the columns of a schema as Spark reads it from text, "id string, label int"."""
    return [column.split()[0] for column in schema.split(", ")]


def is_in_delta(url: str) -> bool:
    return _root_of(url, "_delta_log") is not None


def is_delta(url: str) -> bool:
    return lake.exists(lake.join(url, "_delta_log"))


def check(spark, url: str, format: str, kind: str, columns: Sequence[str]) -> None:
    """`UserError` where a table of `format` with these columns cannot be written to `url`.

    `kind` is what the table holds; one of another kind, or of somebody else's, is not replaced.
    """
    if lake.exists(url) and is_delta(url) != (format == "delta"):
        raise UserError(
            f"table {url} is {'Delta' if is_delta(url) else 'Parquet'}, and the config says tables = {format!r}: name"
            " another table, or remove that one"
        )
    if format == "parquet":
        lake.check_replaceable(url, kind, columns)
        return
    lake.check_displaced(url, kind, columns)
    _check_delta(spark, url)
    if lake.exists(url):
        _check_commit(url)
    if lake.exists(url) and sorted(existing := spark.read.format("delta").load(url).columns) != sorted(columns):
        raise UserError(
            f"table {url} is there, and is not replaced: expected {kind} that gan_spark made, with the columns"
            f" {', '.join(columns)}; found a Delta table of {', '.join(existing)}"
        )


def _check_delta(spark, url: str) -> None:
    from py4j.protocol import Py4JJavaError

    try:
        spark._jvm.org.apache.spark.sql.execution.datasources.DataSource.lookupDataSource(
            "delta", spark._jsparkSession.sessionState().conf()
        )
    except Py4JJavaError as error:
        raise UserError(f"table {url}: {_DELTA}") from error


def _check_commit(url: str) -> None:
    """`UserError` where the newest commit of a Delta table is torn, as a machine leaves it that loses its power: Delta
    fails over half a line, and takes a commit that ends after any of its lines for a whole one.
    """
    fs, path = lake.filesystem(lake.join(url, "_delta_log"))
    names = [posixpath.basename(name) for name in fs.ls(path, detail=False)]
    newest = max((name for name in names if re.fullmatch(r"\d{20}\.json", name)), default="")
    if not newest:
        return
    data = cast(bytes, fs.cat_file(f"{path}/{newest}"))
    try:
        actions = [json.loads(line) for line in data.splitlines() if line.strip()]
        told = next((action["commitInfo"] for action in actions if "commitInfo" in action), {})
        files = [json.loads(action["add"].get("stats") or "{}") for action in actions if "add" in action]
        rows = sum(int(stats.get("numRecords", 0)) for stats in files)
        is_counted = told.get("operation") == "WRITE" and all("numRecords" in stats for stats in files)
        # Not its number of files: it counts those that had no rows, and does not add them.
        expected = int(told.get("operationMetrics", {}).get("numOutputRows", 0)) if is_counted else 0
        problem = "it is empty" if not actions else f"{rows} rows of {expected}" if rows < expected else ""
    except (ValueError, TypeError, AttributeError) as error:
        problem = str(error)
    if problem:
        raise UserError(
            f"table {url}: its newest commit, {newest}, is torn ({problem}): the job that wrote it died with its"
            f" machine. Move that file out of {url}/_delta_log, which leaves the version before, and run the job again"
        )


@contextlib.contextmanager
def replacing(frame, url: str, kind: str, former: Sequence[str] = ()) -> Iterator:
    """Writes `frame` as Parquet beside `url` and hands out what was written; puts it at `url` unless that raises.

    `UserError` where something else than a table of this `kind`, made here, is at `url`. `former` are the columns that
    a version gave it which did not say who made it, where they were others than the frame's.
    """
    lake.check_replaceable(url, kind, former or frame.columns)
    lake.tidy(url)
    staged = lake.staging(url)
    try:
        lake.claim(staged, kind, frame.columns)
        with lake.writing(url):
            frame.write.mode("append").parquet(staged)
        lake.write_bytes(lake.join(staged, lake.SUCCESS), b"")  # Not every committer leaves one.
        yield frame.sparkSession.read.parquet(staged)
        lake.check_replaceable(url, kind, former or frame.columns)  # Writing took a while.
        lake.replace(staged, url)
    finally:
        lake.remove(staged)


def files(url: str) -> list[str]:
    """URLs of the Parquet files of the table at `url`."""
    fs, path = lake.filesystem(url)
    names = map(posixpath.basename, fs.ls(path, detail=False) if fs.exists(path) else [])
    return sorted(lake.join(url, name) for name in names if re.fullmatch(r"part-.+\.parquet", name))


def add_file(frame, url: str, name: str) -> None:
    """Adds the rows of `frame` to the Parquet table at `url` as one file, which is whole once it is there."""
    staged = lake.staging(url)
    try:
        lake.claim(staged, "rows to add")
        with lake.writing(url):
            frame.coalesce(1).write.mode("append").parquet(staged)
        fs, path = lake.filesystem(files(staged)[0])
        fs.mv(path, lake.filesystem(lake.join(url, name))[1])
    finally:
        lake.remove(staged)


def write_delta(frame, url: str, mode: str) -> None:
    """Writes `frame` to the Delta table at `url` in one commit.

    `mode` is "append" or "overwrite"; former versions survive either.
    """
    with lake.writing(url):
        frame.write.format("delta").mode(mode).option("overwriteSchema", mode == "overwrite").save(url)
