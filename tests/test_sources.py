"""Every record of a source comes out once: as an image, or as a reason why not."""

import gzip
import io
import os
import struct
import zlib

import fsspec
import numpy as np
import pytest
from PIL import Image

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


def test_a_name_that_is_not_utf8_does_not_stop_the_others(spark, tmp_path):
    config = put(tmp_path, "cat/1.png")
    with open(os.fsencode(tmp_path) + b"/cat/caf\xe9.png", "wb") as out:
        out.write(png())
    _, found = rows(spark, config)
    assert len(found) == 2
    assert found["cat/1.png"].reason is None


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
    rows = list(folder._list(root, 2**20, True, iter([None, "cat"])))
    assert {id: url for id, url, _, _ in rows} == {name: f"{root}/{name}" for name in names}
    assert all(lake.read_bytes(url) == png() for _, url, _, _ in rows)


@pytest.mark.parametrize("name", ["a b", "50%25", "a#b", "a?b", "a*[b]", "añ", "a::b", "a\\b"])
def test_a_file_is_read_by_its_url_whatever_its_name(spark, tmp_path, name):
    _, found = rows(spark, put(tmp_path, f"{name}/{name}.png"))
    (row,) = found.values()
    assert (row.id, row.label, row.reason) == (f"{name}/{name}.png", name, None)
    assert lake.read_bytes(row.url) == png()


def test_an_empty_folder_is_refused(spark, tmp_path):
    with pytest.raises(UserError, match="the folder is empty"):
        sources.open_source(spark, Ingest(source="folder", path=str(tmp_path)))


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
        (("id", "kind", ""), r"^ingest\.image_column = 'kind': expected a binary column, found string"),
        (("id", "number", ""), r"^ingest\.image_column = 'number': expected a binary column, found int"),
    ],
)
def test_wrong_columns_are_refused(frame, columns, message):
    with pytest.raises(UserError, match=message):
        sources.from_frame(frame, *columns)
