"""Source of IDX files: MNIST, Fashion-MNIST."""

import functools
import gzip
import posixpath
import re
import struct
import zlib
from collections.abc import Iterator

import pyarrow as pa

from ... import lake
from ...config import Ingest, UserError
from .rows import CHUNK, ROW, Source, chunk

# What reading a gzip file raises where it is cut off, is no deflate stream or does not match its checksum.
_STREAM_ERRORS = (OSError, EOFError, zlib.error)


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
        raise UserError(
            f"{url}: not an IDX file of {dimensions}-dimensional unsigned bytes; it starts with {header[:4]!r}"
        )
    return struct.unpack(f">{dimensions}I", header[4:])


def source(spark, config: Ingest) -> Source:
    """A folder of `<part>-images-idx3-ubyte[.gz]`, each with its `<part>-labels-idx1-ubyte[.gz]` or none of them.

    Where there is a part `t10k` or `test`, it is the test split, and only validation images are taken from the others.
    """
    root = lake.to_url(config.path)
    fs, path = lake.filesystem(root)
    if not fs.isdir(path):
        raise UserError(f"ingest.path = {config.path!r}: expected a folder of IDX files")
    files = sorted(posixpath.basename(name) for name in fs.ls(path, detail=False))
    has_test = any(re.match(r"(t10k|test)-images", name) for name in files)
    ranges, labelled = [], set()
    for name in files:
        match = re.fullmatch(r"(.+)-images[-.]idx3-ubyte(\.gz)?", name)
        if not match:
            continue
        images = lake.join(root, name)
        count, height, width = _idx_header(images, 3)
        label_pattern = re.compile(re.escape(match[1]) + r"-labels[-.]idx1-ubyte(\.gz)?")
        label_name = next(filter(label_pattern.fullmatch, files), None)
        labelled.add(label_name is not None)
        if label_name:
            (label_count,) = _idx_header(lake.join(root, label_name), 1)
            if label_count != count:
                raise UserError(
                    f"{images} declares {count} images, {label_name} declares {label_count} labels: expected as many"
                )
        split = "test" if match[1] in ("t10k", "test") else "train" if has_test else None
        step = max(CHUNK, -(-count // spark.sparkContext.defaultParallelism))
        for start in range(0, count, step):
            labels = lake.join(root, label_name) if label_name else None
            ranges.append((match[1], images, labels, split, start, min(start + step, count), height, width))
    if not ranges:
        raise UserError(
            f"ingest.path = {config.path!r}: no file named <part>-images-idx3-ubyte[.gz] in it (found:"
            f" {', '.join(files[:5]) or 'nothing'})"
        )
    if len(labelled) > 1:
        raise UserError(
            f"ingest.path = {config.path!r}: some IDX image files have labels and some have none; expected all or none"
        )
    frame = spark.createDataFrame(
        ranges, "part string, images string, labels string, split string, start int, stop int, height int, width int"
    )
    names = config.classes or tuple("0123456789")
    frame = frame.repartitionByRange(len(ranges), "part", "start").mapInArrow(functools.partial(_read_idx, names), ROW)
    return Source(frame, names if labelled == {True} else (), sum(stop - start for *_, start, stop, _, _ in ranges))


def _read_idx(names: tuple[str, ...], ranges: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for frame in ranges:
        for part in frame.to_pandas().itertuples():
            size = part.height * part.width
            labels = _read_at(part.labels, 8, part.start, part.stop, 1) if part.labels else None
            for start, block in _blocks(part.images, 16, part.start, part.stop, size):
                stop = min(start + CHUNK, part.stop)
                content, reason, label = [], [], []
                for index in range(start, stop):
                    pixels = block[(index - start) * size : (index - start + 1) * size]
                    digit = labels[index - part.start] if labels and index - part.start < len(labels) else None
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
                count = stop - start
                yield chunk(
                    id=[f"{part.part}/{index:06d}" for index in range(start, stop)],
                    content=content,
                    height=[part.height] * count,
                    width=[part.width] * count,
                    channels=[1] * count,
                    label=label,
                    split=[part.split] * count,
                    reason=reason,
                )


def _read_at(url: str, header: int, start: int, stop: int, size: int) -> bytes:
    return b"".join(block for _, block in _blocks(url, header, start, stop, size))


def _blocks(url: str, header: int, start: int, stop: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(index of its first record, bytes) in blocks of `CHUNK` records; short or empty once the file has ended."""
    ended = False
    with _open_stream(url) as stream:
        try:
            stream.seek(header + start * size)
        except _STREAM_ERRORS:
            ended = True
        for first in range(start, stop, CHUNK):
            block_size, block = (min(first + CHUNK, stop) - first) * size, b""
            while len(block) < block_size and not ended:
                try:
                    piece = stream.read(block_size - len(block))
                    if len(block) + len(piece) == block_size and first + CHUNK >= stop:
                        stream.read(1)  # gzip checks its sum once its end is reached
                except _STREAM_ERRORS:
                    piece, block = b"", b""
                ended = not piece
                block += piece
            yield first, block
