"""SSGAN: a semi-supervised GAN of n + 1 classes (Salimans et al., 2016; arXiv 1606.03498).

The discriminator is a classifier: its n logits l say the class, and real is D(x) = Z / (Z + 1) with Z = sum exp l,
which is n + 1 classes with the last logit held at 0. It learns from a few labelled images, from unlabelled ones being
real, and from generated ones not being so. The generator matches the mean of a middle layer's features (feature
matching).

Differences: features are matched with the classifier as it is without noise and dropout, whose variance would else be
most of what is matched; z is normal; labelled images are not among the unlabelled too; a constant learning rate;
DCGAN's generator; a classifier of strided 5x5 convolutions with leaky ReLU and dropout, without batch norm, as
labelled, unlabelled and generated batches have other statistics, and without weight normalisation; a moving average of
both networks, from which images and classes come. The authors' code (github.com/openai/improved-gan) weighs the losses
on unlabelled and generated images by a half (`unlabelled = 0.5`), for CIFAR-10 matches features by absolute
differences, steps the generator after the classifier on another batch, and begins by scaling layers to their data.
`adversarial = false` trains the same classifier on the labelled images alone: what it must beat.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from ..config import option
from . import dcgan, losses
from .base import GenerativeModel
from .blocks import Dropout, Noise, pyramid


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("ssgan", "", choices=("ssgan",))
    image_size: int = option(28, "pixels a side", low=8, high=1024)
    channels: int = option(1, "of the image", choices=(1, 3))
    classes: int = option(10, "n, how many", low=2)
    latent: int = option(100, "size of z", low=1)
    width: int = option(64, "filters next to the image; doubled at each halving", low=1, high=1024)
    dropout: float = option(0.5, "after each block of the classifier", low=0.0, high=0.95)
    noise: float = option(
        0.1, "deviation of the noise that is added to the classifier's input in training", low=0.0, high=10.0
    )
    adversarial: bool = option(True, "false: the labelled images alone")
    unlabelled: float = option(1.0, "weight of the losses on unlabelled and generated images", low=0.0)
    average: float = option(
        0.999, "decay of both networks' moving averages; 0 for their newest weights", low=0.0, high=0.99999
    )
    generator_rate: float = option(3e-4, "Adam's learning rate", low=0.0, high=1.0)
    classifier_rate: float = option(3e-4, "Adam's learning rate", low=0.0, high=1.0)
    beta1: float = option(0.5, "Adam's", low=0.0, high=0.999)


def classifier(config: Config, key: Callable[[], tf.Tensor]) -> tf.keras.Model:
    """Images in [-1, 1] -> (features [n, d] of the last hidden layer, class logits [n, classes]): 5x5 convolutions with
    stride 2.
    """
    layers, (_, doublings) = tf.keras.layers, pyramid(config.image_size)
    image = tf.keras.Input([config.image_size, config.image_size, config.channels])
    x = Noise(config.noise, key)(image)
    for level in range(max(doublings, 3)):
        x = layers.LeakyReLU(0.2)(layers.Conv2D(config.width * 2**level, 5, 2, "same")(x))
        x = Dropout(config.dropout, key)(x)
    features = layers.Flatten()(x)
    return tf.keras.Model(image, [features, layers.Dense(config.classes, dtype="float32")(features)], name="classifier")


class SSGAN(GenerativeModel):
    Config = Config
    monitored = "accuracy"
    widens = True

    @classmethod
    def reads(cls, config):
        return ("labelled", "unlabelled")

    @classmethod
    def batch_statistics(cls, config):
        return "whole"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        networks = dcgan.Config(
            image_size=config.image_size, channels=config.channels, latent=config.latent, width=config.width
        )
        self.generator = dcgan.generator(networks)
        self.classifier = classifier(config, self.fresh_key)
        self.sampler = self.average(dcgan.generator(networks), self.generator)
        self.scorer = self.average(classifier(config, self.fresh_key), self.classifier)
        self.optimize(
            "d", tf.keras.optimizers.Adam(config.classifier_rate, config.beta1), self.classifier.trainable_variables
        )
        if config.adversarial:
            self.optimize(
                "g", tf.keras.optimizers.Adam(config.generator_rate, config.beta1), self.generator.trainable_variables
            )
        else:
            self.generator.trainable = False

    def train_step(self, batches):
        (batch,) = batches
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]["image"]
        scalars = {}
        with tf.GradientTape(persistent=True) as tape:
            _, logits = self.classifier(labelled["image"], training=True)
            supervised = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labelled["label"], logits))
            d_loss = supervised
            if self.config.adversarial:
                z = self.normal([tf.shape(unlabelled)[0], self.config.latent])
                fake = self.generator(z, training=True)
                _, real_logits = self.classifier(unlabelled, training=True)
                _, fake_logits = self.classifier(fake, training=True)
                unsupervised = losses.discriminator(
                    tf.reduce_logsumexp(real_logits, 1), tf.reduce_logsumexp(fake_logits, 1)
                )
                d_loss += self.config.unlabelled * unsupervised
                g_loss = losses.feature_matching(
                    self.classifier(unlabelled)[0], self.classifier(fake)[0], self.statistics.mean
                )
                scalars = {"unsupervised": unsupervised, "g_loss": g_loss}
        self.minimize("d", tape, d_loss)
        if self.config.adversarial:
            self.minimize("g", tape, g_loss)
        self.update_averages(self.config.average)
        correct = tf.equal(tf.argmax(logits, 1, tf.int32), labelled["label"])
        return {"supervised": supervised, "labelled_accuracy": tf.reduce_mean(tf.cast(correct, tf.float32)), **scalars}

    def classify(self, images: tf.Tensor) -> tf.Tensor:
        """Class probabilities [n, classes]."""
        return tf.nn.softmax(self.scorer(images, training=False)[1])

    def generate(self, inputs, seeds):
        return self.sampler(self.latents(seeds, self.config.latent), training=False)

    def held_out(self, batch):
        if "label" not in batch:
            return {}
        return {
            "accuracy": tf.cast(
                tf.equal(tf.argmax(self.classify(batch["image"]), 1, tf.int32), batch["label"]), tf.float32
            )
        }
