"""What is read is what is written, or is among the rejected with its reason; and a failure changes nothing."""

import dataclasses
import io
import json
import os
import uuid

import numpy as np
import petastorm
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_config
from PIL import Image
from pyspark.sql import functions as F

from gan_spark import lake
from gan_spark.config import Config, Ingest, UserError, parse, replaced
from gan_spark.data import ingest, passes, schema, sources, tasks

CONFIG = Ingest(source="table", height=8, width=8, validation=0.2, test=0.2, planned_workers=2, label_column="label")
COLUMNS = ["id", "image", "split", "label"]


def png(pixels: np.ndarray, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


PIXELS = {f"image {i:03d}": np.random.default_rng(i).integers(0, 256, (8, 8), np.uint8) for i in range(300)}


def make_frame(spark, pixels: dict[str, np.ndarray]):
    rows = [(id, bytearray(png(each)), "odd" if int(id[-1]) % 2 else "even") for id, each in pixels.items()]
    return spark.createDataFrame(rows, "id string, content binary, label string")


def write(spark, frame, url: str, config: Ingest = CONFIG) -> dict:
    return ingest.write(
        spark, sources.from_frame(frame, config.id_column, config.image_column, config.label_column), url, config
    )


def stored(spark, url: str) -> dict[str, tuple]:
    """(pixels, split, label) by id, read by Spark."""
    manifest = schema.read_manifest(url)
    rows = spark.read.parquet(url).collect()
    pixels = schema.unpack([bytes(row.image) for row in rows], manifest.shape, manifest.encoding)
    found = {
        row.id: (image, row.split, row.label if manifest.classes else None)
        for row, image in zip(rows, pixels, strict=True)
    }
    assert len(found) == len(rows), "an id was written twice"
    return found


def rejected(spark, url: str) -> dict[str, str]:
    return {row.id: row.reason for row in spark.read.parquet(f"{url}.rejected").collect()}


# --- a dataset and its readers ---------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> str:
    return lake.to_url(str(tmp_path_factory.mktemp("a lake") / "datasets"))


@pytest.fixture(scope="module")
def frame(spark):
    return make_frame(spark, PIXELS)


@pytest.fixture(scope="module")
def whole(spark, frame, root) -> tuple[str, dict]:
    """URL of a dataset of PIXELS, and what `write` answered."""
    url = lake.join(root, "whole")
    return url, write(spark, frame, url)


@pytest.mark.slow
def test_the_answer_and_the_manifest_agree(spark, whole):
    url, answer = whole
    manifest = schema.read_manifest(url)
    assert (answer["dataset"], answer["rejects"]) == (url, f"{url}.rejected")
    assert (answer["rows"], answer["rejected"]) == (300, 0)
    assert answer["splits"] == manifest.rows
    assert sum(manifest.rows.values()) == 300
    assert (manifest.shape, manifest.encoding, manifest.classes) == ((8, 8, 1), "raw", ("even", "odd"))
    assert manifest.rejected == 0
    assert manifest.fingerprint == answer["fingerprint"]
    assert manifest.ingest == json.loads(json.dumps(dataclasses.asdict(CONFIG)))
    assert rejected(spark, url) == {}


def test_spark_reads_every_pixel_split_and_label(spark, whole):
    found = stored(spark, whole[0])
    assert found.keys() == PIXELS.keys()
    for id, (pixels, split, label) in found.items():
        np.testing.assert_array_equal(pixels[:, :, 0], PIXELS[id])
        assert split == schema.split_of(id, 0.2, 0.2)
        assert label == int(id[-1]) % 2


def test_make_reader_decodes_every_row(whole):
    with petastorm.make_reader(whole[0], reader_pool_type="thread", workers_count=1, num_epochs=1) as reader:
        rows = {row.id: row for row in reader}
    assert rows.keys() == PIXELS.keys()
    for id, row in rows.items():
        assert (row.image.shape, row.image.dtype) == ((8, 8, 1), np.uint8)
        np.testing.assert_array_equal(row.image[:, :, 0], PIXELS[id])
        assert (row.split, row.label) == (schema.split_of(id, 0.2, 0.2), int(id[-1]) % 2)


def test_make_batch_reader_gives_columns(whole):
    found = {}
    with petastorm.make_batch_reader(whole[0], workers_count=1, num_epochs=1) as reader:
        for group in reader:
            for id, image, label in zip(
                group.id, schema.unpack(group.image, (8, 8, 1), "raw"), group.label, strict=True
            ):
                found[id] = image, label
    assert found.keys() == PIXELS.keys()
    for id, (image, label) in found.items():
        np.testing.assert_array_equal(image[:, :, 0], PIXELS[id])
        assert label == int(id[-1]) % 2


def test_train_has_four_row_groups_for_each_planned_worker(whole):
    fs, path = lake.filesystem(whole[0])
    groups = [pq.ParquetFile(name).num_row_groups for name in fs.glob(f"{path}/split=train/*.parquet")]
    assert sum(groups) >= 4 * CONFIG.planned_workers


@pytest.mark.slow
def test_another_row_order_gives_the_same_dataset(spark, frame, whole, root):
    url = lake.join(root, "shuffled")
    answer = write(spark, frame.orderBy(F.rand(1)).repartition(3), url)
    assert answer["fingerprint"] == whole[1]["fingerprint"]
    assert {id: split for id, (_, split, _) in stored(spark, url).items()} == {
        id: split for id, (_, split, _) in stored(spark, whole[0]).items()
    }


@pytest.mark.slow
def test_one_pixel_changes_the_fingerprint(spark, whole, root):
    pixels = {id: each.copy() for id, each in PIXELS.items()}
    pixels["image 007"][3, 4] ^= 1
    answer = write(spark, make_frame(spark, pixels), lake.join(root, "pixel"))
    assert answer["splits"] == whole[1]["splits"]
    assert answer["fingerprint"] != whole[1]["fingerprint"]


@pytest.mark.parametrize(
    "id, split",
    [("a", "train"), ("é", "train"), ("cat/1.png", "train"), ("cat/0.png", "validation"), ("cat/8.png", "test")],
)
def test_splits_stay_what_they_were(id, split):
    """Values written down once: a change here moves images of existing datasets between splits."""
    assert schema.split_of(id, 0.1, 0.1) == split


def test_splits_have_their_shares():
    ids = [f"folder/{i}.png" for i in range(20_000)]
    splits = [schema.split_of(id, 0.1, 0.2) for id in ids]
    shares = {split: splits.count(split) / len(ids) for split in schema.SPLITS}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.01)
    assert {schema.split_of(id, 0, 0) for id in ids} == {"train"}
    larger = [schema.split_of(id, 0.1, 0.3) for id in ids]
    assert all(after == "test" for before, after in zip(splits, larger, strict=True) if before == "test")


# --- what cannot be used ---------------------------------------------------------------


@pytest.mark.slow
def test_every_row_of_a_table_is_written_or_rejected(spark, root):
    good = {f"good {i}": np.full((8, 8), i, np.uint8) for i in range(20)}
    rows = [(id, bytearray(png(each)), "even") for id, each in good.items()]
    rows += [
        ("null", None, "even"),
        ("text", bytearray(b"text"), "odd"),
        ("no label", bytearray(png(good["good 1"])), None),
    ]
    rows += [("twice", bytearray(png(good["good 2"])), "odd"), ("twice", bytearray(png(good["good 2"])), "odd")]
    url = lake.join(root, "table")
    answer = write(spark, spark.createDataFrame(rows, "id string, content binary, label string").repartition(3), url)
    assert (answer["rows"], answer["rejected"]) == (21, 4)
    assert stored(spark, url).keys() == {*good, "twice"}
    reasons = rejected(spark, url)
    assert reasons.keys() == {"null", "text", "no label", "twice"}
    assert reasons["null"] == "no image (null)"
    assert reasons["text"].startswith("not an image in a known format")
    assert reasons["no label"] == "no label (null)"
    assert reasons["twice"] == "duplicate id; the first row with it was kept"
    assert schema.read_manifest(url).rejected == 4


@pytest.mark.slow
def test_a_bad_row_does_not_displace_a_good_one_of_the_same_id(spark, root):
    """Whatever comes first of the two, one of each id is kept."""
    good = {f"id {i}": np.full((8, 8), i, np.uint8) for i in range(20)}
    pairs = [[(id, bytearray(png(each)), "odd"), (id, None, "odd")] for id, each in good.items()]
    rows = [row for i, pair in enumerate(pairs) for row in (pair if i % 2 else pair[::-1])]
    url = lake.join(root, "pairs")
    answer = write(spark, spark.createDataFrame(rows, "id string, content binary, label string").coalesce(1), url)
    assert answer["rows"] + answer["rejected"] == 40
    assert stored(spark, url).keys() == good.keys()


@pytest.mark.slow
def test_labels_go_to_images_that_can_be_read(spark, root):
    rows = [
        (id, bytearray(png(each)[:40] if int(id[-2]) % 2 else png(each)), "odd" if int(id[-1]) % 2 else "even")
        for id, each in PIXELS.items()
    ]
    frame = spark.createDataFrame([*rows, *rows], "id string, content binary, label string")
    url = lake.join(root, "few labels")
    answer = write(spark, frame, url, dataclasses.replace(CONFIG, parts="labels", labels=20))
    assert answer["rows"] + answer["rejected"] == 600 and answer["rows"] == 150
    found = spark.read.parquet(url).where("split = 'train' and part = 'labelled'").groupBy("label").count().collect()
    assert {row["label"]: row["count"] for row in found} == {0: 10, 1: 10}


@pytest.mark.slow
def test_files_of_a_table_are_bounded_and_handed_over_few_at_once(spark, root, monkeypatch, tmp_path):
    monkeypatch.setattr(passes, "_ARROW_BYTES", 3 * 2**20)
    frame = make_frame(spark, PIXELS).union(
        spark.createDataFrame([("huge", bytearray(2**20 + 1), "odd")], "id string, content binary, label string")
    )
    config = dataclasses.replace(CONFIG, max_file_mb=1)
    url, key = lake.join(root, "bounded"), "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark.conf.get(key)
    source = sources.from_frame(frame, "id", "content", "label", max_file_mb=1)

    def counted(batches):
        for batch in batches:
            (tmp_path / f"{uuid.uuid4()}").write_text(str(batch.num_rows))
            yield batch

    seen = dataclasses.replace(source, frame=source.frame.mapInArrow(counted, source.frame.schema))
    assert ingest.write(spark, seen, url, config)["rows"] == 300
    assert max(int(path.read_text()) for path in tmp_path.iterdir()) == 3
    assert rejected(spark, url) == {"huge": "1048577 bytes, over the limit of 1 MB"} and spark.conf.get(key) == before


def test_a_batch_is_decoded_in_pieces():
    batches = [
        pa.RecordBatch.from_pydict({"id": list(range(start, start + count))})
        for start, count in ((0, 7), (7, 3), (10, 4))
    ]
    assert [piece.column("id").to_pylist() for piece in tasks._pieces(iter(batches), 4)] == [
        [0, 1, 2, 3],
        [4, 5, 6],
        [7, 8, 9],
        [10, 11, 12, 13],
    ]


@pytest.mark.slow
def test_images_too_large_to_hold_many_of_are_decoded_a_few_at_a_time(spark, root):
    rows = [
        (f"{index}", bytearray(png(np.full((2048, 2048), index, np.uint8))), "odd") for index in (0, 1, 2, 3, 4, 5, 5)
    ]
    url = lake.join(root, "large")
    frame = spark.createDataFrame(rows, "id string, content binary, label string").coalesce(1)
    answer = write(spark, frame, url, dataclasses.replace(CONFIG, height=2048, width=2048, test=0.0, validation=0.0))
    assert (answer["rows"], answer["rejected"]) == (6, 1)
    assert {id: int(pixels.max()) for id, (pixels, _, _) in stored(spark, url).items()} == {
        str(index): index for index in range(6)
    }


@pytest.mark.slow
def test_large_colour_images_are_png(spark, root):
    pixels = {f"{i}": np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8) for i in range(12)}
    url = lake.join(root, "png")
    config = dataclasses.replace(
        CONFIG, channels=3, encoding="png", label_column="", planned_workers=1, validation=0.0, test=0.0
    )
    write(spark, make_frame(spark, pixels), url, config)
    manifest = schema.read_manifest(url)
    assert (manifest.encoding, manifest.classes, manifest.shape) == ("png", (), (8, 8, 3))
    assert bytes(spark.read.parquet(url).first().image).startswith(b"\x89PNG")
    found = stored(spark, url)
    assert found.keys() == pixels.keys()
    for id, (image, split, _) in found.items():
        np.testing.assert_array_equal(image, pixels[id])
        assert split == "train"
    with petastorm.make_reader(url, reader_pool_type="thread", workers_count=1, num_epochs=1) as reader:
        for row in reader:
            np.testing.assert_array_equal(row.image, pixels[row.id])


@pytest.mark.parametrize(
    "encoding, shape, chosen",
    [
        ("auto", (28, 28, 1), "raw"),
        ("auto", (128, 128, 3), "raw"),
        ("auto", (256, 256, 3), "png"),
        ("auto", (512, 512, 1), "raw"),
        ("png", (8, 8, 3), "png"),
        ("raw", (512, 512, 3), "raw"),
    ],
)
def test_encoding_is_chosen_by_size(encoding, shape, chosen):
    assert schema.choose_encoding(encoding, shape) == chosen


def test_grey_png_is_refused(spark, frame, root):
    with pytest.raises(UserError, match=r"^ingest\.encoding = 'png' with ingest\.channels = 1: .*use 'raw'"):
        write(spark, frame, lake.join(root, "grey"), dataclasses.replace(CONFIG, encoding="png"))


# --- failures --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old(spark, tmp_path_factory):
    """A small dataset with one rejected row, that others fail to replace."""
    url = lake.to_url(str(tmp_path_factory.mktemp("old") / "old"))
    frame = make_frame(spark, {id: PIXELS[id] for id in list(PIXELS)[:40]})
    bad = spark.createDataFrame([("bad", bytearray(b"text"), "odd")], frame.schema)
    write(spark, frame.union(bad), url, SMALL)
    return url


SMALL = dataclasses.replace(CONFIG, planned_workers=1)


def put_back(url: str) -> None:
    """So that a failure here does not spoil the next test."""
    lake.recover(f"{url}.rejected", url)


def everything(url: str) -> dict[str, bytes]:
    """Every file beside `url` and under it, hidden ones too."""
    fs, path = lake.filesystem(url.rsplit("/", 1)[0])
    return {name: fs.cat_file(name) for name in fs.find(path)} | {f"{name}/": b"" for name in fs.ls(path, detail=False)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "values, config, message",
    [
        (
            [b"text", b"text", b""],
            SMALL,
            r"^no image to train on among 3: 2 x not an image in a known format .*; 1 x empty file",
        ),
        (
            [png(PIXELS["image 001"])],
            dataclasses.replace(SMALL, validation=0.0, test=0.9),
            r"^no image to train on among 1: the splits leave none",
        ),
        ([], SMALL, r"^no image to train on among 0: "),
    ],
    ids=["all bad", "all for testing", "no rows"],
)
def test_nothing_to_train_on_leaves_the_old_dataset(spark, old, values, config, message):
    before = everything(old)
    rows = [(f"id {i + 2}", bytearray(value), "odd") for i, value in enumerate(values)]
    with pytest.raises(UserError, match=message):
        write(spark, spark.createDataFrame(rows, "id string, content binary, label string"), old, config)
    assert everything(old) == before


@pytest.mark.slow
@pytest.mark.parametrize("place", ["old.rejected", "old"])
def test_a_failure_while_putting_in_place_leaves_the_old_dataset(spark, old, monkeypatch, place):
    """The first rename to `place` fails."""
    before, failed, store = everything(old), [], type(lake.filesystem(old)[0])
    rename = store.mv

    def fails(self, source, target, **options):
        if target.rsplit("/", 1)[1] == place and not failed:
            failed.append(source)
            raise OSError("the store went away")
        rename(self, source, target, **options)

    monkeypatch.setattr(store, "mv", fails)
    with pytest.raises(OSError, match="the store went away"):
        write(spark, make_frame(spark, {id: PIXELS[id] for id in list(PIXELS)[40:60]}), old, SMALL)
    after = everything(old)
    put_back(old)
    assert after == before


@pytest.mark.slow
@pytest.mark.parametrize("fails", ["in Spark", "to open its source"])
def test_a_job_that_fails_puts_back_what_a_killed_one_had_displaced(spark, tmp_path, fails):
    config = make_config(str(tmp_path))
    url = lake.dataset_url(config)
    write(spark, make_frame(spark, {id: PIXELS[id] for id in list(PIXELS)[:20]}), url, SMALL)
    before, (fs, path) = everything(url), lake.filesystem(url)
    for folder in (path, f"{path}.rejected"):
        fs.mv(folder, lake.filesystem(lake.displaced(folder))[1])
    with pytest.raises(UserError):
        if fails == "in Spark":
            write(
                spark,
                spark.createDataFrame([("id", bytearray(b"text"), "odd")], "id string, content binary, label string"),
                url,
                SMALL,
            )
        else:
            ingest.ingest(spark, replaced(config, ingest={"source": "folder", "path": "/nowhere"}))
    assert everything(url) == before


def test_what_a_killed_job_had_staged_is_removed(spark, old):
    """A day later, by the next job that writes the same dataset."""
    before, left = everything(old), [lake.staging(old), lake.staging(f"{old}.rejected")]
    for made in left:
        lake.write_bytes(lake.join(made, "part"), b"")
        lake.claim(made, "dataset")
        for name in ("part", lake.OWNER):
            os.utime(lake.filesystem(lake.join(made, name))[1], (0, 0))
    with pytest.raises(UserError, match="no image to train on"):
        write(spark, spark.createDataFrame([], "id string, content binary, label string"), old, SMALL)
    assert everything(old) == before


@pytest.mark.slow
def test_rows_lost_on_the_way_are_noticed(spark, old, monkeypatch):
    """A file that vanishes between its task and the rename."""
    before, settle = everything(old), ingest._settle

    def loses_one(staged, *arguments):
        settle(staged, *arguments)
        fs, path = lake.filesystem(staged)
        fs.rm_file(fs.glob(f"{path}/split=train/*.parquet")[0])

    monkeypatch.setattr(ingest, "_settle", loses_one)
    with pytest.raises(RuntimeError, match="rows were lost, nothing was replaced"):
        write(spark, make_frame(spark, {id: PIXELS[id] for id in list(PIXELS)[40:60]}), old, SMALL)
    assert everything(old) == before


@pytest.mark.slow
def test_what_a_failed_task_left_is_not_in_the_dataset(spark, old, monkeypatch):
    """Every task leaves a half-written file behind, as one does that dies and is run again."""
    url, settle = f"{old}-retried", ingest._settle

    def leaves_halves(staged, staged_rejects, written):
        fs, path = lake.filesystem(staged)
        for name in fs.glob(f"{path}/split=*/*.parquet"):
            fs.pipe_file(name.replace(".parquet", "-half.parquet"), fs.cat_file(name)[:100])
        settle(staged, staged_rejects, written)

    monkeypatch.setattr(ingest, "_settle", leaves_halves)
    pixels = {id: PIXELS[id] for id in list(PIXELS)[:40]}
    assert write(spark, make_frame(spark, pixels), url, SMALL)["rows"] == 40
    assert stored(spark, url).keys() == pixels.keys()


@pytest.mark.slow
def test_few_images_still_make_four_row_groups_a_worker(spark, old):
    url = f"{old}-few"
    write(
        spark,
        make_frame(spark, {id: PIXELS[id] for id in list(PIXELS)[:60]}),
        url,
        dataclasses.replace(CONFIG, planned_workers=4),
    )
    fs, path = lake.filesystem(url)
    assert sum(pq.ParquetFile(name).num_row_groups for name in fs.glob(f"{path}/split=train/*.parquet")) >= 16


def write_images(root, **images: list[np.ndarray]) -> None:
    """PNG files 0.png, 1.png, ... in a folder each."""
    for folder, pixels in images.items():
        (root / folder.replace("__", "/")).mkdir(parents=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(root / folder.replace("__", "/") / f"{i}.png")


def shaded(count: int) -> list[np.ndarray]:
    return [np.arange(i, i + 64, dtype=np.uint8).reshape(8, 8) for i in range(count)]


def folder_config(root, **options) -> Config:
    ingest_options = {"source": "folder", "path": str(root / "images"), "height": 8, "width": 8, **options}
    return parse({"run": "r", "dataset": "d", "lake": str(root / "lake"), "ingest": ingest_options})


@pytest.mark.slow
def test_what_a_source_states_as_test_is_never_trained_on(spark, tmp_path):
    write_images(tmp_path / "images", train__a=shaded(40), train__b=shaded(40), val__a=shaded(3), test__b=shaded(5))
    answer = ingest.ingest(spark, folder_config(tmp_path, validation=0.3, test=0.3))
    assert answer["splits"] == {"train": 80, "validation": 3, "test": 5}
    assert answer["classes"] == {"a": 43, "b": 45}
    read = spark.read.parquet(answer["dataset"]).select("id", "split").collect()
    assert all(row["id"].split("/")[0] == {"validation": "val"}.get(row["split"], row["split"]) for row in read)


@pytest.mark.slow
def test_what_a_user_may_not_have_meant_is_told(spark, tmp_path, caplog):
    caplog.set_level("INFO")
    write_images(tmp_path / "images", **{"1": shaded(8), "2": [np.full((8, 8), 9, np.uint8)] * 3, "3": []})
    (tmp_path / "images" / "3" / "notes.txt").write_text("no image")
    answer = ingest.ingest(spark, folder_config(tmp_path))
    assert answer["classes"] == {"1": 8, "2": 3, "3": 0}
    assert "ingest: images by class: 1 8, 2 3" in caplog.messages
    assert "ingest: 1 classes have no image: 3" in caplog.messages
    assert "ingest: labels begin at 1: class '1' is label 0 of the dataset" in caplog.messages
    assert any(message.startswith("ingest: 3 images use under 1/16 of their range") for message in caplog.messages)


@pytest.mark.slow
def test_a_label_zero_that_no_image_has_is_told(spark, tmp_path, caplog):
    write_images(tmp_path / "images", **{"1": shaded(8), "2": shaded(4)})
    answer = ingest.ingest(spark, folder_config(tmp_path, classes=["zero", "one", "two"]))
    assert answer["classes"] == {"zero": 0, "one": 8, "two": 4}
    assert "ingest: no image has label 0, 'zero': do the source's labels begin at 1?" in caplog.messages


@pytest.mark.slow
def test_the_range_of_deep_files_is_the_configs(spark, tmp_path, caplog):
    deep = [np.linspace(0, 1000 + i, 64).astype(np.uint16).reshape(8, 8) for i in range(9)]
    write_images(tmp_path / "images", a=deep)
    for limits, brightest in (("type", 4), ("file", 255), ([0, 4095], 63)):
        answer = ingest.ingest(spark, folder_config(tmp_path, range=limits))
        assert answer["rows"] == 9
        row = spark.read.parquet(answer["dataset"]).orderBy("id").first()
        assert max(row["image"][-64:]) in (brightest - 1, brightest)
    assert sum("use under 1/16 of their range" in message for message in caplog.messages) == 1
