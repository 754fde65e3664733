"""WGAN-GP: improved training of Wasserstein GANs (Gulrajani et al., 2017; arXiv 1704.00028).

A critic without sigmoid estimates the earth-mover distance; a penalty holds the norm of its
gradient to 1 on lines between real and generated images. `n_critic` critic steps, each on a
fresh batch, for every generator step; Adam at 1e-4 with betas 0 and 0.9; lambda 10. The critic
has no batch norm, since the penalty is on each image's gradient alone.

Differences: DCGAN's networks (the paper has several), with batch norm in the generator; a moving average of the
generator. The authors' code for MNIST (github.com/igul222/improved_wgan_training) has no batch norm there, beta1 0.5, z
of 128, 5x5 kernels and a third convolution in the critic.
"""

import dataclasses

import tensorflow as tf

from ..config import option
from . import dcgan, losses
from .base import GenerativeModel


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("wgan_gp", "", choices=("wgan_gp",))
    image_size: int = option(28, "pixels a side", low=8, high=1024)
    channels: int = option(1, "of the image", choices=(1, 3))
    latent: int = option(100, "size of z", low=1)
    width: int = option(32, "filters next to the image; doubled at each halving", low=1, high=1024)
    n_critic: int = option(5, "critic steps for each generator step", low=1, high=100)
    penalty: float = option(10.0, "lambda, weight of the gradient penalty", low=0.0)
    average: float = option(
        0.999, "decay of the generator's moving average; 0 for its newest weights", low=0.0, high=0.99999
    )
    rate: float = option(1e-4, "Adam's learning rate", low=0.0, high=1.0)
    beta1: float = option(0.0, "Adam's", low=0.0, high=0.999)
    beta2: float = option(0.9, "Adam's", low=0.0, high=0.9999)


class WGANGP(GenerativeModel):
    Config = Config

    @classmethod
    def batch_statistics(cls, config):
        return "whole"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        self.batches_per_step = config.n_critic
        networks = dcgan.Config(
            image_size=config.image_size, channels=config.channels, latent=config.latent, width=config.width
        )
        self.generator = dcgan.generator(networks)
        self.critic = dcgan.discriminator(dataclasses.replace(networks, normalisation="none"))
        self.sampler = self.average(dcgan.generator(networks), self.generator)
        self.optimize(
            "d", tf.keras.optimizers.Adam(config.rate, config.beta1, config.beta2), self.critic.trainable_variables
        )
        self.optimize(
            "g", tf.keras.optimizers.Adam(config.rate, config.beta1, config.beta2), self.generator.trainable_variables
        )

    def critic_step(self, real: tf.Tensor, turn: int) -> tuple[tf.Tensor, tf.Tensor]:
        """One critic step; the estimate of the earth-mover distance and the mean penalty, both from before it."""
        count = tf.shape(real)[0]
        fake = self.generator(self.normal([count, self.config.latent], stream=2 * turn), training=True)
        share = self.uniform([count, 1, 1, 1], stream=2 * turn + 1, low=0.0)
        with tf.GradientTape() as tape:
            estimate = losses.earth_mover(self.critic(real, training=True), self.critic(fake, training=True))
            penalty = losses.gradient_penalty(
                lambda images: self.critic(images, training=True), real + share * (fake - real)
            )
            loss = self.config.penalty * penalty - estimate
        self.minimize("d", tape, loss)
        return estimate, penalty

    def train_step(self, batches):
        estimates = [self.critic_step(batch["image"], turn) for turn, batch in enumerate(batches)]
        z = self.normal([tf.shape(batches[-1]["image"])[0], self.config.latent], stream=2 * len(batches))
        with tf.GradientTape() as tape:
            g_loss = -tf.reduce_mean(self.critic(self.generator(z, training=True), training=True))
        self.minimize("g", tape, g_loss)
        self.update_averages(self.config.average)
        estimate, penalty = estimates[-1]
        return {"critic_estimate": estimate, "penalty": penalty, "g_loss": g_loss}

    def generate(self, inputs, seeds):
        return self.decode(self.latents(seeds, self.config.latent))

    def decode(self, z):
        """Images of latents [n, latent]."""
        return self.sampler(z, training=False)

    def held_out(self, batch):
        """Critic's scores of held-out images less those of generated ones.

        Their mean is the critic's estimate of the distance between the two.
        """
        fake = self.decode(self.held_out_latents(batch["image"], self.config.latent))
        return {
            "critic_estimate": (
                self.critic(batch["image"], training=False)[:, 0] - self.critic(fake, training=False)[:, 0]
            )
        }
