"""A stream of images through a registered model: Structured Streaming, each micro-batch by the version that is promoted
when it begins.

A classifier names classes, a model that translates or enlarges makes images of images; to a model that takes seeds,
labels or captions come files of JSON, as `POST /generate` of the service takes them.

Exactly once: Spark's checkpoint says which files a micro-batch has. Its rows are one file of the table, named after the
stream and the micro-batch, so that one that is done again, after a job that died, finds what is there already.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf
from pyspark.sql import functions as F

from .. import lake, models, process
from ..config import Config, Ingest, UserError, check_name
from ..data import batches, images, stream
from ..data.sources import arriving, folder
from ..lake import tables
from ..runs import loading, registry
from ..runs.store import Run
from . import asking, functions
from .limits import Limits
from .refusal import Refused

log = logging.getLogger(__name__)
CLASSES, PICTURES, REJECTS = "classes of a stream's images", "images of a stream", "rejects of a stream"
_OF_VERSION = "version int, run string, step long, reason string"
_COLUMNS = {
    CLASSES: f"id string, label string, probability double, {_OF_VERSION}",
    PICTURES: f"id string, seed long, image binary, height int, width int, channels int, {_OF_VERSION}",
}


@dataclasses.dataclass
class _Done:
    """What a job's micro-batches came to."""

    batches: int = 0
    rows: int = 0
    rejected: int = 0
    versions: dict[str, int] = dataclasses.field(default_factory=dict)  # rows by version


@dataclasses.dataclass(frozen=True)
class _Version:
    """A version as the driver has read it, for tasks."""

    number: int
    name: str  # what stands for its run in the table
    checkpoint: loading.Checkpoint
    kind: str


def score(spark, config: Config) -> dict:
    """Appends to `<lake>/scored/<model>` what the promoted version of `score.model` answers to what arrives at
    `ingest.path`: all that is there (`stream.trigger` is "availableNow"), or for ever, every so often. What cannot be
    used is in `<lake>/scored/<model>.rejected`, with the reason.

    `UserError` where no version is promoted, or where the table holds what another kind of model gave.
    """
    name = check_name("score.model", config.score.model)
    if config.tables != "parquet":
        raise UserError("tables = 'delta': the table of a scored stream is Parquet; use tables = 'parquet'")
    if config.ingest.source == "kafka":
        raise UserError("ingest.source = 'kafka': a scored stream is of a folder's files or a Delta table's rows")
    url = table_url(config)
    follower = _Follower(spark, config.lake, name, url, config.generate.part)
    version = follower.version()  # Before anything is begun, whether there is one.
    for place, kind in ((url, version.kind), (f"{url}.rejected", REJECTS)):
        lake.tidy(place)
        lake.check_replaceable(place, kind)
    done = _Done()
    rows = arriving.stream(spark, config.ingest, config.stream)
    writer = rows.writeStream.foreachBatch(
        lambda batch, number: _score(spark, config, url, follower, batch, number, done)
    )
    writer = writer.queryName(f"{name} of {config.ingest.path}").option("checkpointLocation", checkpoint(config))
    query = stream.triggered(writer, config.stream.trigger).start()
    try:
        query.awaitTermination()
    finally:
        query.stop()
    counts = dataclasses.asdict(done)
    return {"table": url, **counts, "rejects": f"{url}.rejected", "checkpoint": checkpoint(config)}


def table_url(config: Config) -> str:
    return lake.join(lake.to_url(config.lake), "scored", check_name("score.model", config.score.model))


def checkpoint(config: Config) -> str:
    """URL of the folder in which Spark keeps what the stream has read."""
    return f"{table_url(config)}.stream"


class _Follower:
    """The promoted version of a registered model, read anew where another is promoted."""

    def __init__(self, spark, root: str, name: str, table: str, part: str):
        self._spark, self._root, self._name, self._table, self._part = spark, root, name, table, part
        self._version: _Version | None = None

    def version(self) -> _Version:
        """The promoted version. One that cannot be read is told, and the one before stays where there is one.

        `UserError` where there is none.
        """
        entry = registry.current(self._root, self._name)
        before = self._version
        if entry is None:
            raise UserError(
                f"model {self._name!r}: no version of it is promoted in {self._root} (registered:"
                f" {', '.join(registry.models(self._root)) or 'none'}); promote one with `gan-spark promote`"
            )
        if before is not None and before.number == entry["version"]:
            return before
        try:
            version = self._read(entry)
        except UserError as error:
            if before is None:
                raise
            log.error("score: version %d cannot be used; version %d stays: %s", entry["version"], before.number, error)
            return before
        if before is not None:
            if version.kind != before.kind:
                raise UserError(
                    f"model {self._name!r}: version {version.number} gives {version.kind}, and table {self._table}"
                    f" holds {before.kind}; stream to another model's table"
                )
            before.checkpoint.files.destroy()
            log.info("score: version %d takes over from version %d", version.number, before.number)
        self._version = version
        return version

    def _read(self, entry: dict) -> _Version:
        run = Run.named(self._root, entry["run"])
        config = functions.model_config(run.url, run.record())
        model_class = models.find(config.name)
        kind = CLASSES if hasattr(model_class, "classify") else PICTURES
        domains = [name for name in model_class.takes(config) if name in ("a", "b")] if kind == PICTURES else []
        if domains and self._part not in domains:
            raise UserError(
                f"generate.part = {self._part!r}: model {config.name!r} of run {entry['run']!r} translates; expected"
                f" the domain of the images that arrive, one of {', '.join(domains)}"
            )
        checkpoint = loading.read_checkpoint(self._spark, run, entry["step"])
        return _Version(entry["version"], lake.reference(self._root, self._table, run.url), checkpoint, kind)


def _score(spark, config: Config, url: str, follower: _Follower, batch, number: int, done: _Done) -> None:
    """One micro-batch."""
    began = time.monotonic()
    name = f"part-{_stream_id(config)}-{number:08d}.parquet"
    if lake.exists(lake.join(url, name)):
        log.info("score: batch %d is in the table already, as %s", number, name)
        return
    version = follower.version()
    with _persisted(batch) as batch, batches.at_most(spark, batches.FILES):
        source = arriving.unlabelled(batch, config.ingest)
        answer = functools.partial(_answered, version, config.ingest, config.generate.part)
        answers = source.frame.select("id", "url", "content", "reason").mapInPandas(answer, _COLUMNS[version.kind])
        with _persisted(answers) as answers:
            counts = dict(answers.groupBy(F.col("reason").isNull()).count().collect())
            _write(answers, url, version.kind, name, has_rejects=False in counts)
    done.batches += 1
    done.rows += counts.get(True, 0)
    done.rejected += counts.get(False, 0)
    done.versions[str(version.number)] = done.versions.get(str(version.number), 0) + counts.get(True, 0)
    log.info(
        "score: batch %d: %d rows by version %d, %d files rejected, in %.1f s",
        *(number, counts.get(True, 0), version.number, counts.get(False, 0), time.monotonic() - began),
    )


def _write(answers, url: str, kind: str, name: str, has_rejects: bool) -> None:
    """The rejects, then the rows, a file each. That of the rows is the micro-batch's commit; rejects that are there
    already are of an attempt that did not come to it.
    """
    rejects, rows = answers.where("reason is not null"), answers.where("reason is null")
    for place, of, frame in (
        (f"{url}.rejected", REJECTS, rejects.select("id", "reason")),
        (url, kind, rows.drop("reason")),
    ):
        if not lake.exists(lake.join(place, lake.OWNER)):
            lake.claim(place, of, frame.columns)
        lake.remove(lake.join(place, name))
        if place == url or has_rejects:
            tables.add_file(frame.repartition(1), place, name)


@contextlib.contextmanager
def _persisted(frame) -> Iterator:
    frame = frame.persist()
    try:
        yield frame
    finally:
        frame.unpersist()


def _stream_id(config: Config) -> str:
    """What tells this stream's micro-batches from those of one before it, whose checkpoint was removed."""
    id = lake.read_json(lake.join(checkpoint(config), "metadata"))["id"]
    return re.sub(r"[^0-9a-f]", "", id)[:16]


def _answered(version: _Version, config: Ingest, part: str, frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """In a task: rows of `_COLUMNS` of files."""
    answers, name, size, function = _loaded(version.checkpoint, part)
    of_version = {"version": version.number, "run": version.name, "step": version.checkpoint.step}
    prepare = functools.partial(_rows, answers, config)
    for files in _up_to((row for frame in frames for row in frame.itertuples()), prepare, size):
        rows = [{**row, "id": id} for id, of_file, _ in files for row in of_file]
        outputs = _computed(function, answers.calls()[name].columns, rows, size)
        give = _class if version.kind == CLASSES else _picture
        table = [{**give(answers, row, output), **of_version} for row, output in zip(rows, outputs, strict=True)]
        table += [{"id": id, "reason": reason, **of_version} for id, _, reason in files if reason is not None]
        yield _table(table, _COLUMNS[version.kind])


def _loaded(checkpoint: loading.Checkpoint, part: str) -> tuple[functions.Answers, str, int, Any]:
    """(answers, the call, rows at once, the function of so many), loaded once in a process."""

    def load():
        answers = functions.of_model(loading.carried_model(checkpoint), checkpoint.record)
        name = "classify" if answers.classifies else f"generate_{part}" if answers.parts else "generate"
        return answers, name, *functions.largest_exact(answers, name)

    return process.cached(("scoring", checkpoint.url, checkpoint.step, checkpoint.digest, part), load)


def _up_to(files: Iterator, prepare, size: int) -> Iterator[list[tuple]]:
    """Lists of (id, its rows, why it has none) with about `size` rows each."""
    waiting, rows = [], 0
    for file in files:
        waiting.append((file.id, *prepare(file)))
        rows += len(waiting[-1][1])
        if rows >= size or len(waiting) >= 1024:
            yield waiting
            waiting, rows = [], 0
    if waiting:
        yield waiting


def _rows(answers: functions.Answers, config: Ingest, file) -> tuple[list[dict], str | None]:
    """(Rows that a file asks for, None), or ([], why there are none)."""
    if file.reason is not None:
        return [], file.reason
    try:
        data = bytes(file.content) if file.content is not None else folder.read(file.url, config.max_file_mb)
        if not answers.classifies and "image" not in answers.columns():
            limits = Limits()
            return asking.generating(asking.parsed(data, _ASKED), answers, limits).rows(answers, limits), None
        pixels = images.decode(data, *answers.shape, answers.fit, config.max_megapixels, config.range)
        return [{"seed": _seed(file.id), "image": pixels}], None
    except (images.BadImage, Refused) as error:
        return [], str(error)


_ASKED = ("seeds", "first_seed", "images", "label", "caption", "embedding")


def _seed(id: str) -> int:
    """The seed of a file, of which a model that draws noise beside an image makes use."""
    return int.from_bytes(hashlib.sha256(id.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 2


def _computed(function, columns: tuple[str, ...], rows: list[dict], size: int) -> list[np.ndarray]:
    """The function's answer to each row, `size` rows at once, the last ones filled up."""
    kinds = {"seed": tf.int64, "label": tf.int32, "caption": tf.string, "embedding": tf.float32, "image": tf.uint8}
    outputs = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        filled = [*part, *[part[-1]] * (size - len(part))]
        values = {name: [row[name] for row in filled] for name in columns}
        tensors = {
            name: tf.constant(np.stack(of) if name in ("image", "embedding") else of, kinds[name])
            for name, of in values.items()
        }
        outputs += list(function(tensors).numpy()[: len(part)])
    return outputs


def _class(answers: functions.Answers, row: dict, probabilities: np.ndarray) -> dict:
    place = int(np.argmax(probabilities))
    return {"id": row["id"], "label": answers.classes[place], "probability": float(probabilities[place])}


def _picture(_, row: dict, unit: np.ndarray) -> dict:
    pixels = images.to_pixels(unit)
    height, width, channels = pixels.shape
    shape = {"height": height, "width": width, "channels": channels}
    return {"id": row["id"], "seed": row["seed"], "image": images.encode_png(pixels), **shape}


def _table(rows: list[dict], schema: str) -> pd.DataFrame:
    """Rows as a frame; what is not in them is null."""
    kinds = {"int": "Int32", "long": "Int64", "double": "Float64"}
    columns = dict(column.split() for column in schema.split(", "))
    return pd.DataFrame(
        {
            name: pd.array([row.get(name) for row in rows], kinds[kind])
            if kind in kinds
            else pd.Series([row.get(name) for row in rows], dtype=object)
            for name, kind in columns.items()
        }
    )
