"""Source of CIFAR-10's own archives."""

import functools
import pickletools
import posixpath
import re
import tarfile
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ... import lake
from ...config import Ingest, UserError
from .rows import CHUNK, ROW, Source, chunk

_LARGEST = 256 * 2**20  # bytes of a batch; those of CIFAR-10 have 31 million
_NOTHING = [], np.zeros((0, 3, 32, 32), np.uint8)  # labels and pixels
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def source(spark, config: Ingest) -> Source:
    """CIFAR-10 (Krizhevsky, 2009) in its binary or Python version: the .tar.gz, or the folder inside it.

    The Python version is a pickle; its bytes are taken out token by token and nothing is unpickled.
    """
    root = lake.to_url(config.path)
    fs, path = lake.filesystem(root)
    if fs.isdir(path):
        members = [
            (lake.join(root, posixpath.basename(name)), None, posixpath.basename(name))
            for name in fs.ls(path, detail=False)
        ]
    elif fs.exists(path):
        try:
            with fs.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
                members = [
                    (root, member.name, posixpath.basename(member.name)) for member in archive if member.isfile()
                ]
        except (tarfile.TarError, EOFError, OSError) as error:
            raise UserError(f"ingest.path = {config.path!r}: not a whole .tar.gz: {error}") from error
    else:
        raise UserError(f"ingest.path = {config.path!r}: nothing there; expected CIFAR-10's .tar.gz or its folder")
    batches = [member for member in members if re.fullmatch(r"(data_batch_\d|test_batch)(\.bin)?", member[2])]
    if not batches:
        raise UserError(f"ingest.path = {config.path!r}: no data_batch_N or test_batch in it")
    has_test = any(name.startswith("test") for _, _, name in batches)
    frame = spark.createDataFrame(batches, "url string, member string, name string").repartition(len(batches), "name")
    splits = frozenset(("train", "test") if has_test else ())
    return Source(
        frame.mapInArrow(functools.partial(_read, has_test), ROW), CLASSES, 10_000 * len(batches), splits=splits
    )


def _read(has_test: bool, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for frame in batches:
        for batch in frame.to_pandas().itertuples():
            labels, pixels, problem = _parsed(batch.name, _member_bytes(batch.url, batch.member))
            if problem:
                yield chunk(id=[batch.name], reason=[problem])
            for start in range(0, len(labels), CHUNK):
                count = len(labels[start : start + CHUNK])
                reasons = [
                    None if label < 10 else f"label {label} is not among the 10 classes"
                    for label in labels[start : start + count]
                ]
                yield chunk(
                    id=[f"{batch.name}/{index:05d}" for index in range(start, start + count)],
                    content=[image.transpose(1, 2, 0).tobytes() for image in pixels[start : start + count]],
                    height=[32] * count,
                    width=[32] * count,
                    channels=[3] * count,
                    label=[
                        None if reason else CLASSES[label]
                        for label, reason in zip(labels[start : start + count], reasons, strict=True)
                    ],
                    split=["test" if batch.name.startswith("test") else "train" if has_test else None] * count,
                    reason=reasons,
                )


def _parsed(name: str, data: bytes) -> tuple[list[int], np.ndarray, str | None]:
    """What `binary_batch` or `pickled_batch` gives of the batch of that name."""
    if len(data) > _LARGEST:
        return *_NOTHING, f"over {_LARGEST >> 20} MB, where a batch of CIFAR-10 has 30"
    return binary_batch(data) if name.endswith(".bin") else pickled_batch(data)


def _member_bytes(url: str, member: str | None) -> bytes:
    """Bytes of a file, or of a member of an archive, of which nothing is unpacked to a disk; one more than `_LARGEST`
    of a larger one.
    """
    fs, path = lake.filesystem(url)
    with fs.open(path, "rb") as stream:
        if member is None:
            return stream.read(_LARGEST + 1)
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            for entry in archive:
                if entry.isfile() and entry.name == member:
                    return archive.extractfile(entry).read(_LARGEST + 1)
    raise FileNotFoundError(f"{member} in {url}")


def binary_batch(data: bytes) -> tuple[list[int], np.ndarray, str | None]:
    """Labels, uint8 [n, 3, 32, 32] and a problem from a binary-version batch, records of a label byte and 3,072 pixels.

    The problem is None unless bytes are left after the last whole record.
    """
    count, rest_bytes = divmod(len(data), 3073)
    records = np.frombuffer(data, np.uint8, count * 3073).reshape(count, 3073)
    problem = f"truncated: {rest_bytes} bytes after the last whole image" if rest_bytes else None
    return records[:, 0].tolist(), records[:, 1:].reshape(-1, 3, 32, 32), problem


def pickled_batch(data: bytes) -> tuple[list[int], np.ndarray, str | None]:
    """Labels, uint8 [n, 3, 32, 32] and a problem from a Python-version batch, read as tokens without unpickling."""
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
        return *_NOTHING, f"not a whole pickle of a CIFAR-10 batch: {error}"
    if not blob or len(labels) * 3072 != len(blob):
        return *_NOTHING, f"not a CIFAR-10 batch: {len(blob) // 3072} images and {len(labels)} labels in it"
    return labels, np.frombuffer(blob, np.uint8).reshape(-1, 3, 32, 32), None
