"""Decoding of images within a TensorFlow graph, for processes that have TensorFlow alone.

PNG, JPEG, GIF (its first frame) and BMP. A PNG of the model's own size becomes the pixels that `data.images` reads.
Others are fitted by TensorFlow's Lanczos filter, of which a pixel may differ from Pillow's by a few of 256 values; a
JPEG's orientation is not applied.
"""

import tensorflow as tf


def decoded(data: tf.Tensor, shape: tuple[int, int, int], fit: str) -> tf.Tensor:
    """Encoded images, string [n], to uint8 [n, height, width, channels]."""
    return tf.map_fn(
        lambda one: _fitted(_channels(_first_frame(one), shape[2]), shape, fit),
        data,
        fn_output_signature=tf.TensorSpec(shape, tf.uint8),
    )


def _first_frame(data: tf.Tensor) -> tf.Tensor:
    """uint8 [h, w, 1 to 4]: as many channels as the file has."""
    image = tf.io.decode_image(data, expand_animations=False)
    return tf.ensure_shape(image, [None, None, None])


def _channels(image: tf.Tensor, channels: int) -> tf.Tensor:
    """uint8 [h, w, `channels`]: transparency is laid on white, grey is repeated, colours become their luminance, each
    in the whole numbers that Pillow computes with.
    """
    has_alpha = tf.shape(image)[2] % 2 == 0
    opaque = tf.cond(has_alpha, lambda: _on_white(image), lambda: image)
    is_grey = tf.shape(opaque)[2] == 1
    if channels == 3:
        return tf.cond(is_grey, lambda: tf.tile(opaque, [1, 1, 3]), lambda: opaque)
    return tf.cond(is_grey, lambda: opaque, lambda: _luminance(opaque))


def _on_white(image: tf.Tensor) -> tf.Tensor:
    values = tf.cast(image, tf.int32)
    colours, alpha = values[:, :, :-1], values[:, :, -1:] * 128
    mixed = colours * alpha + 255 * (255 * 128 - alpha) + (0x80 << 7)
    return tf.cast((mixed // 256 + mixed) // 256 // 128, tf.uint8)


def _luminance(image: tf.Tensor) -> tf.Tensor:
    weighed = tf.cast(image, tf.int32) * tf.constant([19595, 38470, 7471])
    return tf.cast((tf.reduce_sum(weighed, 2, keepdims=True) + 0x8000) // 65536, tf.uint8)


def _fitted(image: tf.Tensor, shape: tuple[int, int, int], fit: str) -> tf.Tensor:
    is_of_size = tf.reduce_all(tf.shape(image)[:2] == shape[:2])
    fitted = tf.cond(is_of_size, lambda: image, lambda: _resized(image, shape, fit))
    return tf.ensure_shape(fitted, shape)


def _resized(image: tf.Tensor, shape: tuple[int, int, int], fit: str) -> tf.Tensor:
    height, width = shape[:2]
    if fit == "crop":
        image = _middle(image, height, width)
    values = tf.image.resize(image, (height, width), "lanczos3", antialias=True, preserve_aspect_ratio=fit == "pad")
    if fit == "pad":
        values = tf.image.resize_with_crop_or_pad(values, height, width)
    return tf.cast(tf.clip_by_value(tf.round(values), 0.0, 255.0), tf.uint8)


def _middle(image: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """The largest part of the aspect ratio width / height, from the image's middle."""
    size = tf.shape(image)
    cut_height = tf.minimum(size[0], tf.maximum(1, size[1] * height // width))
    cut_width = tf.minimum(size[1], tf.maximum(1, size[0] * width // height))
    top, left = (size[0] - cut_height) // 2, (size[1] - cut_width) // 2
    return image[top : top + cut_height, left : left + cut_width]
