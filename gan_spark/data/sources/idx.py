"""Source of IDX files: MNIST, Fashion-MNIST."""

import contextlib
import functools
import gzip
import math
import posixpath
import re
import struct
import zlib
from collections.abc import Iterator

import pyarrow as pa

from ... import lake
from ...config import Ingest, UserError
from .rows import CHUNK, ROW, SPLIT_NAMES, Source, chunk, stated

# What reading a gzip file raises where it is cut off, is no deflate stream or does not match its checksum.
_STREAM_ERRORS = (OSError, EOFError, zlib.error)
_LARGEST_RATIO = 1032  # of deflate
_BLOCK_BYTES = 2**26


class _Gunzip:
    """A gzip file's bytes, member after member. What follows the last one is no part of it, as for gzip's own program;
    `gzip.GzipFile` loses what it has read when it comes to that.
    """

    def __init__(self, stream):
        self.stream, self.packed, self.member = stream, b"", None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none once the file has ended."""
        while True:
            self.packed = self.packed or self.stream.read(2**18)
            if self.member is None or self.member.eof:
                if not self.packed.startswith(b"\x1f\x8b"):
                    if self.member is None:
                        raise gzip.BadGzipFile(f"not a gzip file: it starts with {self.packed[:8]!r}")
                    return b""
                self.member = zlib.decompressobj(wbits=31)
            ends = not self.packed
            piece = self.member.decompress(self.packed, size)
            self.packed = self.member.unused_data if self.member.eof else self.member.unconsumed_tail
            if piece:
                return piece
            if ends and not self.member.eof:
                raise EOFError("the file ends inside of a gzip member")


@contextlib.contextmanager
def _open_stream(url: str) -> Iterator:
    """A stream of the file's bytes, or of those that it packs."""
    fs, path = lake.filesystem(url)
    with fs.open(path, "rb") as stream:
        yield _Gunzip(stream) if url.endswith(".gz") else stream


def _skip(stream, size: int) -> None:
    if not isinstance(stream, _Gunzip):
        stream.seek(size)
    else:
        while size and (piece := stream.read(min(size, 2**20))):
            size -= len(piece)


def _read(stream, size: int) -> bytes:
    """`size` bytes, or what there is."""
    data = b""
    while len(data) < size and (piece := stream.read(size - len(data))):
        data += piece
    return data


def _idx_header(url: str, dimensions: int) -> tuple[int, ...]:
    """(count, sides...) that the file declares; `UserError` where a file of its size cannot hold that."""
    header_size = 4 + 4 * dimensions
    try:
        with _open_stream(url) as stream:
            header = _read(stream, header_size)
    except _STREAM_ERRORS as error:
        raise UserError(f"{url}: cannot be read as an IDX file: {error}") from error
    if len(header) < header_size or header[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(
            f"{url}: not an IDX file of {dimensions}-dimensional unsigned bytes; it starts with {header[:4]!r}"
        )
    shape = struct.unpack(f">{dimensions}I", header[4:])
    fs, path = lake.filesystem(url)
    file_size, declared_size = fs.size(path), header_size + math.prod(shape)
    is_packed = url.endswith(".gz")
    declares = f"{url}: its header declares {' x '.join(map(str, shape))} bytes"
    if 0 in shape:
        raise UserError(f"{declares}: expected at least one record of at least one byte")
    if not is_packed and file_size > declared_size:
        raise UserError(f"{declares}, {declared_size:,} with itself, and the file has {file_size:,}: it is damaged")
    if declared_size > file_size * (_LARGEST_RATIO if is_packed else 16):
        raise UserError(f"{declares}, which a file of {file_size:,} bytes cannot hold: it is damaged")
    return shape


def _split_of(part: str) -> str | None:
    """The split that a file's name states, as `t10k` and `emnist-letters-test` do."""
    words = re.split("[-_.]", part.lower())
    return next((SPLIT_NAMES.get(word, "test") for word in words if word in SPLIT_NAMES or word == "t10k"), None)


def source(spark, config: Ingest) -> Source:
    """A folder of `<part>-images-idx3-ubyte[.gz]`, each with its `<part>-labels-idx1-ubyte[.gz]` or none of them.

    A part whose name says test (`t10k`, `emnist-letters-test`), train or validation is that split.
    """
    root = lake.to_url(config.path)
    fs, path = lake.filesystem(root)
    if not fs.isdir(path):
        raise UserError(f"ingest.path = {config.path!r}: expected a folder of IDX files")
    names = {posixpath.basename(name) for name in fs.ls(path, detail=False)}
    files = sorted(name for name in names if name.removesuffix(".gz") not in names - {name})  # x, where x.gz is too
    ranges, labelled, used = [], set(), set()
    for name in files:
        match = re.fullmatch(r"(.+)-images[-.]idx3-ubyte(\.gz)?", name)
        if not match:
            continue
        images = lake.join(root, name)
        count, height, width = _idx_header(images, 3)
        label_pattern = re.compile(re.escape(match[1]) + r"-labels[-.]idx1-ubyte(\.gz)?")
        label_name = next(filter(label_pattern.fullmatch, files), None)
        labelled.add(label_name is not None)
        used.add(label_name)
        if label_name:
            (label_count,) = _idx_header(lake.join(root, label_name), 1)
            if label_count != count:
                raise UserError(
                    f"{images} declares {count} images, {label_name} declares {label_count} labels: expected as many"
                )
        step = max(CHUNK, -(-count // spark.sparkContext.defaultParallelism))
        labels = lake.join(root, label_name) if label_name else None
        for start in range(0, count, step):
            stop = min(start + step, count)
            ranges.append((match[1], images, labels, _split_of(match[1]), start, stop, stop == count, height, width))
    if not ranges:
        raise UserError(
            f"ingest.path = {config.path!r}: no file named <part>-images-idx3-ubyte[.gz] in it (found:"
            f" {', '.join(files[:5]) or 'nothing'})"
        )
    if len(labelled) > 1:
        raise UserError(
            f"ingest.path = {config.path!r}: some IDX image files have labels and some have none; expected all or none"
        )
    if unused := [name for name in files if "labels" in name and name not in used]:
        raise UserError(
            f"ingest.path = {config.path!r}: {unused[0]} is a file of labels that nothing uses: expected"
            " <part>-labels-idx1-ubyte[.gz] beside a <part>-images-idx3-ubyte[.gz]"
        )
    splits = frozenset(split for _, _, _, split, *_ in ranges if split)
    ranges = [(*row[:3], stated(row[3], splits), *row[4:]) for row in ranges]
    frame = spark.createDataFrame(
        ranges,
        "part string, images string, labels string, split string, start int, stop int, is_last boolean, height int,"
        " width int",
    )
    names = config.classes or tuple("0123456789")
    frame = frame.repartitionByRange(len(ranges), "part", "start").mapInArrow(functools.partial(_read_idx, names), ROW)
    count = sum(row[5] - row[4] for row in ranges)
    return Source(frame, names if labelled == {True} else (), count, splits=splits)


def _read_idx(names: tuple[str, ...], ranges: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for frame in ranges:
        for part in frame.to_pandas().itertuples():
            yield from _read_range(part, names)


def _read_range(part, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """The images of one range of a part."""
    size = part.height * part.width
    labels = _read_at(part.labels, 8, part.start, part.stop, part.is_last) if part.labels else None
    for start, block in _blocks(part.images, 16, part.start, part.stop, size, part.is_last):
        if start == part.stop:
            if block:
                after = f"bytes after the last of the {part.stop:,} images that its header declares"
                yield chunk(id=[posixpath.basename(part.images)], reason=[after])
            return
        stop = min(start + _chunk_rows(size), part.stop)
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


def _chunk_rows(size: int) -> int:
    return max(1, min(CHUNK, _BLOCK_BYTES // size))


def _read_at(url: str, header: int, start: int, stop: int, is_last: bool) -> bytes:
    return b"".join(block for first, block in _blocks(url, header, start, stop, 1, is_last) if first < stop)


def _blocks(url: str, header: int, start: int, stop: int, size: int, is_last: bool) -> Iterator[tuple[int, bytes]]:
    """(index of its first record, bytes) in blocks of `_chunk_rows`; short or empty once the file has ended.

    After the last record of the file comes what is left, up to one byte.
    """
    ended = False
    rows = _chunk_rows(size)
    with _open_stream(url) as stream:
        try:
            _skip(stream, header + start * size)
        except _STREAM_ERRORS:
            ended = True
        for first in range(start, stop, rows):
            block_size, block = (min(first + rows, stop) - first) * size, b""
            after = None
            try:
                while not ended and len(block) < block_size:
                    piece = stream.read(block_size - len(block))
                    block, ended = block + piece, not piece
                if not ended and is_last and first + rows >= stop:
                    after = stream.read(1)  # A checksum is compared once its end is reached.
            except _STREAM_ERRORS:
                ended = True
                if len(block) == block_size:
                    block = b""  # What the checksum is of is not what was written.
            yield first, block
            if after is not None:
                yield stop, after
