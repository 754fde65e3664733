"""Pixels: the one place that knows a value range.

Stored images are uint8 in [0, 255], height x width x channels; networks see float32 in [-1, 1].
"""

import contextlib
import io
import math
import threading
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# EPS and the like are left out: Pillow hands them to an interpreter.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
BILINEAR, LANCZOS = Image.Resampling.BILINEAR, Image.Resampling.LANCZOS


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
    data: bytes, height: int, width: int, channels: int, fit: str = "crop", max_megapixels: int = 64
) -> np.ndarray:
    """Encoded bytes to uint8 [height, width, channels]; `read`, then `resize`. Raises `BadImage` with the reason."""
    return resize(read(data, channels, max_megapixels), height, width, fit)


def read(data: bytes, channels: int, max_megapixels: int = 64) -> np.ndarray:
    """Encoded bytes to uint8 [h, w, channels] in the image's own size.

    EXIF orientation is applied, transparency is laid on white, CMYK becomes RGB,
    16-bit grey becomes 8-bit; of an animation the first frame is taken.
    Raises `BadImage` with the reason.
    """
    if not data:
        raise BadImage("empty file")
    try:
        with _pillow_limit(None):
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_megapixels * 1_000_000:
            raise BadImage(
                f"declares {image.width} x {image.height} pixels, over the limit of {max_megapixels} megapixels"
            )
        with _pillow_limit(max_megapixels * 1_000_000):
            image.load()
        image = _to_8_bit(ImageOps.exif_transpose(image), "RGB" if channels == 3 else "L")
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage(f"not an image in a known format ({', '.join(FORMATS)}); it starts with {data[:8]!r}") from None
    except Exception as error:  # Pillow's decoders raise many types on hostile bytes.
        kind = "truncated" if "truncated" in str(error).lower() or isinstance(error, EOFError) else "cannot be decoded"
        raise BadImage(f"{kind}: {error or type(error).__name__}") from None
    return np.asarray(image).reshape(image.height, image.width, channels)


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


def _to_8_bit(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F":
        raise BadImage("floating-point pixels: they have no range that is known")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image, np.float64)
        if grey.min() < 0 or grey.max() > 65535:
            raise BadImage("32-bit grey: its range is not known")
        # PNG and TIFF open 16-bit grey as "I;16" or "I"; both hold 0 to 65535.
        image = Image.fromarray(np.clip(np.rint(grey / 257), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def convert(pixels: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [h, w, 1 or 3] to [h, w, channels]: grey is repeated, RGB becomes its luminance."""
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
