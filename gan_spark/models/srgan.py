"""SRGAN: photo-realistic single image super-resolution (Ledig et al., 2017; arXiv 1609.04802).

SRResNet: residual blocks of 3x3 convolutions with batch norm and PReLU, a long skip, sub-pixel convolutions; trained on
mean squared error alone (`adversarial = "none"`), then, from its weights (`pretrained`), on a content loss in the
features of a network, with an adversarial loss. The dataset holds the high-resolution images; the low-resolution input
is their bicubic reduction with anti-aliasing.

The authors published no code; github.com/tensorlayer/srgan was read beside the paper. Squared errors are of images in
[-1, 1] and crops of an image each, as in the paper; that repository adds the pixels' error to the features' (`pixels`).

Differences: low-resolution images are in [-1, 1] too, where the paper has [0, 1]; crops are mirrored half of the time;
both networks step on one pass of the same batch; the network adds to the bicubic enlargement instead of drawing the
image anew, and its last convolution starts at 0, so that it is no worse than bicubic from the first step; least squares
(1611.04076) is offered for the adversarial loss; the learning rate does not fall for the second half; widths and depths
are config values; moving averages. PSNR and SSIM are of the luminance with 4 pixels cut off at each side, as in the
paper.
"""

import dataclasses
import functools

import tensorflow as tf

from ..config import UserError, option
from . import losses
from .base import GenerativeModel
from .blocks import BatchNorm, layers_of, side_by_side


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("srgan", "", choices=("srgan",))
    image_size: int = option(128, "pixels a side of the high-resolution image", low=16, high=1024)
    channels: int = option(3, "of the image", choices=(1, 3))
    factor: int = option(4, "enlargement", choices=(2, 4, 8))
    crop: int = option(0, "side of the random crops that are trained on; 0 for whole images", low=0, high=1024)
    width: int = option(64, "filters of the generator", low=1, high=1024)
    blocks: int = option(16, "residual blocks", low=1, high=64)
    discriminator_width: int = option(64, "filters of the discriminator next to the image", low=1, high=1024)
    adversarial: str = option(
        "cross_entropy", "loss; none for SRResNet", choices=("none", "cross_entropy", "least_squares")
    )
    adversarial_weight: float = option(1e-3, "of the adversarial loss", low=0.0)
    content: str = option(
        "mse",
        "mean squared error of pixels, or of features of VGG16, of VGG19 (the paper's) or of the network of a run",
        choices=("mse", "vgg16", "vgg19", "run"),
    )
    content_weights: str = option("imagenet", "vgg16, vgg19: 'imagenet', or a Keras weights file (.h5)", file=True)
    content_run: str = option("", "run: a lenet that was trained", run="lenet")
    content_layer: str = option("block5_conv4", "layer whose features are compared")
    content_scale: float = option(
        0.006, "weight of the features' squared error (the paper's is 1/12.75 squared)", low=0.0
    )
    pixels: float = option(0.0, "weight of the pixels' squared error beside the features'; the paper has none", low=0.0)
    pretrained: str = option("", "run of the SRResNet to start from", run="srgan")
    average: float = option(
        0.99, "decay of the generator's moving average; 0 for its newest weights", low=0.0, high=0.99999
    )
    rate: float = option(1e-4, "Adam's learning rate", low=0.0, high=1.0)
    beta1: float = option(0.9, "Adam's", low=0.0, high=0.999)


def _prelu():
    return tf.keras.layers.PReLU(shared_axes=[1, 2])


def generator(config: Config) -> tf.keras.Model:
    """Low-resolution images in [-1, 1] of any size -> what to add to their bicubic enlargement."""
    layers = tf.keras.layers
    image = tf.keras.Input([None, None, config.channels])
    first = x = _prelu()(layers.Conv2D(config.width, 9, padding="same")(image))
    for _ in range(config.blocks):
        y = _prelu()(BatchNorm()(layers.Conv2D(config.width, 3, padding="same", use_bias=False)(x)))
        x = layers.Add(dtype="float32")(
            [x, BatchNorm()(layers.Conv2D(config.width, 3, padding="same", use_bias=False)(y))]
        )
    x = layers.Add(dtype="float32")(
        [first, BatchNorm()(layers.Conv2D(config.width, 3, padding="same", use_bias=False)(x))]
    )
    for _ in range(config.factor.bit_length() - 1):
        x = _prelu()(tf.nn.depth_to_space(layers.Conv2D(4 * config.width, 3, padding="same")(x), 2))
    return tf.keras.Model(
        image,
        layers.Conv2D(config.channels, 9, padding="same", kernel_initializer="zeros", dtype="float32")(x),
        name="generator",
    )


def discriminator(config: Config) -> tf.keras.Model:
    """High-resolution images -> logits [n, 1]: eight 3x3 convolutions, four of them with stride 2."""
    layers, side = tf.keras.layers, config.crop or config.image_size
    image = tf.keras.Input([side, side, config.channels])
    x = layers.LeakyReLU(0.2)(layers.Conv2D(config.discriminator_width, 3, padding="same")(image))
    for place in range(1, 8):
        filters = config.discriminator_width * 2 ** (place // 2)
        x = layers.LeakyReLU(0.2)(BatchNorm()(layers.Conv2D(filters, 3, 1 + place % 2, "same", use_bias=False)(x)))
    x = layers.LeakyReLU(0.2)(layers.Dense(16 * config.discriminator_width)(layers.Flatten()(x)))
    return tf.keras.Model(image, layers.Dense(1, dtype="float32")(x), name="discriminator")


class SRGAN(GenerativeModel):
    Config = Config

    @classmethod
    def takes(cls, config):
        return ("image",)

    @classmethod
    def batch_statistics(cls, config):
        return "whole"

    def __init__(self, config, reduce=list, seed=0, pretrained=None, content_run=None):
        super().__init__(config, reduce, seed)
        self.pretrained, self.content_run = pretrained, content_run
        self.generator = generator(config)
        self.sampler = self.average(generator(config), self.generator)
        self.optimize("g", tf.keras.optimizers.Adam(config.rate, config.beta1), self.generator.trainable_variables)
        if config.adversarial != "none":
            self.discriminator = discriminator(config)
            self.cross_entropy = "" if config.adversarial == "least_squares" else "d_loss"
            self.optimize(
                "d", tf.keras.optimizers.Adam(config.rate, config.beta1), self.discriminator.trainable_variables
            )
        side = config.crop or config.image_size
        if config.content == "run" and content_run is None:
            raise UserError("model.content = 'run' without model.content_run: expected the name of a lenet's run")
        if any(pixels % config.factor for pixels in (side, config.image_size)) or side > config.image_size:
            raise UserError(
                f"model.image_size = {config.image_size}, model.crop = {config.crop}: expected multiples of"
                f" model.factor = {config.factor}, and a crop no larger than the image"
            )

    @functools.cached_property
    def _features(self):
        """Images -> features, where the content loss compares those.

        It is loaded by what trains, as sampling has no use for it.
        """
        if self.config.content == "mse":
            return None
        if self.config.content == "run":
            return lambda images: layers_of(self.content_run.network, (self.config.content_layer,), images)[0]
        from .. import networks

        name = self.config.content.upper()
        network = networks.load(name, self.config.content_weights, include_top=False)
        network.trainable = False
        colour = (lambda images: images) if self.config.channels == 3 else tf.image.grayscale_to_rgb
        scaled = networks.preprocess(name)
        return lambda images: layers_of(network, (self.config.content_layer,), scaled(colour(images + 1.0) * 127.5))[0]

    def begin(self):
        if self._features:  # so that weights or a layer that are not there are told before the first step
            self._features(tf.zeros([1, 32, 32, self.config.channels]))
        if self.pretrained is not None:
            weights = self.pretrained.sampler.get_weights()
            if [value.shape for value in weights] != [tuple(variable.shape) for variable in self.generator.weights]:
                raise UserError(
                    "model.pretrained: its generator has other layers than this one; expected the same width, blocks,"
                    f" factor and channels, found {self.pretrained.config}"
                )
            for network in (self.generator, self.sampler):
                network.set_weights(weights)

    def reduced(self, images: tf.Tensor) -> tf.Tensor:
        """Bicubic reduction by `factor`, with anti-aliasing."""
        return tf.image.resize(images, tf.shape(images)[1:3] // self.config.factor, "bicubic", antialias=True)

    def bicubic(self, low: tf.Tensor) -> tf.Tensor:
        """Bicubic enlargement by `factor`."""
        return tf.image.resize(low, tf.shape(low)[1:3] * self.config.factor, "bicubic")

    def enlarged(self, low: tf.Tensor, network: tf.keras.Model, training: bool = False) -> tf.Tensor:
        return self.bicubic(low) + network(low, training=training)

    def content(self, images: tf.Tensor, fake: tf.Tensor) -> tf.Tensor:
        pixels = tf.reduce_mean(tf.square(images - fake))
        with tf.init_scope():  # Its weights are no part of the step that is traced.
            features = self._features
        if features is None:
            return pixels
        fake_features, real_features = (tf.cast(features(batch), tf.float32) for batch in (fake, images))
        error = tf.reduce_mean(tf.square(real_features - fake_features))
        return self.config.pixels * pixels + self.config.content_scale * error

    def train_step(self, batches):
        (batch,) = batches
        images = self.cropped(batch["image"])
        with tf.GradientTape(persistent=True) as tape:
            fake = self.enlarged(self.reduced(images), self.generator, training=True)
            content = g_loss = self.content(images, fake)
            if self.config.adversarial != "none":
                real_logits, fake_logits = (
                    self.discriminator(images, training=True),
                    self.discriminator(fake, training=True),
                )
                squares = self.config.adversarial == "least_squares"
                adversarial = (
                    losses.least_squares(fake_logits, 1.0) if squares else losses.generator_non_saturating(fake_logits)
                )
                d_loss = (
                    0.5 * (losses.least_squares(real_logits, 1.0) + losses.least_squares(fake_logits, 0.0))
                    if squares
                    else losses.discriminator(real_logits, fake_logits)
                )
                g_loss = content + self.config.adversarial_weight * adversarial
        self.minimize("g", tape, g_loss)
        self.update_averages(self.config.average)
        scalars = {"content": content, "psnr": tf.reduce_mean(tf.image.psnr(images, fake, 2.0))}
        if self.config.adversarial != "none":
            self.minimize("d", tape, d_loss)
            scalars |= {"adversarial": adversarial, "d_loss": d_loss}
        return scalars

    def cropped(self, images: tf.Tensor) -> tf.Tensor:
        """A random square of each image, mirrored half of the time."""
        config, chances = self.config, self.uniform([tf.shape(images)[0], 3], low=0.0)
        images = tf.where(chances[:, 2, None, None, None] < 0.5, images, images[:, :, ::-1])
        if not config.crop:
            return images
        room = config.image_size - config.crop
        corners = tf.minimum(tf.cast(chances[:, :2] * (room + 1.0), tf.int32), room)
        rows, columns = (corners[:, axis, None] + tf.range(config.crop) for axis in (0, 1))
        return tf.gather(tf.gather(images, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)

    def generate(self, inputs, seeds):
        """Images of the dataset's size are reduced and enlarged again; smaller ones are enlarged."""
        images = inputs["image"]
        low = self.reduced(images) if images.shape[1] == self.config.image_size else images
        return tf.clip_by_value(self.enlarged(low, self.sampler), -1.0, 1.0)

    def preview(self, batch, seeds):
        """Low resolution, bicubic, generated, original."""
        images = batch["image"][:16]
        low = self.reduced(images)
        return side_by_side(
            tf.image.resize(low, tf.shape(images)[1:3], "nearest"),
            tf.clip_by_value(self.bicubic(low), -1.0, 1.0),
            self.generate(batch, seeds)[:16],
            images,
        )

    def held_out(self, batch):
        images = batch["image"]
        low = self.reduced(images)
        values = {}
        for suffix, enlarged in (("", self.enlarged(low, self.sampler)), ("_bicubic", self.bicubic(low))):
            values |= {name + suffix: value for name, value in measured(images, enlarged).items()}
        return values


def measured(images: tf.Tensor, enlarged: tf.Tensor) -> dict[str, tf.Tensor]:
    """`psnr` in dB and `ssim`, [n], of enlarged images [n, h, w, channels] in [-1, 1] against the originals: of their
    luminance, with 4 pixels left out at each side.
    """
    real, fake = (luminance(tf.clip_by_value(batch, -1.0, 1.0))[:, 4:-4, 4:-4] for batch in (images, enlarged))
    window = min(11, *(side - 8 for side in images.shape[1:3]))
    return {"psnr": tf.image.psnr(real, fake, 1.0), "ssim": tf.image.ssim(real, fake, 1.0, window)}


def luminance(images: tf.Tensor) -> tf.Tensor:
    """[-1, 1] to the Y of BT.601 in [0, 1], [n, h, w, 1]; grey images are only rescaled."""
    values = 0.5 * (images + 1.0)
    if images.shape[-1] == 1:
        return values
    return (16.0 + tf.tensordot(values, tf.constant([65.481, 128.553, 24.966]), 1)[..., None]) / 255.0
