"""Images of any size enlarged by a run: in tiles as whole, and measured as papers measure it."""

import io
import json

import numpy as np
import pytest
import tensorflow as tf
from conftest import make_config, make_model
from PIL import Image

from gan_spark import lake as lakes
from gan_spark.config import UserError, resolved
from gan_spark.data import images
from gan_spark.runs.store import Run
from gan_spark.sampling import enlarge

pytestmark = pytest.mark.slow


def smooth(height: int, width: int, channels: int = 1) -> np.ndarray:
    """Waves of a few periods: what interpolation brings back, though not all of it."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / (3 + c)) + np.cos(x / (2 + c)) for c in range(channels)]
    return images.to_pixels(np.stack(waves, -1) / 2.5)


def stirred(**changes):
    """A model that is no longer the interpolation which it begins as."""
    model = make_model("srgan", **changes)
    for number, variable in enumerate(model.sampler.weights):
        variable.assign_add(0.1 * tf.random.stateless_normal(variable.shape, [7, number]))
    return model


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_tiles_make_what_the_whole_image_becomes(factor):
    model, low = stirred(factor=factor), smooth(41, 53)
    whole = images.to_pixels(model.enlarged(images.to_unit(low[None]), model.sampler))[0].astype(int)
    assert np.abs(whole - images.to_pixels(model.bicubic(images.to_unit(low[None])))[0]).max() > 5
    made = enlarge.by_network(model, side=16)(low)
    assert made.shape == (41 * factor, 53 * factor, 1) and np.abs(whole - made).max() <= 1
    # A margin that hides something from a tile's pixels shows.
    cut = enlarge._by_tiles(model, lambda x: model.enlarged(x, model.sampler), 16, 2)(low)
    assert np.abs(whole - cut).max() > 1


@pytest.fixture(scope="module")
def run(lake):
    """A run of an srgan that is interpolation, as before its first step."""
    model, made = make_model("srgan"), Run(f"{lake}/runs/enlarges")
    made.start({"config": {"model": resolved(model.config), "uses": {}}, "created": "2024-01-01T00:00:00+00:00"})
    made.save_checkpoint(1, lambda prefix: tf.train.Checkpoint(model=model).write(prefix), 1)
    return made


def of_luminance(real: np.ndarray, made: np.ndarray) -> float:
    """PSNR of grey images, with 4 pixels left out at each side."""
    real, made = (pixels[4:-4, 4:-4, 0].astype(float) for pixels in (real, made))
    return 10 * np.log10(255**2 / np.mean((real - made) ** 2))


def test_originals_are_reduced_and_compared_and_odd_files_are_named(spark, lake, run, tmp_path):
    folder = tmp_path / "photographs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.png").write_bytes(images.encode_png(smooth(33, 50)))
    (folder / "deep" / "b.png").write_bytes(images.encode_png(smooth(64, 40)))
    (folder / "small.png").write_bytes(images.encode_png(smooth(12, 40)))
    (folder / "notes.txt").write_text("no image")
    config = make_config(lake, "srgan", "enlarges", enlarge={"input": str(folder), "originals": True})
    answer = enlarge.enlarge(spark, config)
    assert (answer["images"], answer["rejected"], answer["step"]) == (2, 2, 1)
    assert answer["psnr"] == answer["psnr_bicubic"] and answer["ssim"] == answer["ssim_bicubic"]
    rows = {row["input"].rsplit("/", 1)[1]: row for row in spark.read.parquet(answer["table"]).collect()}
    expected = []
    for name, original in (("a.png", smooth(33, 50)[:32, :48]), ("b.png", smooth(64, 40))):
        low = tf.image.resize(
            images.to_unit(original[None]), [side // 4 for side in original.shape[:2]], "bicubic", antialias=True
        )
        low = images.to_unit(images.to_pixels(low))
        back = images.to_pixels(tf.image.resize(low, original.shape[:2], "bicubic"))[0]
        np.testing.assert_array_equal(images.decode_png(rows[name]["image"]), back)
        expected.append(of_luminance(original, back))
        assert rows[name]["psnr"] == pytest.approx(expected[-1], abs=1e-3) and rows[name]["reason"] is None
        assert (rows[name]["height"], rows[name]["width"]) == original.shape[:2]
    assert answer["psnr"] == pytest.approx(np.mean(expected), abs=1e-3) and 15 < answer["psnr"] < 60
    assert rows["small.png"]["reason"] == "12 x 40 pixels: expected 16 a side to compare with"
    assert rows["notes.txt"]["reason"].startswith("not an image in a known format")
    assert rows["notes.txt"]["image"] is None and rows["small.png"]["psnr"] is None
    picture = Image.open(io.BytesIO(lakes.read_bytes(answer["picture"])))
    assert picture.size == (4 * 130 + 4, 2 * 130 + 2)
    assert json.dumps(answer)


def test_a_photograph_of_its_own_is_enlarged_whole(spark, lake, run, tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(images.encode_png(smooth(130, 9)))
    answer = enlarge.enlarge(spark, make_config(lake, "srgan", "enlarges", enlarge={"input": str(path)}))
    assert (answer["images"], answer["rejected"]) == (1, 0) and "psnr" not in answer
    (row,) = spark.read.parquet(answer["table"]).collect()
    assert (row["height"], row["width"], row["channels"]) == (520, 36, 1) and row["psnr"] is None
    assert images.decode_png(row["image"]).shape == (520, 36, 1)


def test_what_cannot_be_enlarged_is_refused(spark, lake, run, tmp_path):
    def refused(message: str, **options):
        config = make_config(lake, "srgan", "enlarges", **options)
        with pytest.raises(UserError, match=message):
            enlarge.enlarge(spark, config)

    before = lakes.exists(f"{lake}/generated/enlarges-enlarged") and lakes.read_bytes(
        f"{lake}/generated/enlarges-enlarged.png"
    )
    refused("enlarge.input is empty")
    refused("nowhere': no such file or folder", enlarge={"input": f"{tmp_path}/nowhere"})
    path = tmp_path / "large.png"
    path.write_bytes(images.encode_png(smooth(300, 300)))
    refused("none of 1 files is an image", enlarge={"input": str(path)}, ingest={"max_megapixels": 1})
    if before:
        assert lakes.read_bytes(f"{lake}/generated/enlarges-enlarged.png") == before
    model, other = make_model("gan"), Run(f"{lake}/runs/draws")
    other.start({"config": {"model": resolved(model.config), "uses": {}}, "created": "2024-01-01T00:00:00+00:00"})
    with pytest.raises(UserError, match="expected an srgan to enlarge with, found 'gan'"):
        enlarge.enlarge(spark, make_config(lake, "gan", "draws", enlarge={"input": str(path)}))
