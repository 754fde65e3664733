"""Readers of what is in the lake.

Each gives a `Source`: a DataFrame with one row an image *reference*, decoded later in
Spark tasks. A file in a folder stays a URL until then; rows of an archive carry their pixels.
What is already known to be unusable carries a `reason` instead. The driver lists names;
it never holds images (but for the 1,797 packaged digits of 64 bytes).
"""

import dataclasses
import functools
import gzip
import pickletools
import posixpath
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark import StorageLevel

from . import lake, shapes
from .config import Ingest, UserError
from .downloads import download

__all__ = ["Source", "download", "open_source"]

# `content` is encoded bytes, or raw pixels where height, width and channels are given.
ROW = "id string, url string, content binary, height int, width int, channels int, label string, split string, reason string, caption string, embedding array<float>"
_COLUMNS = [field.split()[0] for field in ROW.split(", ")]
_KINDS = {name: {"string": pa.string(), "binary": pa.binary(), "int": pa.int32(), "array<float>": pa.list_(pa.float32())}[kind] for name, kind in map(str.split, ROW.split(", "))}
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_IMAGE_NAME = re.compile(r"\.(jpe?g|png|gif|bmp|webp|tiff?|ppm|pgm)$", re.IGNORECASE)
_CHUNK = 1024
# What reading a gzip file raises where it is cut off, is no deflate stream or does not match its checksum.
_STREAM_ERRORS = (OSError, EOFError, zlib.error)


@dataclasses.dataclass(frozen=True)
class Source:
    frame: object  # pyspark DataFrame of ROW
    classes: tuple[str, ...]  # sorted names of the labels; empty without labels
    count: int
    captioned: bool = False
    embedding: tuple[int, ...] = ()  # (how many an image, size of each)


def open_source(spark, config: Ingest) -> Source:
    """The source that `config.source` names, looked at but not yet read."""
    if config.source not in ("digits", "shapes") and not config.path:
        raise UserError(f"ingest.path is empty: source {config.source!r} needs the folder, file or table to read")
    readers = {"digits": _digits, "idx": _idx, "folder": _folder, "cifar10": _cifar10, "table": _table, "shapes": _shapes}
    return readers[config.source](spark, config)


def _rows(spark, rows: list[dict]):
    return spark.createDataFrame(pd.DataFrame(rows, columns=_COLUMNS).astype(object).where(lambda frame: frame.notna(), None), ROW)


def _chunk(**columns) -> pa.RecordBatch:
    """A batch of source rows; columns that are not given are null."""
    nulls = [None] * len(columns["id"])
    return pa.RecordBatch.from_arrays([pa.array(columns.get(name, nulls), kind) for name, kind in _KINDS.items()], list(_KINDS))


# --- packaged digits -------------------------------------------------------------------


def _digits(spark, config: Ingest) -> Source:
    """The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships (Alpaydin and Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    rows = [
        {"id": f"digits/{i:04d}", "content": image.tobytes(), "height": 8, "width": 8, "channels": 1, "label": str(label)}
        for i, (image, label) in enumerate(zip(pixels, digits.target))
    ]
    return Source(_rows(spark, rows), tuple("0123456789"), len(rows))


# --- IDX: MNIST, Fashion-MNIST ---------------------------------------------------------


def _open_stream(url: str):
    fs, path = lake.filesystem(url)
    stream = fs.open(path, "rb")
    return gzip.GzipFile(fileobj=stream) if url.endswith(".gz") else stream


def _idx_header(url: str, dimensions: int) -> tuple[int, ...]:
    try:
        with _open_stream(url) as stream:
            header = stream.read(4 + 4 * dimensions)
    except _STREAM_ERRORS as error:
        raise UserError(f"{url}: cannot be read as an IDX file: {error}") from error
    if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{url}: not an IDX file of {dimensions}-dimensional unsigned bytes; it starts with {header[:4]!r}")
    return struct.unpack(f">{dimensions}I", header[4:])


def _idx(spark, config: Ingest) -> Source:
    """A folder of `<part>-images-idx3-ubyte[.gz]`, each with its `<part>-labels-idx1-ubyte[.gz]` or none of them.

    Where there is a part `t10k` or `test`, it is the test split, and only validation images are taken from the others.
    """
    root = lake.to_url(config.path)
    fs, path = lake.filesystem(root)
    if not fs.isdir(path):
        raise UserError(f"ingest.path = {config.path!r}: expected a folder of IDX files")
    files = sorted(posixpath.basename(name) for name in fs.ls(path, detail=False))
    has_test = any(re.match(r"(t10k|test)-images", name) for name in files)
    parts, labelled = [], set()
    for name in files:
        match = re.fullmatch(r"(.+)-images[-.]idx3-ubyte(\.gz)?", name)
        if not match:
            continue
        images = lake.join(root, name)
        count, height, width = _idx_header(images, 3)
        label_name = next((n for n in files if re.fullmatch(re.escape(match[1]) + r"-labels[-.]idx1-ubyte(\.gz)?", n)), None)
        labelled.add(label_name is not None)
        if label_name:
            (label_count,) = _idx_header(lake.join(root, label_name), 1)
            if label_count != count:
                raise UserError(f"{images} declares {count} images, {label_name} declares {label_count} labels: expected as many")
        split = "test" if match[1] in ("t10k", "test") else "train" if has_test else None
        step = max(_CHUNK, -(-count // spark.sparkContext.defaultParallelism))
        for start in range(0, count, step):
            labels = lake.join(root, label_name) if label_name else None
            parts.append((match[1], images, labels, split, start, min(start + step, count), height, width))
    if not parts:
        raise UserError(f"ingest.path = {config.path!r}: no file named <part>-images-idx3-ubyte[.gz] in it (found: {', '.join(files[:5]) or 'nothing'})")
    if len(labelled) > 1:
        raise UserError(f"ingest.path = {config.path!r}: some IDX image files have labels and some have none; expected all or none")
    frame = spark.createDataFrame(parts, "part string, images string, labels string, split string, start int, stop int, height int, width int")
    names = config.classes or tuple("0123456789")
    frame = frame.repartitionByRange(len(parts), "part", "start").mapInArrow(functools.partial(_read_idx, names), ROW)
    return Source(frame, names if labelled == {True} else (), sum(part[5] - part[4] for part in parts))


def _read_idx(names: tuple[str, ...], ranges: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for frame in ranges:
        for part in frame.to_pandas().itertuples():
            size = part.height * part.width
            labels = _read_at(part.labels, 8, part.start, part.stop, 1) if part.labels else None
            for start, block in _blocks(part.images, 16, part.start, part.stop, size):
                stop = min(start + _CHUNK, part.stop)
                content, reason, label = [], [], []
                for i in range(start, stop):
                    pixels = block[(i - start) * size : (i - start + 1) * size]
                    digit = labels[i - part.start] if labels and i - part.start < len(labels) else None
                    problem = None
                    if len(pixels) < size:
                        problem = f"truncated: {posixpath.basename(part.images)} ends before this image"
                    elif labels is not None and digit is None:
                        problem = f"truncated: {posixpath.basename(part.labels)} ends before this label"
                    elif digit is not None and digit >= len(names):
                        problem = f"label {digit} is not among the {len(names)} classes"
                    content.append(None if problem else pixels)
                    reason.append(problem)
                    label.append(None if problem or labels is None else names[digit])
                many = stop - start
                yield _chunk(
                    id=[f"{part.part}/{i:06d}" for i in range(start, stop)],
                    content=content, height=[part.height] * many, width=[part.width] * many, channels=[1] * many,
                    label=label, split=[part.split] * many, reason=reason,
                )  # fmt: skip


def _read_at(url: str, header: int, start: int, stop: int, size: int) -> bytes:
    return b"".join(block for _, block in _blocks(url, header, start, stop, size))


def _blocks(url: str, header: int, start: int, stop: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(index of its first record, bytes) in blocks of `_CHUNK` records; short or empty once the file has ended."""
    ended = False
    with _open_stream(url) as stream:
        try:
            stream.seek(header + start * size)
        except _STREAM_ERRORS:
            ended = True
        for first in range(start, stop, _CHUNK):
            want, block = (min(first + _CHUNK, stop) - first) * size, b""
            while len(block) < want and not ended:
                try:
                    more = stream.read(want - len(block))
                    if len(block) + len(more) == want and first + _CHUNK >= stop:
                        stream.read(1)  # gzip checks its sum once its end is reached
                except _STREAM_ERRORS:
                    more, block = b"", b""
                ended = not more
                block += more
            yield first, block


# --- folders of image files ------------------------------------------------------------


def _folder(spark, config: Ingest) -> Source:
    """Files in one folder a class, or all flat. Every file counts, whatever its name; tasks list them and read them."""
    root = lake.to_url(config.path)
    fs, base = lake.filesystem(root)
    if not fs.isdir(base):
        raise UserError(f"ingest.path = {config.path!r}: expected a folder of images")
    context = spark.sparkContext
    folders = context.parallelize([root], 1).flatMap(_subfolders).collect()
    classes = tuple(sorted(name for name in folders if not name.startswith(".")))
    max_bytes = config.max_file_mb * 2**20
    listing = context.parallelize([None, *folders], len(folders) + 1).mapPartitions(functools.partial(_list, root, max_bytes, bool(classes)))
    frame = listing.toDF("id string, url string, label string, reason string").persist(StorageLevel.DISK_ONLY)
    count = frame.count()
    if not count:
        raise UserError(f"ingest.path = {config.path!r}: the folder is empty")
    return Source(_padded(frame), classes, count)


def _subfolders(root: str) -> Iterator[str]:
    """Names of the folders that hold a file at any depth, or that cannot be listed."""
    fs, base = lake.filesystem(root)
    for entry in fs.ls(base, detail=True):
        name, errors = posixpath.basename(entry["name"].rstrip("/")), []
        if entry["type"] == "directory" and not _IMAGE_NAME.search(name):
            if any(files for _, _, files in fs.walk(entry["name"], on_error=errors.append)) or errors:
                yield name


def _list(root: str, max_bytes: int, by_class: bool, classes: Iterator[str | None]) -> Iterator[tuple]:
    """(id, url, label, reason) of every file of each class; of the files beside the class folders for None."""
    fs, base = lake.filesystem(root)
    base = base.rstrip("/") + "/"
    for label in classes:
        errors = []
        found = fs.ls(base, detail=True) if label is None else fs.find(base + label, withdirs=True, detail=True, on_error=errors.append).values()
        for error in errors:
            yield str(error.filename).rstrip("/").removeprefix(base), None, label, f"a folder that cannot be listed: {error.strerror}"
        for entry in found:
            name = entry["name"].rstrip("/").removeprefix(base)
            reason = None
            if entry["type"] == "directory":
                if not _IMAGE_NAME.search(name):
                    continue
                reason = "a folder, not a file"
            elif entry["type"] != "file" and not fs.isfile(entry["name"]):  # a link to a file is one
                reason = "not a file"
            elif label is not None and label.startswith("."):
                reason = "inside a hidden folder"
            elif by_class and label is None:
                reason = "not inside a class folder, as the other files are"
            elif (entry["size"] or 0) > max_bytes:
                reason = f"{entry['size']} bytes, over the limit of {max_bytes >> 20} MB"
            yield name, fs.unstrip_protocol(entry["name"]), label, reason


def _padded(frame):
    """`frame` with ROW's other columns, null."""
    from pyspark.sql import functions as F

    kinds = dict(field.split() for field in ROW.split(", "))
    return frame.select([F.col(name) if name in frame.columns else F.lit(None).cast(kinds[name]).alias(name) for name in _COLUMNS])


# --- CIFAR-10's own archives -----------------------------------------------------------


def _cifar10(spark, config: Ingest) -> Source:
    """CIFAR-10 (Krizhevsky, 2009) in its binary or Python version: the .tar.gz, or the folder inside it.

    The Python version is a pickle; its bytes are taken out token by token and nothing is unpickled.
    """
    root = lake.to_url(config.path)
    fs, path = lake.filesystem(root)
    if fs.isdir(path):
        members = [(lake.join(root, posixpath.basename(name)), None, posixpath.basename(name)) for name in fs.ls(path, detail=False)]
    elif fs.exists(path):
        try:
            with fs.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
                members = [(root, member.name, posixpath.basename(member.name)) for member in archive if member.isfile()]
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"ingest.path = {config.path!r}: not a whole .tar.gz: {error}") from error
    else:
        raise UserError(f"ingest.path = {config.path!r}: nothing there; expected CIFAR-10's .tar.gz or its folder")
    batches = [member for member in members if re.fullmatch(r"(data_batch_\d|test_batch)(\.bin)?", member[2])]
    if not batches:
        raise UserError(f"ingest.path = {config.path!r}: no data_batch_N or test_batch in it")
    has_test = any(name.startswith("test") for _, _, name in batches)
    frame = spark.createDataFrame(batches, "url string, member string, name string").repartition(len(batches), "name")
    return Source(frame.mapInArrow(functools.partial(_read_cifar10, has_test), ROW), CIFAR10, 10_000 * len(batches))


def _read_cifar10(has_test: bool, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for frame in batches:
        for batch in frame.to_pandas().itertuples():
            data = _member_bytes(batch.url, batch.member)
            labels, pixels, problem = cifar10_binary(data) if batch.name.endswith(".bin") else cifar10_pickle(data)
            if problem:
                yield _chunk(id=[batch.name], reason=[problem])
            for start in range(0, len(labels), _CHUNK):
                many = len(labels[start : start + _CHUNK])
                bad = [None if label < 10 else f"label {label} is not among the 10 classes" for label in labels[start : start + many]]
                yield _chunk(
                    id=[f"{batch.name}/{i:05d}" for i in range(start, start + many)],
                    content=[image.transpose(1, 2, 0).tobytes() for image in pixels[start : start + many]],
                    height=[32] * many, width=[32] * many, channels=[3] * many,
                    label=[None if reason else CIFAR10[label] for label, reason in zip(labels[start : start + many], bad)],
                    split=["test" if batch.name.startswith("test") else "train" if has_test else None] * many, reason=bad,
                )  # fmt: skip


def _member_bytes(url: str, member: str | None) -> bytes:
    if member is None:
        return lake.read_bytes(url)
    fs, path = lake.filesystem(url)
    with fs.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
        for entry in archive:
            if entry.name == member:
                return archive.extractfile(entry).read()
    raise FileNotFoundError(f"{member} in {url}")


def cifar10_binary(data: bytes) -> tuple[list[int], np.ndarray, str | None]:
    """Records of a label byte and 3,072 pixels: labels, uint8 [n, 3, 32, 32], and what is wrong with the rest, if anything."""
    count, rest = divmod(len(data), 3073)
    records = np.frombuffer(data, np.uint8, count * 3073).reshape(count, 3073)
    problem = f"truncated: {rest} bytes after the last whole image" if rest else None
    return records[:, 0].tolist(), records[:, 1:].reshape(-1, 3, 32, 32), problem


def cifar10_pickle(data: bytes) -> tuple[list[int], np.ndarray, str | None]:
    """Labels, uint8 [n, 3, 32, 32] and a problem from a Python-version batch, read as pickle tokens without unpickling."""
    labels, blob, last_text, collecting = [], b"", None, False
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if isinstance(argument, (str, bytes)) and opcode.name not in ("GLOBAL", "INST"):
                raw = argument if isinstance(argument, bytes) else argument.encode("latin-1", "replace")
                if len(raw) >= 3072 and len(raw) % 3072 == 0 and len(raw) > len(blob):
                    blob = raw
                last_text, collecting = raw, False
            elif opcode.name == "MARK" and last_text == b"labels" and not labels:
                collecting = True
            elif collecting and isinstance(argument, int) and opcode.name.startswith("BININT"):
                labels.append(argument)
            elif opcode.name == "APPENDS" and len(labels) % 1000 == 0 and collecting:
                last_text = b"labels"  # Pickle lists come in runs of 1,000.
    except Exception as error:  # genops raises many types on hostile bytes.
        return [], np.zeros((0, 3, 32, 32), np.uint8), f"not a whole pickle of a CIFAR-10 batch: {error}"
    if not blob or len(labels) * 3072 != len(blob):
        return [], np.zeros((0, 3, 32, 32), np.uint8), f"not a CIFAR-10 batch: {len(blob) // 3072} images and {len(labels)} labels in it"
    return labels, np.frombuffer(blob, np.uint8).reshape(-1, 3, 32, 32), None


# --- composed pictures -----------------------------------------------------------------


def _shapes(spark, config: Ingest) -> Source:
    """`config.count` captioned pictures, drawn in tasks; held-out combinations are in split test alone, unless `config.held_out` is false."""
    if config.height != config.width or config.channels != 3:
        raise UserError(f"source 'shapes' with ingest.height = {config.height}, width = {config.width}, channels = {config.channels}: expected square RGB pictures")
    frame = spark.range(config.count).mapInArrow(functools.partial(_draw_shapes, config.height, config.held_out), ROW)
    return Source(frame, shapes.CLASSES, config.count, captioned=True)


def _draw_shapes(side: int, holds_out: bool, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        indices = batch.column("id").to_pylist()
        for start in range(0, len(indices), _CHUNK):
            chunk = indices[start : start + _CHUNK]
            pixels, attributes, phrasings = zip(*(shapes.draw(index if holds_out else index + shapes.JUDGE, side) for index in chunk))
            held_out = [shapes.is_held_out(each) for each in attributes]
            yield _chunk(
                id=[f"{'heldout' if held else 'seen'}/{index:06d}" for held, index in zip(held_out, chunk)],
                content=[image.tobytes() for image in pixels], height=[side] * len(chunk), width=[side] * len(chunk), channels=[3] * len(chunk),
                label=[" ".join(each.values()) for each in attributes], split=["test" if held and holds_out else None for held in held_out],
                caption=["\n".join(each) for each in phrasings],
            )  # fmt: skip


# --- any Spark table -------------------------------------------------------------------


def _column(name: str):
    """The column of this very name, dots and all."""
    from pyspark.sql import functions as F

    return F.col("`" + name.replace("`", "``") + "`")


def _table(spark, config: Ingest) -> Source:
    """A Parquet folder (a path or URL) or a catalog table (a bare name) with a column of encoded images."""
    is_path = "/" in config.path
    try:
        frame = spark.read.parquet(lake.to_url(config.path)) if is_path else spark.table(config.path)
    except Exception as error:
        raise UserError(f"ingest.path = {config.path!r}: cannot be read as a table: {str(error).splitlines()[0]}") from error
    return from_frame(frame, config.id_column, config.image_column, config.label_column, config.caption_column, config.embedding_column)


def from_frame(frame, id_column: str, image_column: str, label_column: str = "", caption_column: str = "", embedding_column: str = "") -> Source:
    """Any DataFrame with a unique id and a binary column of encoded images; null images are rejected by id."""
    from pyspark.sql import functions as F

    kinds = dict(frame.dtypes)
    optional = {"label": label_column, "caption": caption_column, "embedding": embedding_column}
    for key, column in {"id": id_column, "image": image_column, **{key: column for key, column in optional.items() if column}}.items():
        if column not in kinds:
            raise UserError(f"ingest.{key}_column = {column!r}: not a column of the table (columns: {', '.join(kinds)})")
    if kinds[image_column] != "binary":
        raise UserError(f"ingest.image_column = {image_column!r}: expected a binary column, found {kinds[image_column]}")
    if embedding_column and kinds[embedding_column] not in ("array<float>", "array<double>", "array<array<float>>", "array<array<double>>"):
        raise UserError(f"ingest.embedding_column = {embedding_column!r}: expected an array of float, or an array of such arrays, found {kinds[embedding_column]}")
    id, image = _column(id_column), _column(image_column)
    label = _column(label_column).cast("string") if label_column else F.lit(None).cast("string")
    reason = F.when(id.isNull(), "no id (null)").when(image.isNull(), "no image (null)")
    if label_column:
        reason = reason.when(label.isNull(), "no label (null)")
    chosen = frame.select(
        F.coalesce(id.cast("string"), F.concat(F.lit("null id "), F.monotonically_increasing_id())).alias("id"),
        image.alias("content"),
        label.alias("label"),
        reason.alias("reason"),
        (_column(caption_column) if caption_column else F.lit(None)).cast("string").alias("caption"),
        _flat(frame, embedding_column).alias("embedding"),
    )
    classes = sorted(row[0] for row in frame.select(label).distinct().collect() if row[0] is not None) if label_column else []
    return Source(_padded(chosen), tuple(classes), frame.count(), bool(caption_column), _embedding_shape(frame, embedding_column))


def _flat(frame, embedding_column: str):
    """The embeddings of a row end to end, as float32."""
    from pyspark.sql import functions as F

    if not embedding_column:
        return F.lit(None).cast("array<float>")
    nested = dict(frame.dtypes)[embedding_column].startswith("array<array")
    return (F.flatten(_column(embedding_column)) if nested else _column(embedding_column)).cast("array<float>")


def _embedding_shape(frame, embedding_column: str) -> tuple[int, ...]:
    """(how many a row, size of each) of the first row that has one."""
    if not embedding_column:
        return ()
    first = frame.select(_column(embedding_column).alias("embedding")).where("embedding is not null and size(embedding) > 0").first()
    if first is None:
        raise UserError(f"ingest.embedding_column = {embedding_column!r}: every row is null or empty")
    values = first["embedding"]
    return (len(values), len(values[0])) if isinstance(values[0], list) else (1, len(values))
