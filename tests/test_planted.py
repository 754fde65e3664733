"""A folder with every kind of bad file, through the job: each is written or rejected, and says why."""

import json
import os
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_ingest import png, rejected, stored

from gan_spark import lake
from gan_spark.data import schema

pytestmark = pytest.mark.slow

COLOUR = (200, 60, 30)
BAD = {
    "cat/empty.png": "^empty file$",
    "cat/cut early.jpg": "^a JPEG file that is damaged: its header does not state a size",
    "cat/cut half.jpg": "^a JPEG file that is truncated: ",
    "dog/cut late.png": "^a PNG file that is truncated: ",
    "cat/text.jpg": "^not an image in a known format .*it starts with b'this is '",
    "cat/eps.png": "^not an image in a known format .*it starts with b'%!PS",
    "dog/bomb.png": "^declares 50000 x 50000 pixels, over the limit of 64 megapixels",
    "dog/smaller bomb.png": "^declares 10000 x 9000 pixels, over the limit of 64 megapixels",
    "dog/large.bmp": r"^1048577 bytes, over the limit of 1 MB",
    "dog/locked.png": "^permission denied$",
    "dog/folder.jpg": "^a folder, not a file$",
    "dog/gone.png": "^gone: |^not a file",
    "stray.png": "^not inside a class folder",
    "shut": "^a folder that cannot be listed: Permission denied$",
    "cat/deep/shut": "^a folder that cannot be listed: Permission denied$",
}
SHUT = ["shut", "cat/deep/shut"]
ODD = [
    "cat/cmyk.jpg",
    "cat/palette.png",
    "cat/turned.jpg",
    "cat/png named.jpg",
    "dog/16 bit.png",
    "dog/same name.png",
    "cat/same name.png",
    "dog/half clear.png",
    "dog/é #%20?.png",
]
GOOD = [f"{kind}/{i:02d}.png" for kind in ("cat", "dog") for i in range(15)]


def good_value(name: str) -> int:
    return 100 * name.startswith("dog") + 5 * int(name[4:6])


def huge_png(width: int, height: int) -> bytes:
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def left_and_right(left, right) -> Image.Image:
    image = Image.new("RGBA", (8, 8), left)
    image.paste(right, (4, 0, 8, 8))
    return image


def plant(folder) -> None:
    """Files as BAD, ODD and GOOD name them."""
    for kind in ("cat", "dog", "dog/folder.jpg", "shut", "cat/deep", "cat/deep/shut"):
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
    save(
        "cat/turned.jpg",
        Image.fromarray(np.repeat([0, 255], 4).astype(np.uint8)[:, None].repeat(8, axis=1)),
        "JPEG",
        quality=95,
        exif=exif,
    )

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
        "cat/deep/shut/unseen.png": lossless,
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / "dog/gone.png").symlink_to(folder / "nowhere.png")
    (folder / "dog/locked.png").chmod(0)
    for name in SHUT:
        (folder / name).chmod(0)


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
    unprivileged = (
        ["setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}"] if os.geteuid() == 0 else []
    )
    refused = subprocess.run([*unprivileged, "cat", str(folder / "dog/locked.png")], capture_output=True, text=True)
    assert refused.returncode == 1 and "Permission denied" in refused.stderr, refused.stderr
    job = subprocess.run(
        [*unprivileged, sys.executable, str(ROOT / "jobs/ingest.py"), "--config", str(base / "run.toml")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    for name in SHUT:
        (folder / name).chmod(0o700)
    assert job.returncode == 0, job.stderr[-3000:]
    url = lake.to_url(f"{base}/lake/datasets/planted")
    return json.loads(job.stdout), stored(spark, url), rejected(spark, url)


@pytest.mark.fault(
    "data",
    "a folder with every kind of bad file, through the job of its own",
    "each file is an image or a reject: none is lost, and the job ends well",
)
def test_every_planted_file_is_written_or_rejected(planted):
    answer, written, rejects = planted
    assert written.keys() == {*GOOD, *ODD}
    assert rejects.keys() == BAD.keys()
    assert (answer["rows"], answer["rejected"]) == (len(written), len(rejects))


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
