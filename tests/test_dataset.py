"""Batches for a rank: the right pixels under the right labels, each row once, well mixed, and never unpickled."""

import dataclasses
import itertools
import os
import pickle
import shutil

import numpy as np
import petastorm
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gan_spark import lake
from gan_spark.config import Ingest, UserError
from gan_spark.data import images, ingest, reader, schema, sources, splits

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


def test_ranks_share_the_images_out(unique, labels):
    shares = []
    for rank in range(2):
        rows = seen(take(reader.batches(unique, "train", 16, rank, 2, shuffle_buffer=32), 50))
        shares.append({image for image, _ in rows})
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == labels.keys()


@pytest.mark.slow
def test_seeds_give_other_orders(unique):
    first, second = (seen(take(reader.batches(unique, "train", 16, seed=seed), 2)) for seed in (1, 2))
    assert first != second


def row_groups(url: str) -> int:
    return sum(pq.ParquetFile(lake.filesystem(name)[1]).num_row_groups for name in splits.files(url, "train"))


def test_more_ranks_than_row_groups_are_refused(unique):
    groups = row_groups(unique)
    reader.check_shards(unique, "train", groups)
    with pytest.raises(
        UserError,
        match=(
            f"{groups} row groups in split 'train' for {groups + 1} workers; ingest it again with"
            f" ingest.planned_workers = {groups + 1}"
        ),
    ):
        reader.batches(unique, "train", 16, 0, groups + 1)


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


# --- the shuffled pool -----------------------------------------------------------------


def groups(*sizes: int):
    """Row groups whose rows are numbered on and on; `label` is the number of its group."""
    starts = np.cumsum([0, *sizes])[:-1]
    for index, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        yield {"image": np.arange(start, start + size), "label": np.full(size, index)}


def shuffle(sizes, batch_size: int, pool_size: int, seed: int = 0) -> np.ndarray:
    """[batches, batch_size] of row numbers."""
    made = [
        batch["image"] for batch in reader.shuffled(groups(*sizes), batch_size, pool_size, np.random.default_rng(seed))
    ]
    assert all(len(each) == batch_size for each in made)
    return np.array(made).reshape(-1, batch_size)


@pytest.mark.parametrize(
    "sizes, batch_size, pool_size",
    [
        ([100] * 10, 32, 100),
        ([100] * 10, 32, 32),
        ([7, 1, 300, 0, 50, 3], 16, 64),
        ([1] * 100, 10, 20),
        ([1000], 10, 20),
        ([0, 0, 50], 10, 20),
        ([64], 64, 64),
        ([50] * 4, 20, 10_000),
    ],
)
def test_each_row_comes_once_up_to_the_last_part_of_a_batch(sizes, batch_size, pool_size):
    rows = shuffle(sizes, batch_size, pool_size).ravel()
    assert len(rows) == sum(sizes) // batch_size * batch_size
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(sum(sizes)))


@pytest.mark.parametrize("sizes", [[], [0], [9], [3, 3, 3]])
def test_less_than_a_batch_gives_none(sizes):
    assert len(shuffle(sizes, 10, 20)) == 0


def test_columns_stay_together():
    for batch in reader.shuffled(groups(*[100] * 10), 16, 128, np.random.default_rng(0)):
        np.testing.assert_array_equal(batch["image"] // 100, batch["label"])


def test_the_order_is_the_seeds():
    sizes = [100] * 10
    np.testing.assert_array_equal(shuffle(sizes, 16, 128, seed=1), shuffle(sizes, 16, 128, seed=1))
    assert not np.array_equal(shuffle(sizes, 16, 128, seed=1), shuffle(sizes, 16, 128, seed=2))


def test_row_groups_are_mixed():
    """A pool of five groups: a batch draws on several of them, and follows the stream as it goes on."""
    batches = shuffle([100] * 40, 50, 500)
    assert min(len(set(batch // 100)) for batch in batches) >= 4
    assert np.corrcoef(batches[0], np.arange(50))[0, 1] < 0.5
    assert batches[0].max() < 1000
    assert batches[-1].mean() > 3000


def test_the_pool_is_bounded():
    drawn = 0

    def endless():
        nonlocal drawn
        for start in itertools.count(0, 40):
            drawn += 40
            yield {"image": np.arange(start, start + 40)}

    stream = reader.shuffled(endless(), 16, 128, np.random.default_rng(0))
    held = []
    for given, _ in enumerate(itertools.islice(stream, 300)):
        held.append(drawn - 16 * given)
    assert max(held) < 128 + 16 + 40
    assert min(held) >= 64


def test_arrow_and_pool_agree_on_types():
    (batch,) = reader.shuffled(
        iter([{"image": np.zeros((4, 2, 2, 1), np.uint8), "label": np.zeros(4, np.int32)}]),
        4,
        4,
        np.random.default_rng(0),
    )
    assert (batch["image"].dtype, batch["image"].shape, batch["label"].dtype) == (np.uint8, (4, 2, 2, 1), np.int32)
    assert pa.array(batch["label"]).type == pa.int32()
