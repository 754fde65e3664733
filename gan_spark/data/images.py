"""Pixels: the one place that knows a value range.

Stored images are uint8 in [0, 255], height x width x channels; networks see float32 in [-1, 1].
"""

import contextlib
import io
import math
import re
import struct
import threading
from collections.abc import Iterator

import numpy as np
from PIL import ExifTags, Image, ImageOps, features

# EPS and the like are left out: Pillow hands them to an interpreter.
FORMATS = (
    *("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO"),
    *(name for name, feature in (("AVIF", "avif"), ("JPEG2000", "jpg_2000")) if features.check(feature)),
    "TGA",
)
BILINEAR, BOX, LANCZOS = Image.Resampling.BILINEAR, Image.Resampling.BOX, Image.Resampling.LANCZOS

ValueRange = str | tuple[float, float]  # "type", "file" or (low, high)


class BadImage(Exception):
    """An image that cannot be used; its text is the reason a person reads."""


def to_unit(pixels):
    """uint8 [0, 255] to float32 [-1, 1]; NumPy array or TensorFlow tensor."""
    if isinstance(pixels, np.ndarray):
        return pixels.astype(np.float32) / 127.5 - 1.0
    import tensorflow as tf

    return tf.cast(pixels, tf.float32) / 127.5 - 1.0


def to_pixels(unit) -> np.ndarray:
    """float [-1, 1] to uint8 [0, 255], rounded to the nearest and clipped."""
    return np.clip(np.rint((np.asarray(unit, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def decode(
    data: bytes,
    height: int,
    width: int,
    channels: int,
    fit: str = "crop",
    max_megapixels: int = 64,
    value_range: ValueRange = "type",
) -> np.ndarray:
    """Encoded bytes to uint8 [height, width, channels]; `read`, then `resize`. Raises `BadImage` with the reason."""
    return resize(read(data, channels, max_megapixels, value_range), height, width, fit)


def read(data: bytes, channels: int, max_megapixels: int = 64, value_range: ValueRange = "type") -> np.ndarray:
    """Encoded bytes to uint8 [h, w, channels] in the image's own size.

    EXIF orientation is applied, transparency is laid on white, CMYK becomes RGB; of an animation the first frame is
    taken. Of grey with more than 8 bits, `value_range` becomes 0 to 255: what the file's type holds ("type"; of
    floating point and of more than 16 bits, as "file"), what its own pixels span ("file"), or (low, high). Metadata
    that is broken costs nothing but itself.
    Raises `BadImage` with the reason.
    """
    if not data:
        raise BadImage("empty file")
    format = _format_of(data)
    if format is None:
        raise BadImage(f"not an image in a known format ({', '.join(FORMATS)}); it starts with {data[:8]!r}")
    try:
        image = _upright(_loaded(data, format, max_megapixels))
        image = _to_8_bit(image, "RGB" if channels == 3 else "L", value_range)
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes.
        raise BadImage(_in_words(format, error)) from None
    return np.asarray(image).reshape(image.height, image.width, channels)


def _format_of(data: bytes) -> str | None:
    """The one of FORMATS whose files begin as `data` does."""
    Image.init()
    for format in FORMATS:
        accept = Image.OPEN[format][1]
        if accept is not None and accept(data[:16]):
            return format
    return "TGA" if _is_tga(data) else None


# Bits a pixel that there are of each kind of TGA image; 1 and 9 have a colour map.
_TGA_BITS = {1: (8,), 2: (15, 16, 24, 32), 3: (1, 8, 16), 9: (8,), 10: (15, 16, 24, 32), 11: (8, 16)}


def _is_tga(data: bytes) -> bool:
    """Whether `data` begins with what can only be a TGA header: the format has no signature."""
    if len(data) < 18:
        return False
    map_type, kind, _, map_length, _, _, _, width, height, bits, flags = struct.unpack("<xBBHHBHHHHBB", data[:18])
    has_map = map_type == 1 and map_length > 0
    return bits in _TGA_BITS.get(kind, ()) and has_map == (kind in (1, 9)) and width * height > 0 and flags < 64


def _loaded(data: bytes, format: str, max_megapixels: int) -> Image.Image:
    try:
        return _opened(data, format, max_megapixels)
    except BadImage:
        raise
    except Exception:
        if format != "PNG":
            raise
        return _opened(_without_metadata(data), format, max_megapixels)


def _opened(data: bytes, format: str, max_megapixels: int) -> Image.Image:
    # An icon holds images of their own size, and Pillow decodes one as it opens it. Beyond its limit it warns, and
    # fails beyond twice that.
    of_icon = max_megapixels * 1_000_000 // 2
    try:
        return _decoded(data, format, max_megapixels, of_icon if format == "ICO" else None)
    except Image.DecompressionBombError:
        raise BadImage(f"holds an image of more pixels than the limit of {max_megapixels} megapixels") from None


def _decoded(data: bytes, format: str, max_megapixels: int, limit: int | None) -> Image.Image:
    with _pillow_limit(limit):
        # `Image.open` says that it found no image, and not why.
        image = Image.OPEN[format][0](io.BytesIO(data), "")
    if image.width * image.height > max_megapixels * 1_000_000:
        raise BadImage(f"declares {image.width} x {image.height} pixels, over the limit of {max_megapixels} megapixels")
    with _pillow_limit(limit or max_megapixels * 1_000_000):
        image.load()
    if format == "PNG" and "transparency" in image.info:
        image.info["transparency"] = _transparent_colour(image.info["transparency"], image.mode, bits=data[24])
    return image


def _transparent_colour(colour, mode: str, bits: int):
    """The colour that a PNG file calls transparent, in the values of 8 bits that Pillow has made of its pixels."""
    if mode == "RGB" and bits == 16:
        return tuple(value >> 8 for value in colour)
    return colour * 255 // (2**bits - 1) if mode in ("1", "L") and bits < 8 else colour


def _without_metadata(data: bytes) -> bytes:
    """A PNG file's chunks that its pixels depend on."""
    chunks, start = [data[:8]], 8
    while start + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            chunks.append(data[start : start + 12 + length])
        start += 12 + length
    return b"".join(chunks)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation wants it. `ImageOps.exif_transpose` would rewrite the whole block, and fails
    where any other tag is broken.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # The block is whatever bytes somebody put there.
        return image
    return image if turn is None else image.transpose(turn)


# What Pillow says in words that tell a reader nothing, or that contradict the format.
_REASONS = {
    r"decoder error -\d+": "its compressed data cannot be decoded",
    r"not an? .*file": "its header cannot be understood",
    r"not identified by this driver": "its header does not state a size",
    r"cannot load this image": "it holds no pixels that can be read",
    r"string index out of range": "its header cannot be understood",
}
_INTERNAL = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, struct.error)


def _in_words(format: str, error: Exception) -> str:
    """The reason for which Pillow could not read a file of `format`."""
    text = " ".join(str(error).split()) or type(error).__name__
    file = f"{'an' if format[0] in 'AI' else 'a'} {format} file"
    if "requires a buffer" in text:
        text = "it ends inside of its header"
    if isinstance(error, EOFError) or re.search("truncated|only got|not enough data|ends inside", text, re.I):
        return f"{file} that is truncated: {text}"
    if isinstance(error, NotImplementedError) or re.search(
        "unsupported|not supported|unknown|unimplemented", text, re.I
    ):
        return f"{file} of a kind that is not read: {text}"
    if isinstance(error, _INTERNAL):
        text = f"its header cannot be understood ({text})"
    for pattern, reason in _REASONS.items():
        if re.fullmatch(pattern, text, re.I):
            text = reason
    return f"{file} that is damaged: {text}"


_limit_lock = threading.Lock()


@contextlib.contextmanager
def _pillow_limit(pixels: int | None) -> Iterator[None]:
    """Pillow's limit on declared pixels, a global of the process: set while one image is opened or read, then put back.
    The config's limit, which may be higher, takes its place, with a message that names the size.

    Threads read one image at a time. One that opens images through Pillow itself meets this limit in the meantime.
    """
    with _limit_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _to_8_bit(image: Image.Image, mode: str, value_range: ValueRange) -> Image.Image:
    if image.mode in ("F", "I") or image.mode.startswith("I;16"):
        return _from_deep_grey(image, value_range).convert(mode)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _from_deep_grey(image: Image.Image, value_range: ValueRange) -> Image.Image:
    grey = np.asarray(image, np.float64)
    low, high = _limits(image, grey, value_range)
    scaled = (np.nan_to_num(grey, nan=low) - low) * (255 / (high - low))
    if (transparent := image.info.get("transparency")) is not None:
        scaled[grey == transparent] = 255
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _limits(image: Image.Image, grey: np.ndarray, value_range: ValueRange) -> tuple[float, float]:
    """The values that become 0 and 255."""
    if not isinstance(value_range, str):
        return value_range
    # PNG and TIFF open 16-bit grey as "I;16" or "I"; both hold 0 to 65535. Floating point and 32 bits have no range.
    if value_range == "type" and image.mode != "F" and grey.min() >= 0 and grey.max() <= 65535:
        return 0.0, float(_tiff_maximum(image) or 65535)
    finite = grey[np.isfinite(grey)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return low, high if high > low else low + 1


def _tiff_maximum(image: Image.Image) -> int | None:
    """The largest value by a TIFF file's tags MaxSampleValue, or BitsPerSample where they are 9 to 15."""
    tags = getattr(image, "tag_v2", {})
    try:
        bits, maximum = (int(np.max(tags.get(tag, 0))) for tag in (258, 281))
    except (TypeError, ValueError):
        return None
    return maximum if 255 < maximum < 65536 else 2**bits - 1 if 8 < bits < 16 else None


_STRUCT_CHANNELS = {0: 1, 16: 3, 24: 4}  # by OpenCV's types of 8 bits a channel, which Spark's image struct states


def from_struct(row: dict) -> np.ndarray:
    """Spark's image struct to uint8 [h, w, 1 or 3]: its channels are BGR or BGRA; transparency is laid on white.

    Raises `BadImage` where it is of another kind, or does not hold as many bytes as it says.
    """
    channels = _STRUCT_CHANNELS.get(int(row["mode"]))
    if channels is None:
        raise BadImage(
            f"image struct of mode {row['mode']}; expected one of {', '.join(map(str, _STRUCT_CHANNELS))}"
            " (8 bits a channel)"
        )
    height, width, data = int(row["height"]), int(row["width"]), np.frombuffer(bytes(row["data"]), np.uint8)
    if height < 1 or width < 1 or data.size != height * width * channels:
        raise BadImage(f"image struct of {height} x {width} x {channels} with {data.size} bytes")
    pixels = data.reshape(height, width, channels)
    if channels == 4:
        alpha = pixels[:, :, 3:].astype(np.float32) / 255
        pixels = np.rint(pixels * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return pixels if channels == 1 else np.ascontiguousarray(pixels[:, :, 2::-1])


def convert(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [h, w, 1 or 3] to [h, w, channels]: grey is repeated, RGB becomes its luminance."""
    if pixels.shape[2] == channels:
        return pixels
    mode = "RGB" if channels == 3 else "L"
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert(mode)
    return np.asarray(image).reshape(*pixels.shape[:2], channels)


def resize(
    pixels: np.ndarray, height: int, width: int, fit: str = "crop", resample: Image.Resampling = LANCZOS
) -> np.ndarray:
    """uint8 [h, w, channels] to [height, width, channels]; `crop` cuts, `pad` adds black, `stretch` distorts."""
    if pixels.shape[:2] == (height, width):
        return pixels
    channels = pixels.shape[2]
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    if fit == "crop":
        image = ImageOps.fit(image, (width, height), resample)
    elif fit == "pad":
        image = ImageOps.pad(image, (width, height), resample)
    else:
        image = image.resize((width, height), resample)
    return np.asarray(image).reshape(height, width, channels)


def decode_png(data: bytes) -> np.ndarray:
    """PNG bytes that this project wrote to uint8 [height, width, channels]."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        pixels = np.asarray(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 [height, width, 1 or 3] to PNG bytes."""
    out = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def grid(pixels: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """uint8 [n, height, width, channels] laid out row by row on white; as square as can be unless `columns` says."""
    count, height, width, channels = pixels.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for index, image in enumerate(pixels):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet
