"""CIFAR-10's binary and Python versions, whole, damaged and hostile."""

import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
from test_sources import rows

from gan_spark.config import Ingest, UserError
from gan_spark.data import sources
from gan_spark.data.sources import cifar10


def cifar_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32), np.uint8)


def binary_batch(images: np.ndarray, labels) -> bytes:
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))


def pickled_batch(images: np.ndarray, labels) -> bytes:
    """As CIFAR-10's Python version is, but written by Python 3."""
    batch = {
        b"batch_label": b"batch 1",
        b"data": images.reshape(len(images), 3072),
        b"labels": list(labels),
        b"filenames": [b"%d.png" % i for i in range(len(images))],
    }
    return pickle.dumps(batch, protocol=2)


def python2_batch(images: np.ndarray, labels) -> bytes:
    """The tokens that Python 2 wrote into CIFAR-10: byte strings, and lists in runs of 1,000."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    raw = images.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
    array += (
        b"M"
        + struct.pack("<H", len(images))
        + b"M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    )
    array += b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    runs = [labels[start : start + 1000] for start in range(0, len(labels), 1000)]
    values = b"]" + b"".join(b"(" + b"".join(b"K" + bytes([label]) for label in run) + b"e" for run in runs)
    return (
        b"\x80\x02}("
        + text(b"data")
        + array
        + text(b"labels")
        + values
        + text(b"batch_label")
        + text(b"batch 1")
        + b"u."
    )


PICKLES = {"python 3": pickled_batch, "python 2": python2_batch}


@pytest.mark.parametrize("write", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("count", [3, 1000, 1001, 2345])
def test_a_pickled_batch_is_read_whole(write, count):
    images, labels = cifar_images(count), [(7 * i) % 10 for i in range(count)]
    data = write(images, labels)
    key = "data" if write is python2_batch else b"data"
    np.testing.assert_array_equal(pickle.loads(data, encoding="latin-1")[key].reshape(images.shape), images)
    found_labels, found_images, problem = cifar10.pickled_batch(data)
    assert problem is None
    assert found_labels == labels
    np.testing.assert_array_equal(found_images, images)


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_nothing_is_unpickled(tmp_path):
    mark = tmp_path / "mark"
    data = pickle.dumps(Hostile(mark), protocol=2)
    pickle.loads(data).close()
    assert mark.exists()
    mark.unlink()
    labels, images, problem = cifar10.pickled_batch(data)
    assert (labels, len(images)) == ([], 0)
    assert problem == "not a CIFAR-10 batch: 0 images and 0 labels in it"
    assert not mark.exists()


@pytest.mark.parametrize(
    "data, problem",
    [
        (b"", "not a whole pickle of a CIFAR-10 batch: "),
        (b"no pickle", "not a whole pickle of a CIFAR-10 batch: "),
        (pickled_batch(cifar_images(5), range(5))[:9000], "not a whole pickle of a CIFAR-10 batch: "),
        (pickled_batch(cifar_images(5), range(4)), "not a CIFAR-10 batch: 5 images and 4 labels in it"),
    ],
    ids=["empty", "text", "truncated", "a label is missing"],
)
def test_a_bad_pickled_batch_has_a_problem(data, problem):
    labels, images, found = cifar10.pickled_batch(data)
    assert (labels, images.shape) == ([], (0, 3, 32, 32))
    assert found.startswith(problem)


def put_cifar(tmp_path, files: dict[str, bytes], packed: bool) -> Ingest:
    folder = tmp_path / "cifar-10-batches"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if packed:
        with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)
    return Ingest(source="cifar10", path=str(tmp_path / "cifar.tar.gz" if packed else folder))


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar.gz"])
@pytest.mark.parametrize("version", ["binary", "python"])
def test_cifar10(spark, tmp_path, packed, version):
    """With a note and a batch that would run code beside the good ones."""
    suffix, write = (".bin", binary_batch) if version == "binary" else ("", pickled_batch)
    images, mark = cifar_images(6), tmp_path / "mark"
    hostile = pickle.dumps(Hostile(mark), protocol=2)
    files = {
        f"data_batch_1{suffix}": write(images[:4], [0, 1, 9, 10]),
        f"test_batch{suffix}": write(images[4:], [3, 4]),
        "readme.html": b"",
        f"data_batch_2{suffix}": hostile,
    }
    source, found = rows(spark, put_cifar(tmp_path, files, packed))
    assert source.classes == cifar10.CLASSES
    names = [f"data_batch_1{suffix}/{i:05d}" for i in range(4)] + [f"test_batch{suffix}/{i:05d}" for i in range(2)]
    assert sorted(found) == sorted([*names, f"data_batch_2{suffix}"])
    expected = [
        ("airplane", None),
        ("automobile", None),
        ("truck", None),
        (None, "label 10 is not among the 10 classes"),
        ("cat", None),
        ("deer", None),
    ]
    assert [(found[name].label, found[name].reason) for name in names] == expected
    assert [found[name].split for name in names] == ["train"] * 4 + ["test"] * 2
    for name, image in zip(names, images, strict=True):
        row = found[name]
        np.testing.assert_array_equal(
            np.frombuffer(row.content, np.uint8).reshape(row.height, row.width, row.channels), image.transpose(1, 2, 0)
        )
    assert found[f"data_batch_2{suffix}"].reason.startswith(
        f"truncated: {len(hostile)} bytes after" if version == "binary" else "not a CIFAR-10 batch"
    )
    assert not mark.exists()


def test_a_truncated_binary_batch_keeps_its_whole_images(spark, tmp_path):
    data = binary_batch(cifar_images(3), [1, 2, 3])[:-10]
    _, found = rows(spark, put_cifar(tmp_path, {"data_batch_1.bin": data}, packed=False))
    assert {id: row.reason for id, row in found.items()} == {
        "data_batch_1.bin/00000": None,
        "data_batch_1.bin/00001": None,
        "data_batch_1.bin": "truncated: 3063 bytes after the last whole image",
    }
    assert found["data_batch_1.bin/00000"].split is None


def test_a_truncated_archive_is_refused(spark, tmp_path):
    config = put_cifar(tmp_path, {"data_batch_1.bin": binary_batch(cifar_images(9), [1] * 9)}, packed=True)
    os.truncate(config.path, 5000)
    with pytest.raises(UserError, match=r"cifar\.tar\.gz': not a whole \.tar\.gz: "):
        sources.open_source(spark, config)


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar.gz"])
def test_no_batches_is_refused(spark, tmp_path, packed):
    with pytest.raises(UserError, match="no data_batch_N or test_batch in it"):
        sources.open_source(spark, put_cifar(tmp_path, {"batches.meta": b""}, packed))
