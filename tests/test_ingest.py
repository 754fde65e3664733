"""What is read is what is written, or is among the rejected with its reason; and a failure changes nothing."""

import dataclasses
import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import petastorm
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from PIL import Image
from pyspark.sql import functions as F

from gan_spark import ingest, lake, schema, sources
from gan_spark.config import Ingest, UserError

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
    return ingest.write(spark, sources.from_frame(frame, config.id_column, config.image_column, config.label_column), url, config)


def stored(spark, url: str) -> dict[str, tuple]:
    """(pixels, split, label) by id, read by Spark."""
    manifest = schema.read_manifest(url)
    rows = spark.read.parquet(url).collect()
    pixels = schema.unpack([bytes(row.image) for row in rows], manifest.shape, manifest.encoding)
    found = {row.id: (image, row.split, row.label if manifest.classes else None) for row, image in zip(rows, pixels)}
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
            for id, image, label in zip(group.id, schema.unpack(group.image, (8, 8, 1), "raw"), group.label):
                found[id] = image, label
    assert found.keys() == PIXELS.keys()
    for id, (image, label) in found.items():
        np.testing.assert_array_equal(image[:, :, 0], PIXELS[id])
        assert label == int(id[-1]) % 2


def test_train_has_four_row_groups_for_each_planned_worker(whole):
    fs, path = lake.filesystem(whole[0])
    groups = [pq.ParquetFile(name).num_row_groups for name in fs.glob(f"{path}/split=train/*.parquet")]
    assert sum(groups) >= 4 * CONFIG.planned_workers


def test_another_row_order_gives_the_same_dataset(spark, frame, whole, root):
    url = lake.join(root, "shuffled")
    answer = write(spark, frame.orderBy(F.rand(1)).repartition(3), url)
    assert answer["fingerprint"] == whole[1]["fingerprint"]
    assert {id: split for id, (_, split, _) in stored(spark, url).items()} == {id: split for id, (_, split, _) in stored(spark, whole[0]).items()}


def test_one_pixel_changes_the_fingerprint(spark, whole, root):
    pixels = {id: each.copy() for id, each in PIXELS.items()}
    pixels["image 007"][3, 4] ^= 1
    answer = write(spark, make_frame(spark, pixels), lake.join(root, "pixel"))
    assert answer["splits"] == whole[1]["splits"]
    assert answer["fingerprint"] != whole[1]["fingerprint"]


@pytest.mark.parametrize("id, split", [("a", "train"), ("é", "train"), ("cat/1.png", "train"), ("cat/0.png", "validation"), ("cat/8.png", "test")])
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
    assert all(after == "test" for before, after in zip(splits, larger) if before == "test")


# --- what cannot be used ---------------------------------------------------------------


def test_every_row_of_a_table_is_written_or_rejected(spark, root):
    good = {f"good {i}": np.full((8, 8), i, np.uint8) for i in range(20)}
    rows = [(id, bytearray(png(each)), "even") for id, each in good.items()]
    rows += [("null", None, "even"), ("text", bytearray(b"text"), "odd"), ("no label", bytearray(png(good["good 1"])), None)]
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


def test_a_bad_row_does_not_displace_a_good_one_of_the_same_id(spark, root):
    """Whatever comes first of the two, one of each id is kept."""
    good = {f"id {i}": np.full((8, 8), i, np.uint8) for i in range(20)}
    pairs = [[(id, bytearray(png(each)), "odd"), (id, None, "odd")] for id, each in good.items()]
    rows = [row for i, pair in enumerate(pairs) for row in (pair if i % 2 else pair[::-1])]
    url = lake.join(root, "pairs")
    answer = write(spark, spark.createDataFrame(rows, "id string, content binary, label string").coalesce(1), url)
    assert answer["rows"] + answer["rejected"] == 40
    assert stored(spark, url).keys() == good.keys()


def test_large_colour_images_are_png(spark, root):
    pixels = {f"{i}": np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8) for i in range(12)}
    url = lake.join(root, "png")
    config = dataclasses.replace(CONFIG, channels=3, encoding="png", label_column="", planned_workers=1, validation=0.0, test=0.0)
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


@pytest.mark.parametrize("encoding, shape, chosen", [("auto", (28, 28, 1), "raw"), ("auto", (128, 128, 3), "raw"), ("auto", (256, 256, 3), "png"), ("auto", (512, 512, 1), "raw"), ("png", (8, 8, 3), "png"), ("raw", (512, 512, 3), "raw")])
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
    lake.recover(url)
    lake.recover(f"{url}.rejected")


def everything(url: str) -> dict[str, bytes]:
    """Every file beside `url` and under it, hidden ones too."""
    fs, path = lake.filesystem(url.rsplit("/", 1)[0])
    return {name: fs.cat_file(name) for name in fs.find(path)} | {f"{name}/": b"" for name in fs.ls(path, detail=False)}


@pytest.mark.parametrize(
    "values, config, message",
    [
        ([b"text", b"text", b""], SMALL, r"^no image to train on among 3: 2 x not an image in a known format .*; 1 x empty file"),
        ([png(PIXELS["image 001"])], dataclasses.replace(SMALL, validation=0.0, test=0.9), r"^no image to train on among 1: the splits leave none"),
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


def test_few_images_still_make_four_row_groups_a_worker(spark, old):
    url = f"{old}-few"
    write(spark, make_frame(spark, {id: PIXELS[id] for id in list(PIXELS)[:60]}), url, dataclasses.replace(CONFIG, planned_workers=4))
    fs, path = lake.filesystem(url)
    assert sum(pq.ParquetFile(name).num_row_groups for name in fs.glob(f"{path}/split=train/*.parquet")) >= 16


# --- a folder with every kind of bad file, through the job -----------------------------

COLOUR = (200, 60, 30)
BAD = {
    "cat/empty.png": "^empty file$",
    "cat/cut early.jpg": "^truncated: |^not an image in a known format",
    "cat/cut half.jpg": "^truncated: ",
    "dog/cut late.png": "^truncated: ",
    "cat/text.jpg": "^not an image in a known format .*it starts with b'this is '",
    "cat/eps.png": "^not an image in a known format .*it starts with b'%!PS",
    "dog/bomb.png": "^declares 50000 x 50000 pixels, over the limit of 64 megapixels",
    "dog/smaller bomb.png": "^declares 10000 x 9000 pixels, over the limit of 64 megapixels",
    "dog/large.bmp": r"^1048577 bytes, over the limit of 1 MB",
    "dog/locked.png": "^permission denied$",
    "dog/folder.jpg": "^a folder, not a file$",
    "dog/gone.png": "^gone: |^not a file",
    "stray.png": "^not inside a class folder",
    "shut": "cannot be listed|cannot be read|permission denied",
}
ODD = ["cat/cmyk.jpg", "cat/palette.png", "cat/turned.jpg", "cat/png named.jpg", "dog/16 bit.png", "dog/same name.png", "cat/same name.png", "dog/half clear.png", "dog/é #%20?.png"]
GOOD = [f"{kind}/{i:02d}.png" for kind in ("cat", "dog") for i in range(15)]


def good_value(name: str) -> int:
    return 100 * name.startswith("dog") + 5 * int(name[4:6])


def huge_png(width: int, height: int) -> bytes:
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts)


def left_and_right(left, right) -> Image.Image:
    image = Image.new("RGBA", (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


def plant(folder) -> None:
    """Files as BAD, ODD and GOOD name them."""
    for kind in ("cat", "dog", "dog/folder.jpg", "shut"):
        (folder / kind).mkdir()

    def save(name: str, image: Image.Image, format: str = "PNG", **options):
        image.save(folder / name, format, **options)

    for name in GOOD:
        save(name, Image.new("L", (8, 8), good_value(name)))
    save("cat/same name.png", Image.new("L", (8, 8), 11))
    save("dog/same name.png", Image.new("L", (8, 8), 222))
    save("dog/é #%20?.png", Image.new("RGB", (8, 8), COLOUR))
    save("cat/cmyk.jpg", Image.new("RGB", (8, 8), COLOUR).convert("CMYK"), "JPEG", quality=95)
    save("cat/png named.jpg", Image.new("RGB", (8, 8), COLOUR))
    save("dog/16 bit.png", Image.fromarray(np.full((8, 8), 257 * 150, np.uint16)))
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([*COLOUR, 0, 0, 255])
    palette.paste(1, (4, 0, 8, 8))
    save("cat/palette.png", palette, transparency=1)
    save("dog/half clear.png", left_and_right((*COLOUR, 255), (0, 0, 255, 0)))
    exif = Image.Exif()
    exif[0x0112] = 6
    # Black above white as stored; turned a quarter to the right, white is on the left.
    save("cat/turned.jpg", Image.fromarray(np.repeat([0, 255], 4).astype(np.uint8)[:, None].repeat(8, axis=1)), "JPEG", quality=95, exif=exif)

    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    jpeg, lossless = png(noise, "JPEG"), png(noise)
    contents = {
        "cat/empty.png": b"",
        "cat/cut early.jpg": jpeg[:20],
        "cat/cut half.jpg": jpeg[: len(jpeg) // 2],
        "dog/cut late.png": lossless[:-200],
        "cat/text.jpg": b"this is no image\n",
        "cat/eps.png": png(noise, "EPS"),
        "dog/bomb.png": huge_png(50_000, 50_000),
        "dog/smaller bomb.png": huge_png(10_000, 9_000),
        "dog/large.bmp": bytes(2**20 + 1),
        "dog/locked.png": lossless,
        "stray.png": lossless,
        "shut/unseen.png": lossless,
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "dog/gone.png").symlink_to(folder / "nowhere.png")
    (folder / "dog/locked.png").chmod(0)
    (folder / "shut").chmod(0)


@pytest.fixture(scope="module")
def planted(spark, tmp_path_factory):
    """(the job's answer, stored images, rejected) of the planted folder."""
    base = tmp_path_factory.mktemp("planted")
    folder = base / "images"
    folder.mkdir()
    plant(folder)
    (base / "run.toml").write_text(f"""
run = "planted"
dataset = "planted"
lake = "{base}/lake"
[ingest]
source = "folder"
path = "{folder}"
height = 8
width = 8
channels = 3
validation = 0.1
test = 0.1
planned_workers = 1
max_file_mb = 1
""")
    # Root reads what it may not, unless it gives up these two capabilities.
    capabilities = "-dac_override,-dac_read_search"
    unprivileged = ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}"] if os.geteuid() == 0 else []
    refused = subprocess.run([*unprivileged, "cat", str(folder / "dog/locked.png")], capture_output=True, text=True)
    assert refused.returncode == 1 and "Permission denied" in refused.stderr, refused.stderr
    job = subprocess.run([*unprivileged, sys.executable, str(ROOT / "jobs/ingest.py"), "--config", str(base / "run.toml")], capture_output=True, text=True, timeout=300)
    (folder / "shut").chmod(0o700)
    assert job.returncode == 0, job.stderr[-3000:]
    url = lake.to_url(f"{base}/lake/datasets/planted")
    return json.loads(job.stdout), stored(spark, url), rejected(spark, url)


def test_every_planted_file_is_written_or_rejected(planted):
    answer, written, rejects = planted
    listed = BAD.keys() - {"shut"}
    assert written.keys() == {*GOOD, *ODD}
    assert rejects.keys() - {"shut"} == listed
    assert (answer["rows"], answer["rejected"]) == (len(written), len(rejects))
    assert answer["rows"] + answer["rejected"] - ("shut" in rejects) == len(GOOD) + len(ODD) + len(listed)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_rejected_with_its_reason(planted, name):
    _, _, rejects = planted
    assert re.search(BAD[name], rejects.get(name, "not in the table")), rejects.get(name)


def test_the_good_files_are_stored_as_they_were(planted):
    _, written, _ = planted
    for name in GOOD:
        pixels, split, label = written[name]
        np.testing.assert_array_equal(pixels, np.full((8, 8, 3), good_value(name)))
        assert split == schema.split_of(name, 0.1, 0.1)
        assert label == name.startswith("dog")


@pytest.mark.parametrize(
    "name, left, right",
    [
        ("cat/cmyk.jpg", COLOUR, COLOUR),
        ("cat/palette.png", COLOUR, (255, 255, 255)),
        ("dog/half clear.png", COLOUR, (255, 255, 255)),
        ("cat/turned.jpg", (255, 255, 255), (0, 0, 0)),
        ("cat/png named.jpg", COLOUR, COLOUR),
        ("dog/16 bit.png", (150, 150, 150), (150, 150, 150)),
        ("cat/same name.png", (11, 11, 11), (11, 11, 11)),
        ("dog/same name.png", (222, 222, 222), (222, 222, 222)),
        ("dog/é #%20?.png", COLOUR, COLOUR),
    ],
)
def test_an_odd_file_is_stored_with_the_right_pixels(planted, name, left, right):
    pixels, _, label = planted[1][name]
    assert label == name.startswith("dog")
    np.testing.assert_allclose(pixels[:, :3].astype(int), np.full((8, 3, 3), left), atol=10)
    np.testing.assert_allclose(pixels[:, 5:].astype(int), np.full((8, 3, 3), right), atol=10)
