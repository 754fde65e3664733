"""Every record of a source comes out once: as an image, or as a reason why not."""

import collections
import gzip
import hashlib
import io
import os
import struct
import zlib

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyspark.sql import functions as F

from gan_spark import lake
from gan_spark.config import Ingest, UserError
from gan_spark.data import sources
from gan_spark.data.sources import folder


def rows(spark, config: Ingest) -> tuple[sources.Source, dict]:
    source = sources.open_source(spark, config)
    collected = source.frame.collect()
    found = {row.id: row for row in collected}
    assert len(found) == len(collected), "an id came twice"
    return source, found


def png(value: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 8), value).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("source", ["idx", "folder", "cifar10", "table"])
def test_a_source_needs_a_path(spark, source):
    with pytest.raises(UserError, match=f"^ingest.path is empty: source '{source}' needs"):
        sources.open_source(spark, Ingest(source=source))


@pytest.mark.parametrize(
    "source, message",
    [
        ("idx", "expected a folder of IDX files"),
        ("folder", "expected a folder of images"),
        ("cifar10", "nothing there"),
        ("table", "cannot be read as a table"),
    ],
)
def test_a_path_that_is_not_there_is_named(spark, tmp_path, source, message):
    with pytest.raises(UserError, match=f"^ingest.path = '{tmp_path}/missing': {message}"):
        sources.open_source(spark, Ingest(source=source, path=f"{tmp_path}/missing"))


def test_digits(spark):
    source, found = rows(spark, Ingest())
    assert source.count == len(found) == 1797
    assert source.classes == tuple("0123456789")
    pixels = np.frombuffer(found["digits/0000"].content, np.uint8)
    assert (pixels.size, pixels.min(), pixels.max()) == (64, 0, 239)
    assert [found[f"digits/{i:04d}"].label for i in range(10)] == list("0123456789")


# --- IDX -------------------------------------------------------------------------------

IMAGES = np.random.default_rng(1).integers(0, 256, (50, 8, 8), np.uint8)
LABELS = np.arange(50, dtype=np.uint8) % 10


def idx(array: np.ndarray, count: int | None = None) -> bytes:
    """An IDX file of `array` that declares `count` records."""
    shape = (array.shape[0] if count is None else count, *array.shape[1:])
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *shape) + array.tobytes()


def put_idx(folder, part: str, images: bytes, labels: bytes | None = None, packed: bool = False) -> Ingest:
    for data, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
        if data is not None:
            (folder / f"{part}-{kind}-ubyte{'.gz' * packed}").write_bytes(
                gzip.compress(data, mtime=0) if packed else data
            )
    return Ingest(source="idx", path=str(folder))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("labelled", [False, True], ids=["no labels", "labels"])
def test_idx(spark, tmp_path, packed, labelled):
    source, found = rows(spark, put_idx(tmp_path, "train", idx(IMAGES), idx(LABELS) if labelled else None, packed))
    assert source.count == 50
    assert source.classes == (tuple("0123456789") if labelled else ())
    assert sorted(found) == [f"train/{i:06d}" for i in range(50)]
    for i in range(50):
        row = found[f"train/{i:06d}"]
        assert (row.content, row.height, row.width, row.channels) == (IMAGES[i].tobytes(), 8, 8, 1)
        assert row.label == (str(LABELS[i]) if labelled else None)
        assert (row.split, row.reason) == (None, None)


def test_idx_over_many_blocks_keeps_its_order(spark, tmp_path):
    many = np.arange(2500, dtype=">u4").view(np.uint8).reshape(2500, 2, 2)
    _, found = rows(spark, put_idx(tmp_path, "train", idx(many), packed=True))
    assert len(found) == 2500
    assert all(found[f"train/{i:06d}"].content == many[i].tobytes() for i in range(2500))


def test_idx_with_its_own_test_split(spark, tmp_path):
    put_idx(tmp_path, "t10k", idx(IMAGES[:3]))
    source, found = rows(spark, put_idx(tmp_path, "train", idx(IMAGES[3:7])))
    assert source.count == 7
    assert {row.id: row.split for row in found.values()} == {
        f"{part}/{i:06d}": split
        for part, split, many in (("t10k", "test", 3), ("train", "train", 4))
        for i in range(many)
    }


def test_idx_class_names(spark, tmp_path):
    names = ("shirt", "shoe", "bag")
    config = put_idx(tmp_path, "train", idx(IMAGES[:4]), idx(np.array([2, 0, 1, 3], np.uint8)))
    source, found = rows(spark, Ingest(source="idx", path=config.path, classes=names))
    assert source.classes == names
    assert [found[f"train/{i:06d}"].label for i in range(4)] == ["bag", "shirt", "shoe", None]
    assert found["train/000003"].reason == "label 3 is not among the 3 classes"


def truncated(data: bytes) -> bytes:
    packed = gzip.compress(data, mtime=0)
    return packed[: len(packed) // 2]


def no_deflate_stream(data: bytes) -> bytes:
    """Whole up to the middle, where a block of a type begins that does not exist."""
    packer = zlib.compressobj(wbits=31)
    return packer.compress(data[: len(data) // 2]) + packer.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 1000


@pytest.mark.parametrize("kind, damage", [("images", truncated), ("images", no_deflate_stream), ("labels", truncated)])
def test_a_damaged_idx_gz_gives_each_declared_record_once(spark, tmp_path, kind, damage):
    rng = np.random.default_rng(2)
    images, labels = rng.integers(0, 256, (3000, 8, 8), np.uint8), rng.integers(0, 10, 3000).astype(np.uint8)
    config = put_idx(tmp_path, "train", idx(images), idx(labels), packed=True)
    name, whole = ("train-images-idx3-ubyte.gz", images) if kind == "images" else ("train-labels-idx1-ubyte.gz", labels)
    (tmp_path / name).write_bytes(damage(idx(whole)))
    source, found = rows(spark, config)
    assert source.count == len(found) == 3000
    good = [row for row in sorted(found.values()) if row.reason is None]
    assert 1000 < len(good) < 2000
    for i, row in enumerate(good):
        assert (row.id, row.content, row.label) == (f"train/{i:06d}", images[i].tobytes(), str(labels[i]))
    assert all(
        row.content is None and row.reason.startswith(f"truncated: {name} ends before this")
        for row in found.values()
        if row.reason
    )


def test_an_idx_gz_that_fails_its_checksum_is_not_passed_in_silence(spark, tmp_path):
    config = put_idx(tmp_path, "train", idx(IMAGES))
    data = bytearray(gzip.compress(idx(IMAGES), compresslevel=0))
    data[len(data) // 2] ^= 1
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(data)
    with pytest.raises(gzip.BadGzipFile, match="CRC"):
        gzip.decompress(data)
    _, found = rows(spark, config)
    assert len(found) == 50
    assert [row.reason for row in found.values() if row.reason] != []


def test_an_idx_file_shorter_than_declared(spark, tmp_path):
    source, found = rows(spark, put_idx(tmp_path, "train", idx(IMAGES, count=60)[:-1]))
    assert source.count == len(found) == 60
    assert sorted(row.id for row in found.values() if row.reason) == [f"train/{i:06d}" for i in range(49, 60)]


@pytest.mark.parametrize(
    "files, message",
    [
        (
            {"train-images-idx3-ubyte": idx(IMAGES), "train-labels-idx1-ubyte": idx(LABELS[:49])},
            "declares 50 images, train-labels-idx1-ubyte declares 49 labels",
        ),
        (
            {"train-images-idx3-ubyte": b"no such file"},
            "train-images-idx3-ubyte: not an IDX file of 3-dimensional unsigned bytes; it starts with b'no s'",
        ),
        ({"train-images-idx3-ubyte": idx(LABELS)}, "not an IDX file of 3-dimensional"),
        ({"train-images-idx3-ubyte": b""}, "not an IDX file of 3-dimensional unsigned bytes; it starts with b''"),
        ({"train-images-idx3-ubyte.gz": idx(IMAGES)}, r"train-images-idx3-ubyte\.gz: cannot be read as an IDX file: "),
        (
            {"train-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES))[:15]},
            r"train-images-idx3-ubyte\.gz: cannot be read as an IDX file: |not an IDX file",
        ),
        (
            {
                "train-images-idx3-ubyte": idx(IMAGES),
                "train-labels-idx1-ubyte": idx(LABELS),
                "t10k-images-idx3-ubyte": idx(IMAGES),
            },
            "expected all or none",
        ),
        ({"notes.txt": b""}, r"no file named <part>-images-idx3-ubyte\[\.gz\] in it \(found: notes\.txt\)"),
        ({}, r"no file named .* \(found: nothing\)"),
    ],
    ids=[
        "count",
        "text",
        "labels for images",
        "empty",
        "not gz",
        "gz cut in its header",
        "half labelled",
        "no idx",
        "nothing",
    ],
)
def test_a_wrong_idx_folder_is_refused(spark, tmp_path, files, message):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        sources.open_source(spark, Ingest(source="idx", path=str(tmp_path)))


@pytest.mark.parametrize("name", ["emnist-letters-test", "qmnist-test", "t10k", "testing"])
def test_a_part_that_says_test_is_the_test_split(spark, tmp_path, name):
    put_idx(tmp_path, name, idx(IMAGES[:2]))
    source, found = rows(spark, put_idx(tmp_path, "emnist-letters-train", idx(IMAGES[2:5])))
    assert source.splits == {"train", "test"}
    assert {id.split("/")[0]: row.split for id, row in found.items()} == {name: "test", "emnist-letters-train": "train"}


def test_an_idx_file_and_its_packed_copy_are_read_once(spark, tmp_path):
    put_idx(tmp_path, "train", idx(IMAGES), idx(LABELS), packed=True)
    source, found = rows(spark, put_idx(tmp_path, "train", idx(IMAGES), idx(LABELS)))
    assert source.count == len(found) == 50


def test_labels_that_nothing_uses_are_refused_by_name(spark, tmp_path):
    config = put_idx(tmp_path, "qmnist-test", idx(IMAGES))
    (tmp_path / "qmnist-test-labels-idx2-int").write_bytes(b"\0\0\x0c\2")
    with pytest.raises(UserError, match="qmnist-test-labels-idx2-int is a file of labels that nothing uses"):
        sources.open_source(spark, config)


def test_bytes_after_a_whole_gzip_member_cost_no_image(spark, tmp_path):
    many = np.random.default_rng(3).integers(0, 256, (2500, 8, 8), np.uint8)
    config = put_idx(tmp_path, "train", idx(many), packed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    data = idx(many)
    halves = gzip.compress(data[:70_000]) + gzip.compress(data[70_000:])
    path.write_bytes(halves + b"something else that was written after it")
    _, found = rows(spark, config)
    assert [row.reason for row in found.values() if row.reason] == []
    assert all(found[f"train/{i:06d}"].content == many[i].tobytes() for i in range(2500))


def test_images_after_the_last_one_that_a_packed_header_declares_are_told(spark, tmp_path):
    _, found = rows(spark, put_idx(tmp_path, "train", idx(IMAGES, count=40), packed=True))
    assert len(found) == 41
    told = found["train-images-idx3-ubyte.gz"]
    assert (told.content, told.reason) == (None, "bytes after the last of the 40 images that its header declares")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    "shape, message",
    [
        ((50, 2**31, 2**31), r"its header declares 50 x 2147483648 x 2147483648 bytes, which a file of .* cannot hold"),
        ((2**32 - 1, 8, 8), r"its header declares 4294967295 x 8 x 8 bytes, which a file of .* cannot hold"),
        ((50, 0, 0), "its header declares 50 x 0 x 0 bytes: expected at least one record"),
        ((0, 8, 8), "its header declares 0 x 8 x 8 bytes: expected at least one record"),
    ],
)
def test_an_idx_header_is_held_against_its_file(spark, tmp_path, packed, shape, message):
    data = bytes([0, 0, 8, 3]) + struct.pack(">3I", *shape) + IMAGES.tobytes()
    with pytest.raises(UserError, match=message):
        sources.open_source(spark, put_idx(tmp_path, "train", data, packed=packed))


def test_an_idx_file_longer_than_declared_is_refused(spark, tmp_path):
    config = put_idx(tmp_path, "train", idx(IMAGES, count=40))
    with pytest.raises(UserError, match="declares 40 x 8 x 8 bytes, 2,576 with itself, and the file has 3,216"):
        sources.open_source(spark, config)


# --- folders ---------------------------------------------------------------------------


def put(folder, *names: str) -> Ingest:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png())
    return Ingest(source="folder", path=str(folder))


def test_class_folders(spark, tmp_path):
    names = ["cat/1.png", "cat/2.png", "dog/1.png", "dog/more/1.png", "a b/é #%20.png"]
    source, found = rows(spark, put(tmp_path, *names))
    assert source.count == 5
    assert source.classes == ("a b", "cat", "dog")
    assert {row.id: (row.label, row.reason) for row in found.values()} == {
        name: (name.split("/")[0], None) for name in names
    }
    assert {row.id: row.url for row in found.values()} == {name: f"file://{tmp_path}/{name}" for name in names}


def test_a_flat_folder_has_no_classes(spark, tmp_path):
    source, found = rows(spark, put(tmp_path, "1.png", "2.png", "notes.txt"))
    assert source.classes == ()
    assert {row.id: (row.label, row.reason) for row in found.values()} == {
        name: (None, None) for name in ("1.png", "2.png", "notes.txt")
    }


def test_what_is_no_image_of_a_class_carries_a_reason(spark, tmp_path):
    put(tmp_path, "cat/1.png", "stray.png")
    (tmp_path / "cat" / "folder.jpg").mkdir()
    (tmp_path / "cat" / "empty").mkdir()
    with open(tmp_path / "cat" / "large.png", "wb") as out:
        out.truncate(2**20 + 1)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    source, found = rows(spark, Ingest(source="folder", path=str(tmp_path), max_file_mb=1))
    assert source.count == len(found)
    assert {id: row.reason for id, row in found.items()} == {
        "cat/1.png": None,
        "stray.png": "not inside a class folder, as the other files are",
        "cat/folder.jpg": "a folder, not a file",
        "cat/large.png": "1048577 bytes, over the limit of 1 MB",
        "cat/pipe.png": "not a file",
    }


def test_a_url_keeps_the_host_of_its_store():
    """As HDFS does, this store has its host in the URL and not in its paths."""

    class Hosted(fsspec.get_filesystem_class("memory")):
        protocol = "hosted"
        store, pseudo_dirs = {}, [""]

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.partition("://")[2].partition("/")[2] if "://" in path else path.rstrip("/")

    fsspec.register_implementation("hosted", Hosted, clobber=True)
    root = "hosted://nn2:8020/images"
    names = ["cat/1.png", "cat/more/a b #%20?.png", "stray.png"]
    for name in names:
        fs, path = lake.filesystem(root)
        fs.pipe_file(f"{path}/{name}", png())
    parts = [folder.Part("", None, None, whole=False), folder.Part("cat", "cat", None, whole=True)]
    rows = list(folder._list(root, 2**20, {"cat": "cat"}, frozenset(), iter(parts)))
    assert {id: url for id, url, *_ in rows} == {name: f"{root}/{name}" for name in names}
    assert all(lake.read_bytes(url) == png() for _, url, *_ in rows)


@pytest.mark.parametrize("name", ["a b", "50%25", "a#b", "a?b", "a*[b]", "añ", "a::b", "a\\b"])
def test_a_file_is_read_by_its_url_whatever_its_name(spark, tmp_path, name):
    _, found = rows(spark, put(tmp_path, f"{name}/{name}.png"))
    (row,) = found.values()
    assert (row.id, row.label, row.reason) == (f"{name}/{name}.png", name, None)
    assert lake.read_bytes(row.url) == png()


def test_an_empty_folder_is_refused(spark, tmp_path):
    with pytest.raises(UserError, match="the folder is empty"):
        sources.open_source(spark, Ingest(source="folder", path=str(tmp_path)))


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "dev", "testing")])
def test_folders_named_as_splits_are_splits(spark, tmp_path, names):
    train, validation, test = names
    files = [f"{train}/cat/1.png", f"{train}/dog/1.png", f"{validation}/cat/1.png", f"{test}/dog/1.png"]
    source, found = rows(spark, put(tmp_path, *files, f"{train}/stray.png", "stray.png"))
    assert (source.classes, source.splits) == (("cat", "dog"), {"train", "validation", "test"})
    assert {id: (row.label, row.split, row.reason) for id, row in found.items()} == {
        files[0]: ("cat", "train", None),
        files[1]: ("dog", "train", None),
        files[2]: ("cat", "validation", None),
        files[3]: ("dog", "test", None),
        f"{train}/stray.png": (None, "train", "not inside a class folder, as the other files are"),
        "stray.png": (None, None, "not inside a folder of a split, as the other files are"),
    }


def test_splits_without_classes(spark, tmp_path):
    source, found = rows(spark, put(tmp_path, "train/1.png", "train/2.png", "valid/3.png"))
    assert (source.classes, source.splits) == ((), {"train", "validation"})
    # Without test images of its own, ids decide which training images are those.
    assert {id: (row.split, row.reason) for id, row in found.items()} == {
        "train/1.png": (None, None),
        "train/2.png": (None, None),
        "valid/3.png": ("validation", None),
    }


def test_a_class_may_be_named_as_a_split_beside_others(spark, tmp_path):
    source, found = rows(spark, put(tmp_path, "train/1.png", "boat/1.png"))
    assert (source.classes, source.splits) == (("boat", "train"), set())
    assert found["train/1.png"].split is None


@pytest.mark.fault(
    "data",
    "links to folders, out of the root, to one another and in circles",
    "each folder is read once; a link that leads back is told",
)
def test_links_to_folders_are_followed_once_and_not_in_circles(spark, tmp_path):
    put(tmp_path, "elsewhere/cats/1.png", "elsewhere/cats/more/2.png", "images/dog/1.png")
    images = tmp_path / "images"
    (images / "cat").symlink_to(tmp_path / "elsewhere" / "cats")
    (images / "dog" / "back").symlink_to(images)
    (images / "dog" / "a").symlink_to(tmp_path / "elsewhere" / "cats" / "more")
    (images / "dog" / "b").symlink_to(tmp_path / "elsewhere" / "cats" / "more")
    (images / "dog" / "nothing").symlink_to(tmp_path / "nothing")
    source, found = rows(spark, Ingest(source="folder", path=str(images)))
    assert source.classes == ("cat", "dog")
    again = "a link to a folder that another link led to, which is not followed again"
    (followed,) = {"dog/a/2.png", "dog/b/2.png"} & found.keys()
    (passed,) = {"dog/a", "dog/b"} - {followed.removesuffix("/2.png")}
    assert {id: (row.label, row.reason) for id, row in found.items()} == {
        "cat/1.png": ("cat", None),
        "cat/more/2.png": ("cat", None),
        "dog/1.png": ("dog", None),
        followed: ("dog", None),
        passed: ("dog", again),
        "dog/back": ("dog", "a link to a folder that it is in, which is not followed"),
        "dog/nothing": ("dog", "not a file"),
    }


@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints", "@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information"]
)
def test_hidden_and_system_folders_hold_no_images_of_a_class(spark, tmp_path, hidden):
    names = [f"{hidden}/cat.png", f"cat/{hidden}/deep/1.png", f"only/{hidden}/1.png"]
    source, found = rows(spark, put(tmp_path, "cat/1.png", *names))
    assert source.classes == ("cat",)
    assert found.pop("cat/1.png").reason is None
    assert {id: row.reason for id, row in found.items()} == dict.fromkeys(
        names, f"inside {hidden!r}, a hidden or system folder"
    )


def test_folders_of_digits_sort_as_numbers_and_can_be_named(spark, tmp_path):
    config = put(tmp_path, *(f"{i}/1.png" for i in range(11)))
    source, _ = rows(spark, config)
    assert source.classes == tuple(map(str, range(11)))
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    source, found = rows(spark, Ingest(source="folder", path=config.path, classes=names))
    assert source.classes == names
    assert found["2/1.png"].label == "two"
    assert (found["10/1.png"].label, found["10/1.png"].reason) == (None, "label 10 has no name in ingest.classes")


@pytest.mark.fault(
    "data",
    "files and folders whose names are not UTF-8",
    "rejected with that reason, their bytes written out",
)
def test_a_name_that_is_not_utf8_gets_that_reason(spark, tmp_path):
    config = put(tmp_path, "cat/1.png")
    os.mkdir(os.fsencode(tmp_path) + b"/d\xf6g")
    for name in (b"/cat/caf\xe9.png", b"/d\xf6g/1.png"):
        with open(os.fsencode(tmp_path) + name, "wb") as out:
            out.write(png())
    source, found = rows(spark, config)
    assert source.classes == ("cat",)
    assert {id: row.reason for id, row in found.items()} == {
        "cat/1.png": None,
        "cat/caf\\xe9.png": "its name is not UTF-8",
        "d\\xf6g/1.png": "its name is not UTF-8",
    }


@pytest.mark.parametrize("source", ["folder", "idx", "table"])
def test_a_path_of_any_characters_is_that_path(spark, tmp_path, source):
    root = tmp_path / "a[1]{x}*?"
    root.mkdir()
    put(root, "cat/1.png") if source == "folder" else None
    put_idx(root, "train", idx(IMAGES[:1])) if source == "idx" else None
    if source == "table":
        pq.write_table(pa.table({"id": ["a"], "content": [png()]}), root / "part-0.parquet")
    # A pattern of that name would find this one.
    (tmp_path / "a1xbc").mkdir()
    opened, found = rows(spark, Ingest(source=source, path=str(root)))
    assert len(found) == opened.count == 1


# --- tables ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frame(spark):
    return spark.createDataFrame(
        [
            ("a", 1, bytearray(png(1)), "cat"),
            ("b", 2, None, "dog"),
            (None, 3, bytearray(png(3)), "cat"),
            ("d", 4, bytearray(png(4)), None),
        ],
        "id string, number int, content binary, kind string",
    )


@pytest.mark.parametrize("from_catalog", [True, False], ids=["catalog", "parquet"])
def test_a_table_is_read_by_name_or_by_path(spark, frame, tmp_path, from_catalog):
    path = "images_table" if from_catalog else f"{tmp_path}/table"
    if from_catalog:
        frame.createOrReplaceTempView(path)
    else:
        frame.write.parquet(path)
    source, found = rows(spark, Ingest(source="table", path=path, id_column="number", label_column="kind"))
    assert (source.classes, source.count) == (("cat", "dog"), 4)
    assert {id: (row.label, row.reason) for id, row in found.items()} == {
        "1": ("cat", None),
        "2": ("dog", "no image (null)"),
        "3": ("cat", None),
        "4": (None, "no label (null)"),
    }
    assert bytes(found["3"].content) == png(3)


def test_a_null_id_is_a_reason(frame):
    reasons = {row.id: row.reason for row in sources.from_frame(frame, "id", "content").frame.collect()}
    assert len(reasons) == 4
    assert (reasons.pop("a"), reasons.pop("b"), reasons.pop("d")) == (None, "no image (null)", None)
    assert list(reasons.values()) == ["no id (null)"]


def test_columns_may_have_any_name(spark):
    names = ("file.name", "größe des bildes", "label.0")
    made = spark.createDataFrame([("a", bytearray(png()), "cat")], "id string, content binary, kind string").toDF(
        *names
    )
    assert [(row.id, bytes(row.content), row.label) for row in sources.from_frame(made, *names).frame.collect()] == [
        ("a", png(), "cat")
    ]


@pytest.mark.parametrize(
    "columns, message",
    [
        (
            ("ident", "content", ""),
            r"^ingest\.id_column = 'ident': not a column of the table \(columns: id, number, content, kind\)",
        ),
        (("id", "image", ""), r"^ingest\.image_column = 'image': not a column of the table"),
        (("id", "content", "label"), r"^ingest\.label_column = 'label': not a column of the table"),
        (("id", "kind", ""), r"^ingest\.image_column = 'kind': expected a binary column, .*, found string"),
        (("id", "number", ""), r"^ingest\.image_column = 'number': expected a binary column, .*, found int"),
    ],
)
def test_wrong_columns_are_refused(frame, columns, message):
    with pytest.raises(UserError, match=message):
        sources.from_frame(frame, *columns)


def parquet(folder, **files: pa.Table) -> Ingest:
    for name, table in files.items():
        path = folder / f"{name.replace('__', '/').replace('_of_', '-of-')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    return Ingest(source="table", path=str(folder))


def ids(*names: str) -> pa.Table:
    return pa.table({"id": list(names), "content": [png()] * len(names)})


def test_parquet_files_named_as_splits_are_splits(spark, tmp_path):
    files = {"train-00000_of_00002": ids("a"), "train-00001_of_00002": ids("b"), "test-00000_of_00001": ids("c")}
    source, found = rows(spark, parquet(tmp_path, **files, **{"validation-00000_of_00001": ids("d")}))
    assert (source.splits, source.count) == ({"train", "validation", "test"}, 4)
    assert {id: row.split for id, row in found.items()} == {"a": "train", "b": "train", "c": "test", "d": "validation"}


def test_folders_of_parquet_files_named_as_splits_are_splits(spark, tmp_path):
    _, found = rows(spark, parquet(tmp_path, train__0=ids("a"), test__0=ids("b"), test__1=ids("c")))
    assert {id: row.split for id, row in found.items()} == {"a": "train", "b": "test", "c": "test"}


def test_files_of_one_table_whose_names_say_nothing(spark, tmp_path):
    source, found = rows(spark, parquet(tmp_path, testimony=ids("a"), **{"part-0": ids("b")}))
    assert source.splits == set()
    assert {id: row.split for id, row in found.items()} == {"a": None, "b": None}


def test_a_column_of_splits(spark):
    frame = spark.createDataFrame(
        [("a", "train"), ("b", "Valid"), ("c", " TEST "), ("d", "extra"), ("e", None)], "id string, fold string"
    ).withColumn("content", F.lit(bytearray(png())))
    source = sources.from_frame(frame, "id", "content", split_column="fold")
    assert source.splits == {"train", "validation", "test"}
    assert {row.id: (row.split, row.reason) for row in source.frame.collect()} == {
        "a": ("train", None),
        "b": ("validation", None),
        "c": ("test", None),
        "d": (None, "split extra is not train, validation or test"),
        "e": (None, "no split (null)"),
    }


def test_rows_that_a_stream_did_not_commit_are_not_read(spark, tmp_path):
    parquet(tmp_path / "in", **{"part-0": ids("a", "b")})
    stream = spark.readStream.schema("id string, content binary").parquet(str(tmp_path / "in"))
    query = stream.writeStream.option("checkpointLocation", str(tmp_path / "state")).trigger(availableNow=True)
    query.start(str(tmp_path / "out"), format="parquet").awaitTermination()
    pq.write_table(ids("c"), tmp_path / "out" / "part-of-a-batch-that-died.parquet")
    _, found = rows(spark, Ingest(source="table", path=str(tmp_path / "out")))
    assert set(found) == {"a", "b"}


@pytest.mark.parametrize(
    "marker, message",
    [
        (".hoodie/hoodie.properties", "is a table of Hudi, whose deleted rows are still in its files"),
        ("metadata/v2.metadata.json", "is a table of Iceberg, whose deleted rows are still in its files"),
        ("_delta_log/00000000000000000000.json", r"Delta's jars are not in the session"),
    ],
)
def test_a_folder_of_a_format_with_deleted_rows_is_not_read_as_parquet(spark, tmp_path, marker, message):
    config = parquet(tmp_path, **{"data__part-0": ids("a"), "part-0": ids("b")})
    (tmp_path / marker).parent.mkdir()
    (tmp_path / marker).write_text("{}")
    with pytest.raises(UserError, match=message):
        sources.open_source(spark, config)
    with pytest.raises(UserError, match="deleted rows"):
        sources.open_source(spark, Ingest(source="table", path=f"{tmp_path}/data"))


def labelled(spark, values: list, kind: str, **options):
    frame = spark.createDataFrame(
        [(str(i), bytearray(png()), value) for i, value in enumerate(values)],
        f"id string, content binary, label {kind}",
    )
    return sources.from_frame(frame, "id", "content", "label", **options)


@pytest.mark.parametrize("kind", ["int", "string", "bigint"])
def test_whole_numbers_sort_as_numbers(spark, kind):
    values = [str(i) if kind == "string" else i for i in range(11)]
    assert labelled(spark, values, kind).classes == tuple(map(str, range(11)))


def test_classes_name_whole_numbers(spark):
    source = labelled(spark, [0, 1, 2, -1], "int", classes=("cat", "dog"))
    assert source.classes == ("cat", "dog")
    assert {row.id: (row.label, row.reason) for row in source.frame.collect()} == {
        "0": ("cat", None),
        "1": ("dog", None),
        "2": (None, "label 2 has no name in ingest.classes"),
        "3": (None, "label -1 has no name in ingest.classes"),
    }


def test_classes_choose_and_order_labels_that_are_text(spark):
    source = labelled(spark, ["dog", "cow", "cat"], "string", classes=("dog", "cat"))
    assert source.classes == ("dog", "cat")
    assert {row.id: (row.label, row.reason) for row in source.frame.collect()} == {
        "0": ("dog", None),
        "1": (None, "label cow has no name in ingest.classes"),
        "2": ("cat", None),
    }


@pytest.mark.parametrize(
    "kind, value", [("double", 1.0), ("float", float("nan")), ("array<int>", [1]), ("map<string,int>", {"a": 1})]
)
def test_labels_of_other_types_are_refused(spark, kind, value):
    with pytest.raises(UserError, match=r"^ingest\.label_column = 'label': expected text or whole numbers, found "):
        labelled(spark, [value], kind)


def test_blank_text_is_no_label(spark):
    source = labelled(spark, ["cat", "", " \t"], "string")
    assert source.classes == ("cat",)
    assert [row.reason for row in source.frame.orderBy("id").collect()] == [
        None,
        "no label (blank)",
        "no label (blank)",
    ]


def test_captions_of_an_array_are_lines(spark):
    frame = spark.createDataFrame(
        [("a", bytearray(png()), ["a cat", "a pet"])], "id string, content binary, texts array<string>"
    )
    (row,) = sources.from_frame(frame, "id", "content", caption_column="texts").frame.collect()
    assert row.caption == "a cat\na pet"


@pytest.mark.parametrize("column", ["image", "image.bytes"])
def test_the_image_struct_of_public_parquet(spark, column):
    frame = spark.createDataFrame([(bytearray(png(1)), "1.png"), (None, "2.png")], "bytes binary, path string").select(
        F.struct("bytes", "path").alias("image")
    )
    source = sources.from_frame(frame, "image.path", column)
    found = {row.id: row for row in source.frame.collect()}
    assert bytes(found["1.png"].content) == png(1)
    assert found["2.png"].reason == "no image (null)"


def test_an_id_may_be_the_images_hash(spark):
    frame = spark.createDataFrame([(bytearray(png(value)),) for value in (1, 2, 1)] + [(None,)], "content binary")
    found = sources.from_frame(frame, "", "content").frame.collect()
    counts = collections.Counter(row.id for row in found if row.reason is None)
    assert counts == {hashlib.sha256(png(1)).hexdigest()[:32]: 2, hashlib.sha256(png(2)).hexdigest()[:32]: 1}
    assert [row.reason for row in found if row.reason] == ["no image (null)"]


def test_images_of_sparks_own_reader(spark, tmp_path):
    pixels = np.random.default_rng(4).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    frame = spark.read.format("image").load(str(tmp_path))
    (row,) = sources.from_frame(frame, "image.origin", "image").frame.collect()
    assert (row.id, row.height, row.width, row.channels) == (f"file://{tmp_path}/1.png", 5, 7, 3)
    assert row.content == pixels.tobytes()


def test_images_in_arrays_of_bytes(spark):
    numbers = [byte - 256 if byte > 127 else byte for byte in png(5)]
    frame = spark.createDataFrame([("a", numbers), ("b", [1, None])], "id string, content array<tinyint>")
    found = {row.id: row for row in sources.from_frame(frame, "id", "content").frame.collect()}
    assert found["a"].content == png(5)
    assert found["b"].reason == "an array of bytes with null in it"
