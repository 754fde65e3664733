"""Faults in what is read: files that mean harm, that are damaged, or that are odd, each made for real."""

import functools
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from conftest import make_config
from PIL import Image

from gan_spark import lake as lakes
from gan_spark import networks
from gan_spark.config import Ingest, UserError, replaced
from gan_spark.data import captions, images, ingest, reader, schema, sources, tasks
from gan_spark.data.sources import cifar10
from gan_spark.sampling import generate
from gan_spark.serving import asking
from gan_spark.serving.refusal import Refused

# --- weights and networks in files -----------------------------------------------------


def dense() -> tf.keras.Model:
    tf.keras.utils.set_random_seed(3)
    return tf.keras.Sequential([tf.keras.Input([4]), tf.keras.layers.Dense(3, name="dense")])


def kernel_of(file) -> str:
    """Path of the dense layer's kernel in a file of weights, of either format."""
    paths = []
    file.visititems(lambda name, item: paths.append(name) if getattr(item, "shape", None) == (4, 3) else None)
    return paths[0]


def link(file, path: str, other: str) -> None:
    with h5py.File(other, "w") as secret:
        secret["kernel"] = np.full((4, 3), 7, np.float32)
    del file[path]
    file[path] = h5py.ExternalLink(other, "/kernel")


def values_elsewhere(file, path: str, other: str) -> None:
    np.full((4, 3), 7, np.float32).tofile(other)
    del file[path]
    file.create_dataset(path, (4, 3), np.float32, external=other)


def virtual(file, path: str, other: str) -> None:
    with h5py.File(other, "w") as secret:
        secret["kernel"] = np.full((4, 3), 7, np.float32)
    layout = h5py.VirtualLayout((4, 3), np.float32)
    layout[:] = h5py.VirtualSource(other, "kernel", (4, 3))
    del file[path]
    file.create_virtual_dataset(path, layout)


def bomb(file, path: str, other: str) -> None:
    """A terabyte of zeros in a few bytes."""
    del file[path]
    file.create_dataset(path, (2**40 // 4,), np.float32, chunks=(2**20,), compression="gzip")


def referred(file, path: str, other: str) -> None:
    """An array that hangs on nothing, to which an attribute refers in place of a name."""
    group = file[path].parent
    np.full((4, 3), 7, np.float32).tofile(other)
    hidden = file.create_dataset(None, (4, 3), np.float32, external=other)
    group.attrs.create("weight_names", np.array([hidden.ref], h5py.ref_dtype), dtype=h5py.ref_dtype)


def change_weights(path: str, change, other: str) -> None:
    """`change(file, path of the kernel, other)` on the arrays in a model's file."""
    if path.endswith(".h5"):
        with h5py.File(path, "r+") as file:
            change(file, kernel_of(file), other)
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    inner = path + ".inner"
    with open(inner, "wb") as out:
        out.write(parts["model.weights.h5"])
    change_weights_of_inner(inner, change, other)
    with open(inner, "rb") as file:
        parts["model.weights.h5"] = file.read()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def change_weights_of_inner(path: str, change, other: str) -> None:
    with h5py.File(path, "r+") as file:
        change(file, kernel_of(file), other)


@pytest.mark.fault(
    "data",
    "an HDF5 file of weights, or one in a .keras file, whose arrays are in other files, or a thousand times its size",
    "refused before anything of it is read; the error names the array and where it leads",
)
@pytest.mark.parametrize(
    "change, found",
    [
        (link, "/dense/.*, a link to '/kernel' in the file '.*secret'"),
        (values_elsewhere, "whose values are in the file '.*secret'"),
        (virtual, "whose values are in other datasets"),
        (referred, "with an attribute that refers to other objects"),
        (bomb, r"arrays of 1,099,\d{3},\d{3},\d{3} bytes in a file of"),
    ],
)
@pytest.mark.parametrize("kind", ["network.keras", "network.h5", "weights.h5", "new.weights.h5"])
def test_weights_that_lead_out_of_their_file_are_refused(tmp_path, kind, change, found):
    path, secret, network = str(tmp_path / kind), str(tmp_path / "secret"), dense()
    is_whole = kind.startswith("network")
    (network.save if is_whole else network.save_weights)(path)
    change_weights(path, change, secret)
    with pytest.raises(
        UserError, match=f"{kind}: expected a file that holds a network's arrays itself, found .*{found}"
    ):
        if is_whole:
            networks.load_file("file://" + path)
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tf.keras.applications, "Xception", lambda weights: dense())
                networks.load("Xception", path)


@pytest.mark.fault(
    "data",
    "a .keras file that unpacks to a thousand times its size",
    "refused before it is unpacked; the error states both sizes",
)
def test_a_network_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path):
    path = str(tmp_path / "network.keras")
    dense().save(path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(200 * 2**20))
    with pytest.raises(UserError, match=r"network.keras: expected a file .* found 209,\d{3},\d{3} bytes packed into 2"):
        networks.load_file("file://" + path)


# --- rows of a table -------------------------------------------------------------------


def png(value: int = 99, size: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new("L", (size, size), value).save(out, "PNG")
    return out.getvalue()


def manifest(**columns) -> schema.Manifest:
    config = Ingest(source="table", height=8, width=8)
    return schema.Manifest(
        8, 8, 1, "raw", (), {"train": 1}, 0, "", {**vars(config)}, "2026-01-01T00:00:00+00:00", **columns
    )


def decoded(folder, rows: list[dict], **columns) -> dict[str, dict]:
    """What a task makes of these rows of a table, by their ids."""
    names = ("url", "height", "width", "channels", "label", "split", "reason", "caption", "embedding", "known_hash")
    rows = [{**dict.fromkeys(names), "content": png(), "source_version": b"", **row} for row in rows]
    work = tasks.Work(Ingest(height=8, width=8), manifest(**columns), frozenset(), str(folder), str(folder), 100)
    table, _ = tasks._decode(work, pa.RecordBatch.from_pylist(rows), None)
    assert table.num_rows == len(rows)
    return {row["id"]: row for row in table.to_pylist()}


NO_TEXT = "no caption, in a dataset with captions"
CAPTIONS = {  # caption: what is kept of it, or why it is rejected
    "a cat": ("a cat", None),
    "a cat\n\u200b\n\na pet\n \u00a0": ("a cat\na pet", None),
    "\u200fכלב\u200f \u202eשחר\u202c": ("\u200fכלב\u200f \u202eשחר\u202c", None),
    "🐈": ("🐈", None),
    "x" * captions.LIMIT: ("x" * captions.LIMIT, None),
    "x" * 2**20: (None, "caption of 1048576 characters, over the limit of 10000"),
    **dict.fromkeys(("", " \n\t", "\u200b\u200c\u200d\ufeff", "\u200e\u200f\u202a\u202e\u2066\u2069"), (None, NO_TEXT)),
    **dict.fromkeys(("\u0301", "\u3164\u2800\uffa0", "\u00a0\u2003\u2028", "\x00\x07", "\ufffd"), (None, NO_TEXT)),
}


@pytest.mark.fault(
    "data",
    "captions of 1 MB, of no text (U+200B, fillers, marks alone) and of right-to-left marks",
    "what has text is kept as it is, but for lines without any; the rest is rejected with its reason",
)
def test_captions_are_kept_or_rejected_with_a_reason(tmp_path):
    rows = [{"id": f"{i}", "caption": caption} for i, caption in enumerate([*CAPTIONS, None])]
    found = decoded(tmp_path, rows, captioned=True)
    for row, (kept, reason) in zip(rows, [*CAPTIONS.values(), (None, NO_TEXT)], strict=True):
        assert (found[row["id"]]["caption"], found[row["id"]]["reason"]) == (kept, reason), row
        assert (found[row["id"]]["split"] == tasks.REJECTED) == (reason is not None)


@pytest.mark.fault(
    "data",
    "a request, or a config, with a caption of 1 MB or of no text",
    "refused, with what is expected",
)
@pytest.mark.parametrize("caption", [caption for caption, (kept, _) in CAPTIONS.items() if kept is None])
def test_no_picture_is_asked_for_by_a_caption_without_text(tmp_path, caption):
    with pytest.raises(Refused, match="caption: expected text of 1 to 10000 characters"):
        asking._caption(caption)
    config = make_config(str(tmp_path), "stackgan1", generate={"captions": ("a cat", caption)})
    config = replaced(config, model={"text": "captions", "encoder": "texts"})
    with pytest.raises(UserError, match="generate.captions: expected texts of 1 to 10000 characters, found"):
        generate.check_settings(config, config.model)


@pytest.mark.fault(
    "data",
    "a table with captions of 1 MB, and labels of no text",
    "rejected before Python has them; the other rows are as they were",
)
def test_long_captions_and_blank_labels_of_a_table_are_rejected(spark):
    rows = [
        ("good", "a cat", "cat"),
        ("long", "x" * 2**20, "cat"),
        ("blank", "a cat", "\u200b\u00a0"),
        ("filler", "a cat", "\u3164"),
    ]
    frame = spark.createDataFrame(
        [(*row, bytearray(png())) for row in rows], "id string, text string, label string, content binary"
    )
    source = sources.from_frame(frame, "id", "content", "label", caption_column="text")
    assert source.classes == ("cat",)
    assert {row.id: (row.caption, row.label, row.reason) for row in source.frame.collect()} == {
        "good": ("a cat", "cat", None),
        "long": (None, "cat", "caption of 1048576 characters, over the limit of 10000"),
        "blank": ("a cat", None, "no label (blank)"),
        "filler": ("a cat", None, "no label (blank)"),
    }


@pytest.mark.fault(
    "data",
    "a dataset in which captions are far larger than images",
    "row groups are of fewer rows, and a rank's pool too: memory stays bounded",
)
def test_captions_count_in_a_ranks_memory(tmp_path):
    url = lakes.to_url(str(tmp_path / "datasets" / "texts"))
    held = manifest(captioned=True)
    name, count = "split=train/part-00000-0.parquet", 9000
    rows = {
        "id": [f"{i}" for i in range(count)],
        "image": [schema.npy_header((8, 8, 1)) + bytes(64)] * count,
        "caption": [f"{i} " + "x" * 9_900 for i in range(count)],
        **dict.fromkeys(schema.SOURCE_COLUMNS, [b""] * count),
    }
    with tasks.ParquetFile(f"{url}/{name}", tasks.rows_schema(held), 100_000) as file:
        for start in range(0, count, 500):
            file.add(pa.table({column: values[start : start + 500] for column, values in rows.items()}, file.schema))
    sizes = [
        pq.ParquetFile(tmp_path / "datasets" / "texts" / name).metadata.row_group(i).num_rows
        for i in range(file.groups)
    ]
    assert sum(sizes) == count and max(sizes) * 9_900 < 3 * tasks.ROW_GROUP_BYTES
    schema.write_manifest(url, held)
    groups = reader.RowGroups(url, "train", "", held)
    assert 2 * 9_900 < groups.caption_bytes() < 3 * 9_900
    assert reader.RowGroups(url, "train", "", manifest()).caption_bytes() == 0
    pools = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "shuffled", lambda groups, pool, *_: pools.append(pool) or iter(()))
        list(reader._stream(groups, 4, 0, 1, 0, 8192, 0))
    assert pools[0] * groups.caption_bytes() <= reader._POOL_BYTES < 8192 * groups.caption_bytes()


EMBEDDINGS = {
    "nan": ([0.5, float("nan")], "embedding with a number that is not finite"),
    "infinite": ([0.5, float("-inf")], "embedding with a number that is not finite"),
    "short": ([0.5], "embedding of 1 numbers; expected 2, as in the first row"),
    "long": ([0.5] * 1000, "embedding of 1000 numbers; expected 2, as in the first row"),
    "none": (None, "embedding of 0 numbers; expected 2, as in the first row"),
    "null inside": ([0.5, None], "embedding with a number that is not finite"),
    "largest": ([3.4e38, -3.4e38], None),
    "good": ([0.5, -1.0], None),
}


@pytest.mark.fault(
    "data",
    "embeddings with NaN, infinities, of another length, or with nothing in them",
    "rejected with the reason; the others are stored to the bit",
)
def test_embeddings_that_are_not_numbers_are_rejected(tmp_path):
    rows = [{"id": name, "embedding": values} for name, (values, _) in EMBEDDINGS.items()]
    found = decoded(tmp_path, rows, embedding=(1, 2))
    assert {id: row["reason"] for id, row in found.items()} == {
        name: reason for name, (_, reason) in EMBEDDINGS.items()
    }
    for name in ("largest", "good"):
        stored = schema.unpack_arrays([found[name]["embedding"]], (1, 2), np.float32)
        np.testing.assert_array_equal(stored[0, 0], np.float32(EMBEDDINGS[name][0]))


# --- images ----------------------------------------------------------------------------


def of_frames(first: bytes, frame: bytes, end: bytes) -> bytes:
    return first + 100_000 * frame + end


def gif_of_frames() -> bytes:
    """100,000 frames, of which the second and all others are of 60,000 x 60,000 pixels."""
    data = encoded(Image.new("L", (8, 8), 99), "GIF")
    start = data.rindex(b"\x2c\x00\x00\x00\x00\x08\x00\x08\x00")  # the frame's descriptor
    large = b"\x2c\x00\x00\x00\x00" + struct.pack("<HH", 60_000, 60_000) + data[start + 9 : -1]
    return of_frames(data[:-1], large, b";")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes, pixels: bytes = zlib.compress((b"\0" + b"\x63" * 8) * 8), side: int = 8) -> bytes:
    """A grey PNG with chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def apng_of_frames() -> bytes:
    control = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 1, 0, 0))
    frame = control + chunk(b"fdAT", b"\0\0\0\1" + zlib.compress(bytes(72)))
    end = chunk(b"IEND", b"")
    whole = png_with(chunk(b"acTL", struct.pack(">II", 100_000, 0)))
    return of_frames(whole[: -len(end)], frame, end)


def tiff_of_frames(loops: bool) -> bytes:
    """A chain of 100,000 directories, or one whose second leads to itself."""
    tags = ((256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 64))
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    start = 8 + 64
    data = b"II*\0" + struct.pack("<I", start) + b"\x63" * 64
    size = len(directory) + 4
    places = [start + size * number for number in range(2 if loops else 100_000)]
    following = [*places[1:], places[1] if loops else 0]
    return data + b"".join(directory + struct.pack("<I", place) for place in following)


def encoded(image, format: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


@functools.cache
def zeros(count: int = 150 * 2**20) -> bytes:
    """What unpacks to so many zeros."""
    packer, block = zlib.compressobj(9), bytes(2**20)
    return b"".join(packer.compress(block) for _ in range(count // len(block))) + packer.flush()


def ico(inner: bytes) -> bytes:
    """An icon whose directory says 16 x 16."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def rows_then_zeros() -> bytes:
    packer, block = zlib.compressobj(9), bytes(2**20)
    data = packer.compress((b"\0" + b"\x63" * 8) * 8)
    return data + b"".join(packer.compress(block) for _ in range(150)) + packer.flush()


# A file: the value of all its pixels, or why it is rejected.
BOMBS = {
    "gif of frames": (gif_of_frames, 99),
    "apng of frames": (apng_of_frames, 99),
    "tiff of frames": (functools.partial(tiff_of_frames, False), 99),
    "tiff that loops": (functools.partial(tiff_of_frames, True), 99),
    "pixels that go on": (lambda: png_with(pixels=rows_then_zeros()), 99),
    "text": (lambda: png_with(chunk(b"zTXt", b"Comment\0\0" + zeros())), 99),
    "profile": (lambda: png_with(chunk(b"iCCP", b"profile\0\0" + zeros())), 99),
    "pixels of zeros": (lambda: png_with(pixels=zeros(), side=20_000), "declares 20000 x 20000 pixels"),
    "icon": (lambda: ico(png_with(pixels=zeros(), side=20_000)), "holds an image of more pixels than the limit of 64"),
    "smaller icon": (
        lambda: ico(png_with(pixels=zeros(90 * 2**20), side=9_000)),
        "holds an image of more pixels than the limit of 64",
    ),
    "large frame": (
        lambda: encoded(Image.new("L", (8, 8)), "GIF").replace(
            b"\x2c\x00\x00\x00\x00\x08\x00\x08\x00", b"\x2c\x00\x00\x00\x00" + struct.pack("<HH", 60_000, 60_000)
        ),
        "declares 60000 x 60000 pixels",
    ),
}
DECODE = """
import json, pathlib, resource, sys
from gan_spark.data import images

images.decode(pathlib.Path(sys.argv[1]).read_bytes(), 8, 8, 1)  # loads what there is to load
size = 4096 * int(pathlib.Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (size + 100 * 2**20,) * 2)
found = {}
for path in map(pathlib.Path, sys.argv[2:]):
    try:
        pixels = images.decode(path.read_bytes(), 8, 8, 1)
        found[path.name] = int(pixels.min()) if pixels.min() == pixels.max() else "many values"
    except images.BadImage as error:
        found[path.name] = str(error)
print(json.dumps(found))
"""


@pytest.mark.fault(
    "data",
    "images that are bombs: of 100,000 frames, of directories that loop, by zlib's ratio in pixels, text and profiles",
    "in 100 MB and seconds the first frame is read, or the file is rejected with its reason",
)
def test_bombs_by_frames_and_by_ratio_are_read_or_rejected_in_bounded_memory(tmp_path):
    for name, (make, _) in BOMBS.items():
        (tmp_path / name).write_bytes(make())
    (tmp_path / "plain").write_bytes(png())
    began = time.monotonic()
    command = [sys.executable, "-c", DECODE, *(str(tmp_path / name) for name in ("plain", *BOMBS))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    for name, (_, expected) in BOMBS.items():
        if isinstance(expected, int):
            assert found[name] == expected, (name, found[name])
        else:
            assert re.search(expected, str(found[name])), (name, found[name])
    assert time.monotonic() - began < 120


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("../../evil.png", png())
    return out.getvalue()


PAGE = b"<html><script>alert(1)</script></html>"
POLYGLOTS = {
    "png and zip": (png() + zipped(), 99),
    "png and page": (png_with(chunk(b"tEXt", b"Comment\0" + PAGE)), 99),
    "png and png": (png() + png(1), 99),
    "gif and script": (encoded(Image.new("L", (8, 8), 99), "GIF") + b"*/=1;alert(1)//", 99),
    "bmp and page": (encoded(Image.new("L", (8, 8), 99), "BMP") + PAGE, 99),
    "jpeg and archive": (encoded(Image.new("L", (8, 8), 99), "JPEG", comment=PAGE) + zipped(), 99),
    "zip and png": (zipped() + png(), "not an image in a known format .*it starts with b'PK"),
    "pdf and png": (b"%PDF-1.4\n" + png(), "not an image in a known format .*it starts with b'%PDF"),
    "page and png": (PAGE + png(), "not an image in a known format .*it starts with b'<html"),
    "script of postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n" + png(), "not an image in a known"),
    "svg": (
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "not an image in a known",
    ),
}


@pytest.mark.fault(
    "data",
    "polyglots: files that are an image and an archive, a page or a script at once",
    "read as the image that they begin as, or rejected; nothing else in them is opened",
)
@pytest.mark.parametrize("name", POLYGLOTS)
def test_polyglots_are_images_or_nothing(name):
    data, expected = POLYGLOTS[name]
    if isinstance(expected, int):
        assert np.ptp(images.decode(data, 8, 8, 1)) == 0 and images.decode(data, 8, 8, 1)[0, 0, 0] == expected
    else:
        with pytest.raises(images.BadImage, match=expected):
            images.decode(data, 8, 8, 1)


def archived(path, *members: tuple[str, bytes | str | None]) -> None:
    """A .tar.gz of members: (name, bytes of a file; name to which a link leads; or None for a folder)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
            else:
                member.type = tarfile.DIRTYPE if content is None else tarfile.SYMTYPE
                member.linkname = content or ""
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)


@pytest.mark.fault(
    "data",
    "an archive whose members are named `..`, lie at the root, or are links to other files",
    "nothing is unpacked; what is a batch is read once, and links lead nowhere",
)
def test_an_archives_members_stay_inside_it(spark, tmp_path):
    records = b"".join(bytes([label]) + bytes([label * 20]) * 3072 for label in range(4))
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    (tmp_path / "secret").write_bytes(records)
    archived(
        folder / "cifar.tar.gz",
        ("data_batch_1.bin", str(tmp_path / "secret")),
        ("../../data_batch_2.bin", records),
        (f"{tmp_path}/in/data_batch_3.bin", records),
        ("../../evil.sh", b"#!/bin/sh"),
        ("../..", None),
        ("data_batch_4.bin", "../../secret"),
        ("x/../../../data_batch_4.bin", records[:3073]),
    )
    before = sorted(tmp_path.rglob("*"))
    rows = sources.open_source(spark, Ingest(source="cifar10", path=str(folder / "cifar.tar.gz"))).frame.collect()
    assert sorted(row.id for row in rows) == [
        *(f"data_batch_{number}.bin/{index:05d}" for number in (2, 3) for index in range(4)),
        "data_batch_4.bin/00000",
    ]
    assert all(row.reason is None for row in rows) and sorted(tmp_path.rglob("*")) == before


@pytest.mark.fault(
    "data",
    "an archive of CIFAR-10 a member of which unpacks to gigabytes",
    "rejected, once as much of it as a batch could have is read",
)
def test_a_batch_that_unpacks_to_gigabytes_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "_LARGEST", 2**20)
    archived(tmp_path / "cifar.tar.gz", ("data_batch_1.bin", bytes(50 * 2**20)))
    data = cifar10._member_bytes(lakes.to_url(str(tmp_path / "cifar.tar.gz")), "data_batch_1.bin")
    assert len(data) == 2**20 + 1
    labels, _, problem = cifar10._parsed("data_batch_1.bin", data)
    assert not labels and problem == "over 1 MB, where a batch of CIFAR-10 has 30"


# --- folders ---------------------------------------------------------------------------


def listed(spark, folder) -> dict[str, tuple]:
    """(URL, reason) of what a folder holds, by id."""
    rows = sources.open_source(spark, Ingest(source="folder", path=str(folder))).frame.collect()
    found = {row.id: (row.url, row.reason) for row in rows}
    assert len(found) == len(rows), "an id came twice"
    return found


@pytest.mark.fault(
    "data",
    "files whose names hold every byte that a name may hold",
    "each is read by its name, or rejected because that is not UTF-8; none is missed, none read in another's place",
)
def test_names_may_hold_every_byte(spark, tmp_path):
    root = os.fsencode(tmp_path / "images")
    os.mkdir(root)
    values = {}
    for byte in range(1, 256):
        if byte != ord("/"):
            with open(root + b"/a" + bytes([byte]) + b"b.png", "wb") as out:
                out.write(png(byte))
            values[byte] = f"a{chr(byte)}b.png" if byte < 128 else f"a\\x{byte:02x}b.png"
    found = listed(spark, tmp_path / "images")
    assert found.keys() == set(values.values())
    for byte, id in values.items():
        url, reason = found[id]
        if byte < 128:
            assert reason is None and images.decode(sources.folder.read(url, 1), 8, 8, 1)[0, 0, 0] == byte
        else:
            assert (url, reason) == (None, "its name is not UTF-8")


@pytest.mark.fault(
    "data",
    "links in a folder of images to files outside of it, to devices, pipes, itself, and to nothing",
    "a link to an image is that image; all others are rejected, and no task waits for a pipe or reads a device",
)
def test_links_lead_to_images_or_nowhere(spark, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(png(7))
    os.mkfifo(tmp_path / "pipe")
    targets = {
        "image.png": tmp_path / "outside.png",
        "text.png": "/etc/passwd",
        "device.png": "/dev/zero",
        "pipe.png": tmp_path / "pipe",
        "self.png": "self.png",
        "nothing.png": tmp_path / "nothing",
        "process.png": "/proc/self/status",
    }
    for name, target in targets.items():
        (folder / name).symlink_to(target)
    os.mkfifo(folder / "a pipe.png")
    (folder / "good.png").write_bytes(png())
    found = listed(spark, folder)
    assert found.keys() == {*targets, "a pipe.png", "good.png"}
    read = {}
    for name, (url, reason) in found.items():
        try:
            read[name] = reason or int(images.decode(sources.folder.read(url, 1), 8, 8, 1)[0, 0, 0])
        except images.BadImage as error:
            read[name] = str(error)
    assert (read["good.png"], read["image.png"]) == (99, 7)
    for name in ("device.png", "pipe.png", "a pipe.png"):
        assert read[name] == "not a file"
    for name in ("self.png", "nothing.png"):
        assert re.search("^not a file|^gone|^cannot be read", read[name]), read[name]
    for name in ("text.png", "process.png"):
        assert re.search("^not an image in a known format|^cannot be read", read[name]), read[name]


@pytest.mark.fault(
    "data",
    "a folder of 100,000 empty files, among which are a few images",
    "each is rejected by its name with the reason `empty file`, and the images are a dataset",
)
@pytest.mark.long
def test_a_hundred_thousand_empty_files_are_rejected_one_by_one(spark, tmp_path):
    folder, count = tmp_path / "images", 100_000
    folder.mkdir()
    for number in range(count):
        open(folder / f"{number:06d}.png", "wb").close()
    for number in range(30):
        (folder / f"good {number}.png").write_bytes(png(number))
    config = make_config(str(tmp_path / "lake"), ingest={"source": "folder", "path": str(folder)})
    answer = ingest.ingest(spark, config)
    assert (answer["rows"], answer["rejected"]) == (30, count)
    rejects = spark.read.parquet(answer["rejects"])
    assert rejects.select("id").distinct().count() == count
    assert [row.reason for row in rejects.select("reason").distinct().collect()] == ["empty file"]
