"""Pixels keep their values, and hostile or odd files are decoded rightly or refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gan_spark.data.images import (
    BadImage,
    convert,
    decode,
    decode_png,
    encode_png,
    grid,
    resize,
    to_pixels,
    to_unit,
)

COLOUR = (200, 60, 30)


def encoded(image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, format, **options)
    return out.getvalue()


def noise(height: int = 32, width: int = 32, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_all_256_values_survive_the_round_trip():
    values = np.arange(256, dtype=np.uint8)
    unit = to_unit(values)
    assert unit.dtype == np.float32
    assert (unit[0], unit[255]) == (-1.0, 1.0)
    assert np.all(np.diff(unit) > 0)
    assert to_pixels(unit).dtype == np.uint8
    np.testing.assert_array_equal(to_pixels(unit), values)


def test_tensorflow_and_numpy_agree():
    import tensorflow as tf

    values = np.arange(256, dtype=np.uint8)
    unit = to_unit(tf.constant(values))
    assert unit.dtype == tf.float32
    np.testing.assert_array_equal(unit.numpy(), to_unit(values))
    np.testing.assert_array_equal(to_pixels(unit), values)


def test_values_out_of_range_are_clipped():
    np.testing.assert_array_equal(to_pixels([-3.0, -1.001, 1.001, 3.0]), [0, 0, 255, 255])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_decodes(format, channels):
    options = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    image = decode(encoded(Image.new("RGB", (16, 12), COLOUR), format, **options), 12, 16, channels)
    assert image.shape == (12, 16, channels)
    assert image.dtype == np.uint8
    expected = COLOUR if channels == 3 else [0.299 * COLOUR[0] + 0.587 * COLOUR[1] + 0.114 * COLOUR[2]]
    np.testing.assert_allclose(image.mean((0, 1)), expected, atol=6)


def test_lossless_pixels_are_exact():
    pixels = noise()
    np.testing.assert_array_equal(decode(encoded(pixels), 32, 32, 3), pixels)
    np.testing.assert_array_equal(decode(encoded(pixels[:, :, 0]), 32, 32, 1), pixels[:, :, :1])


def test_grey_becomes_rgb():
    grey = noise(channels=1)[:, :, 0]
    np.testing.assert_array_equal(decode(encoded(grey), 32, 32, 3), np.repeat(grey[:, :, None], 3, axis=2))


def half_transparent(mode: str) -> bytes:
    """Left half COLOUR, right half fully transparent."""
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([*COLOUR, 0, 0, 255])
        image.paste(1, (4, 0, 8, 8))
        return encoded(image, transparency=1)
    image = Image.new("RGBA", (8, 8), (*COLOUR, 255))
    image.paste((0, 0, 255, 0), (4, 0, 8, 8))
    return encoded(image.convert(mode))


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparency_is_laid_on_white(mode):
    image = decode(half_transparent(mode), 8, 8, 3)
    np.testing.assert_array_equal(image[:, :4], np.full((8, 4, 3), COLOUR))
    np.testing.assert_array_equal(image[:, 4:], np.full((8, 4, 3), 255))


def test_grey_transparency_is_laid_on_white():
    image = decode(half_transparent("LA"), 8, 8, 1)
    assert image[:, :4].max() < 120
    assert image[:, 4:].min() == 255


def test_half_transparency_is_mixed_with_white():
    image = decode(encoded(Image.new("RGBA", (8, 8), (0, 100, 200, 128))), 8, 8, 3)
    np.testing.assert_allclose(image[0, 0], [127, 177, 227], atol=2)


def test_cmyk_jpeg():
    image = decode(encoded(Image.new("RGB", (16, 16), COLOUR).convert("CMYK"), "JPEG", quality=95), 16, 16, 3)
    np.testing.assert_allclose(image.mean((0, 1)), COLOUR, atol=6)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_becomes_8_bit(format):
    deep = np.array([[0, 65535], [257 * 100, 257 * 200]], np.uint16)
    image = decode(encoded(deep, format), 2, 2, 1)
    np.testing.assert_array_equal(image[:, :, 0], [[0, 255], [100, 200]])


def test_16_bit_grey_as_rgb():
    image = decode(encoded(np.full((2, 2), 257 * 77, np.uint16)), 2, 2, 3)
    np.testing.assert_array_equal(image, np.full((2, 2, 3), 77))


def upright() -> np.ndarray:
    """16 x 24 pixels with another grey in each quarter."""
    return np.kron(np.array([[20, 90], [160, 230]], np.uint8), np.ones((8, 12), np.uint8))


# The tag says on which side of the upright image the first row and the first column of the file lie.
STORED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.T,
    6: lambda image: np.rot90(image),
    7: lambda image: image[::-1, ::-1].T,
    8: lambda image: np.rot90(image, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(STORED[orientation](upright())), "JPEG", quality=95, exif=exif)
    image = decode(data, 16, 24, 1)[:, :, 0].astype(int)
    for rows in (slice(0, 6), slice(10, 16)):
        for columns in (slice(0, 10), slice(14, 24)):
            np.testing.assert_allclose(image[rows, columns], upright()[rows, columns].astype(int), atol=10)


def test_an_unreadable_exif_block_does_no_harm():
    data = encoded(np.full((8, 8), 99, np.uint8), "JPEG", exif=b"Exif\0\0no such header")
    np.testing.assert_allclose(decode(data, 8, 8, 1), 99, atol=2)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in (COLOUR, (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    np.testing.assert_allclose(decode(data, 8, 8, 3)[0, 0], COLOUR, atol=6)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that declare `width` x `height` pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "^empty file$"),
        (b"this is no image\n", r"^not an image in a known format \(JPEG, PNG, .*it starts with b'this is '"),
        (encoded(noise(), "EPS"), r"^not an image in a known format .*it starts with b'%!PS-Ado'"),
        (huge_png(10_000, 9_000), "^declares 10000 x 9000 pixels, over the limit of 64 megapixels"),
        (huge_png(50_000, 50_000), "^declares 50000 x 50000 pixels, over the limit of 64 megapixels"),
        (huge_png(2**31 - 1, 2**31 - 1), "^declares 2147483647 x 2147483647 pixels, over the limit of 64 megapixels"),
        (huge_png(0, 5), "^not an image in a known format"),
    ],
    ids=["empty", "text", "eps", "90 megapixels", "2.5 gigapixels", "the largest png", "no pixels"],
)
def test_what_is_no_usable_image_is_refused(data, message):
    with pytest.raises(BadImage, match=message):
        decode(data, 8, 8, 3)


@pytest.mark.parametrize("size, limit", [((1000, 1001), 1), ((1001, 1000), 1)])
def test_the_limit_on_pixels_can_be_moved(size, limit):
    data = encoded(Image.new("1", size))
    with pytest.raises(BadImage, match=f"declares {size[0]} x {size[1]} pixels, over the limit of {limit} megapixels"):
        decode(data, 8, 8, 1, max_megapixels=limit)
    assert decode(data, 8, 8, 1, max_megapixels=limit + 1).shape == (8, 8, 1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_refused(format, share):
    data = encoded(noise(), format)
    with pytest.raises(BadImage, match="^truncated: |^cannot be decoded: |^not an image in a known format"):
        decode(data[: max(1, int(share * len(data)))], 8, 8, 3)


def test_a_file_cut_in_its_pixels_is_called_truncated():
    data = encoded(noise(), "JPEG")
    with pytest.raises(BadImage, match="^truncated: "):
        decode(data[: len(data) // 2], 8, 8, 3)


def stripes() -> np.ndarray:
    """4 x 12: a third each of 10, 100 and 200."""
    return np.repeat(np.array([10, 100, 200], np.uint8), 4)[None, :, None].repeat(4, axis=0)


def test_crop_keeps_the_middle():
    np.testing.assert_array_equal(resize(stripes(), 4, 4, "crop"), np.full((4, 4, 1), 100))


def test_pad_keeps_everything_between_black():
    image = resize(stripes(), 12, 12, "pad")
    np.testing.assert_array_equal(image[4:8], stripes())
    assert image[:4].max() == image[8:].max() == 0


def test_stretch_fills_the_frame():
    image = resize(stripes(), 12, 12, "stretch")
    np.testing.assert_array_equal(image, stripes()[:1].repeat(12, axis=0))


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 1000), (1000, 1), (1, 1), (3, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_size_fits(fit, size, channels):
    assert decode(encoded(noise(*size)), 8, 6, channels, fit).shape == (8, 6, channels)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_right_size_is_left_alone(fit):
    np.testing.assert_array_equal(resize(noise(), 32, 32, fit), noise())


def test_convert():
    grey, colour = noise(channels=1), noise()
    np.testing.assert_array_equal(convert(grey, 3), grey.repeat(3, axis=2))
    np.testing.assert_allclose(convert(colour, 1)[:, :, 0], colour @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(channels):
    pixels = noise(5, 7, channels)
    np.testing.assert_array_equal(decode_png(encode_png(pixels)), pixels)


@pytest.mark.parametrize(
    "columns, shape, places",
    [(None, (2, 3), [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]), (2, (3, 2), [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)])],
)
def test_grid(columns, shape, places):
    pixels = np.stack([np.full((4, 6, 3), 10 * i, np.uint8) for i in range(5)])
    sheet = grid(pixels, columns, gap=1)
    assert sheet.shape == (shape[0] * 5 + 1, shape[1] * 7 + 1, 3)
    for image, (row, column) in zip(pixels, places, strict=True):
        top, left = 1 + 5 * row, 1 + 7 * column
        np.testing.assert_array_equal(sheet[top : top + 4, left : left + 6], image)
        sheet[top : top + 4, left : left + 6] = 255
    assert sheet.min() == 255
