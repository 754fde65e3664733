"""Pixels keep their values, and hostile or odd files are decoded rightly or refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gan_spark.data.images import (
    FORMATS,
    BadImage,
    convert,
    decode,
    decode_png,
    encode_png,
    from_struct,
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


@pytest.mark.fault(
    "data",
    "images that declare gigapixels in a few bytes, and files that are none",
    "refused unread, with the size that they declare",
)
@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "^empty file$"),
        (b"this is no image\n", r"^not an image in a known format \(JPEG, PNG, .*it starts with b'this is '"),
        (encoded(noise(), "EPS"), r"^not an image in a known format .*it starts with b'%!PS-Ado'"),
        (huge_png(10_000, 9_000), "^declares 10000 x 9000 pixels, over the limit of 64 megapixels"),
        (huge_png(50_000, 50_000), "^declares 50000 x 50000 pixels, over the limit of 64 megapixels"),
        (huge_png(2**31 - 1, 2**31 - 1), "^declares 2147483647 x 2147483647 pixels, over the limit of 64 megapixels"),
        (huge_png(0, 5), "^a PNG file that is damaged: its header does not state a size"),
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
    with pytest.raises(
        BadImage, match=f"^an? {format} file that is (truncated|damaged): |^not an image in a known format"
    ):
        decode(data[: max(1, int(share * len(data)))], 8, 8, 3)


def test_a_file_cut_in_its_pixels_is_called_truncated():
    data = encoded(noise(), "JPEG")
    with pytest.raises(BadImage, match="^a JPEG file that is truncated: "):
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


# --- what a file states beside its pixels -----------------------------------------------


def with_chunk(data: bytes, added: bytes) -> bytes:
    """A PNG file with a chunk after its header."""
    return data[:33] + added + data[33:]


def broken_resolution(orientation: int) -> bytes:
    """An EXIF block, little-endian: the orientation, and a resolution of -1 / 0."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + struct.pack("<HHII", 0x011A, 10, 1, 38)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4) + struct.pack("<ii", -1, 0)


def test_a_broken_resolution_does_not_cost_the_image_or_its_orientation():
    image = decode(encoded(STORED[6](upright()).copy(), "JPEG", quality=95, exif=broken_resolution(6)), 16, 24, 1)
    for rows, columns in ((slice(0, 6), slice(0, 10)), (slice(10, 16), slice(14, 24))):
        np.testing.assert_allclose(image[rows, columns, 0].astype(int), upright()[rows, columns].astype(int), atol=10)


@pytest.mark.parametrize(
    "added",
    [
        chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(2 * 2**20))),
        chunk(b"tEXt", b"note\0text")[:-4] + b"\0\0\0\0",
        chunk(b"iCCP", b"profile\0\0no deflate stream"),
    ],
    ids=["2 MB of text", "wrong checksum of text", "a profile that is none"],
)
def test_metadata_of_a_png_does_not_cost_the_image(added):
    pixels = noise()
    np.testing.assert_array_equal(decode(with_chunk(encoded(pixels), added), 32, 32, 3), pixels)


@pytest.mark.parametrize(
    "data, message",
    [
        (with_chunk(encoded(noise()), chunk(b"IDAT", b"no pixels")), "^a PNG file that is damaged: "),
        (encoded(noise())[:20], "^a PNG file that is truncated: "),
        (encoded(noise(), "JPEG")[:30] + bytes(300), "^a JPEG file that is (damaged|truncated): "),
        (b"P6\n-5 4\n255\n" + bytes(60), "^a PPM file that is damaged: "),
        (encoded(noise(), "BMP").replace(b"\x18\0\0\0", b"\x1e\0\0\0", 1), "^a BMP file of a kind that is not read: "),
    ],
    ids=["pixels that are none", "cut in its header", "cut by zeros", "negative size", "30 bits"],
)
def test_a_known_format_that_is_damaged_is_called_that(data, message):
    with pytest.raises(BadImage, match=message):
        decode(data, 8, 8, 3)


@pytest.mark.parametrize("format", ["AVIF", "JPEG2000", "ICO", "TGA"])
def test_formats_that_pillow_opens_where_it_has_them(format):
    if format not in FORMATS:
        pytest.skip(f"this Pillow was built without {format}")
    image = decode(encoded(Image.new("RGB", (16, 16), COLOUR), format), 16, 16, 3)
    np.testing.assert_allclose(image.mean((0, 1)), COLOUR, atol=6)


def test_bytes_that_only_begin_like_tga_are_no_image():
    with pytest.raises(BadImage, match="^not an image in a known format"):
        decode(bytes([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0]) + bytes(100), 8, 8, 3)


def deep(values, **options) -> bytes:
    return encoded(Image.fromarray(np.array(values, np.uint16)), **options)


def test_the_range_of_grey_with_more_than_8_bits():
    values = [[0, 1024], [2048, 4095]]
    data = deep(values)
    assert decode(data, 2, 2, 1).max() == 16  # as 16 bits they are almost black
    np.testing.assert_array_equal(decode(data, 2, 2, 1, value_range=(0, 4095))[:, :, 0], [[0, 64], [128, 255]])
    np.testing.assert_array_equal(decode(data, 2, 2, 1, value_range="file")[:, :, 0], [[0, 64], [128, 255]])
    np.testing.assert_array_equal(decode(data, 2, 2, 1, value_range=(1024, 2048))[:, :, 0], [[0, 0], [255, 255]])


@pytest.mark.parametrize("tag, value", [(281, 4095), (281, 1023)])
def test_a_tiff_states_its_largest_value(tag, value):
    data = deep([[0, value]], format="TIFF", tiffinfo={tag: value})
    np.testing.assert_array_equal(decode(data, 1, 2, 1)[0, :, 0], [0, 255])


def twelve_bit_tiff() -> bytes:
    """2 x 1 pixels of 12 bits, 0 and 4095, packed."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 3)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + b"\0\x0f\xff"


def test_a_tiff_of_12_bits_is_not_almost_black():
    np.testing.assert_array_equal(decode(twelve_bit_tiff(), 1, 2, 1)[0, :, 0], [0, 255])


def test_floating_point_spans_its_own_pixels_where_no_range_is_said():
    data = encoded(Image.fromarray(np.array([[-1.0, 0.0, 1.0]], np.float32)), "TIFF")
    for value_range in ("type", "file"):
        np.testing.assert_array_equal(decode(data, 1, 3, 1, value_range=value_range)[0, :, 0], [0, 128, 255])
    np.testing.assert_array_equal(decode(data, 1, 3, 1, value_range=(0.0, 1.0))[0, :, 0], [0, 0, 255])


def test_more_than_16_bits_span_their_own_pixels_and_16_bits_their_type():
    deep, plain = (encoded(Image.fromarray(np.array([row], np.int32)), "TIFF") for row in ([0, 1, 70000], [0, 0, 6425]))
    np.testing.assert_array_equal(decode(deep, 1, 3, 1)[0, :, 0], [0, 0, 255])
    np.testing.assert_array_equal(decode(plain, 1, 3, 1)[0, :, 0], [0, 0, 25])


def keyed_png(bits: int, colour: int, key: bytes, pixels: bytes) -> bytes:
    """2 x 1 pixels, the first of which is the one that the key calls transparent."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0))
    body = chunk(b"tRNS", key) + chunk(b"IDAT", zlib.compress(b"\0" + pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


@pytest.mark.parametrize(
    "data",
    [
        keyed_png(2, 0, b"\0\1", bytes([0b01000000])),
        keyed_png(8, 0, b"\0\x55", b"\x55\0"),
        keyed_png(16, 0, b"\x55\x55", b"\x55\x55\0\0"),
        keyed_png(8, 2, b"\0\1\0\2\0\3", bytes([1, 2, 3, 0, 0, 0])),
        keyed_png(16, 2, b"\1\x20\2\x30\3\x40", bytes([1, 32, 2, 48, 3, 64, 0, 0, 0, 0, 0, 0])),
    ],
    ids=["2-bit grey", "8-bit grey", "16-bit grey", "8-bit RGB", "16-bit RGB"],
)
def test_a_transparent_colour_is_white_in_any_depth(data):
    image = decode(data, 1, 2, 3)
    assert image[0].tolist() == [[255, 255, 255], [0, 0, 0]]


def test_an_image_struct_of_spark():
    row = {"height": 1, "width": 2, "mode": 16, "data": bytes([30, 60, 200, 3, 2, 1])}
    np.testing.assert_array_equal(from_struct(row), [[COLOUR, (1, 2, 3)]])
    assert from_struct({**row, "mode": 0, "data": b"\7\x09"}).tolist() == [[[7], [9]]]
    clear = {**row, "mode": 24, "data": bytes([30, 60, 200, 255, 0, 0, 0, 0])}
    np.testing.assert_array_equal(from_struct(clear), [[COLOUR, (255, 255, 255)]])
    for wrong in ({"mode": 5}, {"height": 0}, {"width": 3}, {"height": -1, "width": -2}):
        with pytest.raises(BadImage, match="^image struct of "):
            from_struct({**row, **wrong})
