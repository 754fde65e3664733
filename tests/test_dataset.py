"""Batches for a rank: the right pixels under the right labels, each row once, well mixed, and never unpickled."""

import collections
import dataclasses
import itertools
import os
import pickle
import shutil

import numpy as np
import petastorm
import pyarrow.parquet as pq
import pytest

from gan_spark import lake
from gan_spark.config import Ingest, UserError
from gan_spark.data import images, ingest, order, reader, schema, sources, splits

ROWS = 240


@pytest.fixture(scope="module")
def unique(spark, tmp_path_factory) -> str:
    """URL of a dataset of images that all differ, with labels; its validation split is empty."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (ROWS, 8, 8), np.uint8)
    pixels[:, 0, 0], pixels[:, 0, 1] = 0, 255
    rows = [(f"{i}", bytearray(images.encode_png(image[:, :, None])), "abc"[i % 3]) for i, image in enumerate(pixels)]
    source = sources.from_frame(
        spark.createDataFrame(rows, "id string, content binary, label string"), "id", "content", "label"
    )
    url = lake.to_url(str(tmp_path_factory.mktemp("lake") / "unique"))
    ingest.write(spark, source, url, Ingest(height=8, width=8, validation=0.0, test=0.2, planned_workers=2))
    return url


@pytest.fixture(scope="module")
def labels(spark, unique) -> dict[bytes, int]:
    """Label by image of the train split, read by Spark."""
    header = len(schema.npy_header((8, 8, 1)))
    found = {
        bytes(row.image)[header:]: row.label for row in spark.read.parquet(unique).where("split = 'train'").collect()
    }
    assert 150 < len(found) < ROWS
    return found


def take(stream, count: int) -> list[dict[str, np.ndarray]]:
    return list(stream.take(count).as_numpy_iterator())


def seen(batches) -> list[tuple[bytes, int]]:
    """(image, label) of every row."""
    return [
        (images.to_pixels(image).tobytes(), int(label))
        for batch in batches
        for image, label in zip(batch["image"], batch["label"], strict=True)
    ]


# --- batches ---------------------------------------------------------------------------


def test_batches_have_their_shape_and_range(unique):
    for batch in take(reader.batches(unique, "train", 7), 3):
        assert batch.keys() == {"image", "label"}
        assert (batch["image"].shape, batch["image"].dtype) == ((7, 8, 8, 1), np.float32)
        assert (batch["label"].shape, batch["label"].dtype) == ((7,), np.int32)
        assert (batch["image"].min(), batch["image"].max()) == (-1.0, 1.0)


def test_no_tuning_thread_holds_up_the_end(unique):
    """It sleeps for up to a minute, and dropping an iterator waits for it: every rank did so at the end of a job."""
    assert reader.batches(unique, "train", 8).options().autotune.enabled is False


def test_each_image_comes_with_its_label_and_every_image_comes(unique, labels):
    rows = seen(take(reader.batches(unique, "train", 16, shuffle_buffer=32), 60))
    assert all(labels.get(image) == label for image, label in rows)
    assert {image for image, _ in rows} == labels.keys()
    assert {label for _, label in rows} == {0, 1, 2}


def test_batches_of_another_split_hold_none_of_train(unique, labels):
    rows = seen(take(reader.batches(unique, "test", 8, shuffle_buffer=16), 30))
    assert len({image for image, _ in rows}) == ROWS - len(labels)
    assert not {image for image, _ in rows} & labels.keys()


@pytest.mark.slow
def test_a_batch_may_be_larger_than_the_split(unique, labels):
    (batch,) = take(reader.batches(unique, "train", ROWS + 100), 1)
    assert {image for image, _ in seen([batch])} <= labels.keys()


def test_ranks_share_an_epoch_out(unique, labels):
    shares = [set(drawn(unique, order.quota(len(labels), 1, rank, 2), rank, 2)) for rank in range(2)]
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == labels.keys()


@pytest.mark.slow
def test_seeds_give_other_orders(unique):
    first, second = (seen(take(reader.batches(unique, "train", 16, seed=seed), 2)) for seed in (1, 2))
    assert first != second


@pytest.mark.slow
def test_more_ranks_than_row_groups_share_the_rows_out(unique, labels):
    groups = sum(pq.ParquetFile(lake.filesystem(name)[1]).num_row_groups for name in splits.files(unique, "train"))
    shares = [drawn(unique, len(labels) // (groups + 1), rank, groups + 1) for rank in range(groups + 1)]
    assert len({image for images in shares for image in images}) == sum(map(len, shares))


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_empty_split_is_refused(unique, ranks):
    with pytest.raises(UserError, match="its split 'validation' has no images"):
        reader.batches(unique, "validation", 16, 0, ranks)


def test_a_missing_dataset_is_refused(tmp_path):
    url = lake.to_url(str(tmp_path / "none"))
    with pytest.raises(
        UserError, match=f"^no dataset at {url}: expected _gan_spark.json there; make it with jobs/ingest.py"
    ):
        reader.batches(url, "train", 16)


def test_a_reader_leaves_an_unfinished_replacement_alone(tmp_path):
    (tmp_path / ".d.old").mkdir()
    with pytest.raises(
        UserError,
        match="^no dataset at .*/d: .*one died while it replaced this dataset, whose former state it will put back",
    ):
        reader.batches(lake.to_url(str(tmp_path / "d")), "train", 16)
    assert os.listdir(tmp_path) == [".d.old"]


@pytest.mark.fault(
    "lake",
    "the manifest of a dataset is cut, or is something else",
    "refused by an error that says to ingest again",
)
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"height": 8}', '{"classes": 5}'])
def test_a_damaged_manifest_is_refused(tmp_path, text):
    (tmp_path / "_gan_spark.json").write_text(text)
    with pytest.raises(UserError, match="_gan_spark.json cannot be understood .*; ingest it again"):
        reader.batches(lake.to_url(str(tmp_path)), "train", 16)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("height", "8", "height = '8': expected int"),
        ("rejected", True, "rejected = True: expected int"),
        ("captioned", 1, "captioned = 1: expected bool"),
        ("classes", ["a", 1], r"classes = \['a', 1\]: expected tuple\[str, ...\]"),
        ("rows", {"train": 1.5}, r"rows = {'train': 1.5}: expected dict\[str, int\]"),
        ("widht", 8, "unknown field widht"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused_by_its_name(tmp_path, field, value, message):
    manifest = schema.Manifest(8, 8, 1, "raw", ("a", "b"), {"train": 2}, 0, "f", {"fit": "crop"}, "", (), False, (2, 3))
    url = lake.to_url(str(tmp_path))
    schema.write_manifest(url, manifest)
    assert schema.read_manifest(url) == manifest
    lake.write_json(lake.join(url, "_gan_spark.json"), {**dataclasses.asdict(manifest), field: value})
    with pytest.raises(UserError, match=message):
        schema.read_manifest(url)


def test_a_manifest_of_another_size_is_noticed(unique):
    manifest = schema.read_manifest(unique)
    with open(lake.filesystem(splits.files(unique, "train")[0])[1], "rb") as stream:
        column = pq.read_table(stream)["image"].to_pylist()
    assert schema.unpack(column, manifest.shape, "raw").shape == (len(column), 8, 8, 1)
    with pytest.raises(
        ValueError, match=r"bytes for \d+ arrays of \(8, 9, 1\); the dataset is not what its manifest says"
    ):
        schema.unpack(column, (8, 9, 1), "raw")


class Hostile:
    """Pickled, a call that creates the file `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({self.path!r}, 'w').close()",)


def test_the_pickled_schema_is_not_read(unique, labels, tmp_path):
    planted, mark = tmp_path / "planted", str(tmp_path / "mark")
    shutil.copytree(lake.filesystem(unique)[1], planted)
    old = pq.read_schema(planted / "_common_metadata")
    assert b"dataset-toolkit.unischema.v1" in old.metadata
    pq.write_metadata(
        old.with_metadata({**old.metadata, b"dataset-toolkit.unischema.v1": pickle.dumps(Hostile(mark), protocol=2)}),
        planted / "_common_metadata",
    )
    for crc in planted.glob("._common_metadata.crc"):
        crc.unlink()
    url = lake.to_url(str(planted))
    with pytest.raises(Exception, match=""):  # whatever Petastorm makes of what is no schema
        petastorm.make_reader(url, reader_pool_type="dummy")
    assert os.path.exists(mark), "the planted schema should run where it is unpickled"
    os.remove(mark)
    rows = seen(take(reader.batches(url, "train", 16), 3))
    assert all(labels.get(image) == label for image, label in rows)
    assert not os.path.exists(mark)


# --- the order of rows -----------------------------------------------------------------


def drawn(url: str, count: int, rank: int = 0, size: int = 1, start: int = 0, seed: int = 0) -> list[bytes]:
    """The rank's images after `start` others of it."""
    manifest, rows = schema.read_manifest(url), []
    groups = reader.RowGroups(url, "train", "", manifest)
    for part in reader.shuffled(groups, 32, rank, size, seed, start):
        rows += [image.tobytes() for image in part["image"]]
        if len(rows) >= count:
            return rows[:count]
    raise AssertionError("the stream has an end")


def test_over_epochs_every_rank_sees_every_image_and_all_are_seen_equally_often(unique, labels):
    """Three ranks, whose shares of an epoch are not of one size: after every epoch, each image was seen once more."""
    rows = len(labels)
    for epochs in (1, 2, 3, 4):
        seen_by = [drawn(unique, order.quota(rows, epochs, rank, 3), rank, 3) for rank in range(3)]
        counts = collections.Counter(image for images in seen_by for image in images)
        assert counts == dict.fromkeys(labels, epochs)
        assert max(map(len, seen_by)) - min(map(len, seen_by)) <= 1
    many = [set(drawn(unique, order.quota(rows, 30, rank, 3), rank, 3)) for rank in range(3)]
    assert many == [set(labels)] * 3


@pytest.mark.parametrize("start", [0, 1, 31, 32, 50, 150, 192, 400])
def test_rows_go_on_where_they_were(unique, start):
    whole = drawn(unique, 500, 1, 2)
    assert drawn(unique, 500 - start, 1, 2, start) == whole[start:]


def test_what_of_an_epoch_is_over_is_not_read_again(unique, labels, monkeypatch):
    loaded, load = [], reader.RowGroups.load
    monkeypatch.setattr(reader.RowGroups, "load", lambda groups, piece: loaded.append(piece) or load(groups, piece))
    drawn(unique, len(labels))
    everything = len(loaded)
    loaded.clear()
    drawn(unique, 1, start=len(labels) - 1)
    assert 0 < len(loaded) < everything


def test_epochs_and_seeds_have_orders_of_their_own(unique, labels):
    rows = len(labels)
    two = drawn(unique, 2 * rows)
    assert two[:rows] != two[rows:]
    assert drawn(unique, rows, seed=1) != two[:rows]
    assert drawn(unique, 2 * rows) == two


def test_batches_begin_where_a_run_was(unique):
    whole = seen(take(reader.batches(unique, "train", 16, shuffle_buffer=32), 20))
    rest = seen(take(reader.batches(unique, "train", 16, shuffle_buffer=32, start=16 * 7), 13))
    assert rest == whole[16 * 7 :]


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_place_is_where_a_rank_has_read_so_many_rows(rows, size):
    for rank in range(size):
        for position in range(3 * rows):
            epoch, offset = order.place(rows, position, rank, size)
            assert order.quota(rows, epoch, rank, size) + offset == position
            assert 0 <= offset < order.quota(rows, epoch + 1, rank, size) - order.quota(rows, epoch, rank, size)


@pytest.mark.parametrize("counts", [[5], [3, 0, 4], [10] * 7, [1]])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_pieces_of_the_ranks_are_the_epoch(counts, size):
    everything = [(group, row) for group, count in enumerate(counts) for row in range(count)]
    for epoch in range(3):
        ranks = [order.pieces(counts, epoch, 0, rank, size) for rank in range(size)]
        rows = [(piece.group, row) for pieces in ranks for piece in pieces for row in range(piece.start, piece.stop)]
        assert sorted(rows) == everything
    shares = [order.share(counts, rank, size) for rank in range(size)]
    assert [
        (piece.group, row) for pieces in shares for piece in pieces for row in range(piece.start, piece.stop)
    ] == everything


def shuffle(sizes, pool_size: int, seed: int = 0) -> np.ndarray:
    blocks = list(order.blocks(sizes, pool_size, np.random.default_rng(seed)))
    return np.concatenate(blocks) if blocks else np.zeros(0, int)


@pytest.mark.parametrize(
    "sizes, pool_size",
    [
        ([100] * 10, 100),
        ([100] * 10, 32),
        ([7, 1, 300, 0, 50, 3], 64),
        ([1] * 100, 20),
        ([0, 0, 50], 20),
        ([64], 64),
        ([9], 1),
        ([50] * 4, 10_000),
        ([], 10),
        ([0], 10),
    ],
)
def test_each_row_comes_once(sizes, pool_size):
    assert sorted(shuffle(sizes, pool_size)) == list(range(sum(sizes)))


def test_the_order_is_the_seeds():
    np.testing.assert_array_equal(shuffle([100] * 10, 128, seed=1), shuffle([100] * 10, 128, seed=1))
    assert not np.array_equal(shuffle([100] * 10, 128, seed=1), shuffle([100] * 10, 128, seed=2))


def test_row_groups_are_mixed():
    """A pool of five groups: a batch draws on several of them, and follows the stream as it goes on."""
    batches = shuffle([100] * 40, 500).reshape(-1, 50)
    assert min(len(set(batch // 100)) for batch in batches) >= 3
    assert np.corrcoef(batches[0], np.arange(50))[0, 1] < 0.5
    assert batches[0].max() < 1000
    assert batches[-1].mean() > 3000


def test_the_pool_is_bounded():
    taken, given = 0, 0

    def sizes():
        nonlocal taken
        while True:
            taken += 40
            yield 40

    for block in itertools.islice(order.blocks(sizes(), 128, np.random.default_rng(0)), 100):
        assert taken - given <= 128 + 40
        given += len(block)
        assert taken - given == 64


@pytest.mark.parametrize("parts", [[4, 9, 2], [15], [1] * 15, [0, 15, 0]])
def test_parts_are_cut_into_full_batches(parts):
    starts = np.cumsum([0, *parts])
    rows = ({"image": np.arange(a, b), "label": np.arange(a, b) * 2} for a, b in itertools.pairwise(starts))
    blocks = list(reader._cut(rows, 4, 2))
    assert all(block["image"].shape[1:] == (4,) and len(block["image"]) <= 2 for block in blocks)
    image = np.concatenate([block["image"].ravel() for block in blocks])
    np.testing.assert_array_equal(image, np.arange(12))
    np.testing.assert_array_equal(np.concatenate([block["label"].ravel() for block in blocks]), image * 2)


@pytest.mark.parametrize("ranks", [1, 2, 3, 1000])
def test_a_split_is_read_once(unique, labels, ranks):
    """By all ranks together; by each of them, where there are more ranks than rows."""
    rows = [
        image
        for rank in (range(ranks) if ranks < 1000 else [7])
        for batch in reader.once(unique, "train", 7, rank, ranks)
        for image, _ in seen([{name: values.numpy() for name, values in batch.items()}])
    ]
    assert collections.Counter(rows) == dict.fromkeys(labels, 1)
