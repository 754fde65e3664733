"""Faults in what is read: files that mean harm, that are damaged, or that are odd, each made for real."""

import io
import zipfile

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
from gan_spark.data import captions, reader, schema, sources, tasks
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
