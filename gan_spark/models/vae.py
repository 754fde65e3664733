"""VAE: auto-encoding variational Bayes (Kingma and Welling, 2013; arXiv 1312.6114).

Encoder and decoder are perceptrons, as in the paper, of any depth. The likelihood is a product of Bernoullis whose
targets are grey levels in [0, 1] (the usual reading for MNIST-like images), or a Gaussian of fixed deviation around the
decoder's mean. The KL divergence is the closed form, and one z is drawn an image, as in the paper and in the first
author's code (github.com/dpkingma/nips14-ssl, model M1).

Differences: ReLU, where the paper has tanh and that code softplus for MNIST; Adam, where the paper has Adagrad; no
prior over the weights, which the paper and that code have as a weight decay; grey levels are targets themselves,
where that code draws black and white by them anew for each batch; the Gaussian's deviation is fixed, where there it
is learned, pixel by pixel; the layer of the log variances is begun as any, there at 0.
"""

import dataclasses
import math

import tensorflow as tf

from ..config import option
from . import losses
from .base import GenerativeModel


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = option("vae", "", choices=("vae",))
    image_size: int = option(28, "pixels a side", low=2, high=1024)
    channels: int = option(1, "of the image", choices=(1, 3))
    latent: int = option(20, "size of z", low=1)
    hidden: tuple[int, ...] = option((500,), "units of the encoder's layers; the decoder mirrors them", low=1)
    likelihood: str = option("bernoulli", "p(x | z)", choices=("bernoulli", "gaussian"))
    deviation: float = option(0.1, "of the Gaussian likelihood, for pixels in [0, 1]", low=1e-3, high=10.0)
    rate: float = option(1e-3, "Adam's learning rate", low=0.0, high=1.0)


class VAE(GenerativeModel):
    Config = Config

    @classmethod
    def batch_statistics(cls, config):
        return "none"

    def __init__(self, config, reduce=list, seed=0):
        super().__init__(config, reduce, seed)
        shape = [config.image_size, config.image_size, config.channels]
        pixels = shape[0] * shape[1] * shape[2]
        dense = [tf.keras.layers.Dense(units, "relu") for units in config.hidden]
        self.encoder = tf.keras.Sequential(
            [
                tf.keras.Input(shape),
                tf.keras.layers.Flatten(),
                *dense,
                tf.keras.layers.Dense(2 * config.latent, dtype="float32"),
            ],
            name="encoder",
        )
        dense = [tf.keras.layers.Dense(units, "relu") for units in reversed(config.hidden)]
        self.decoder = tf.keras.Sequential(
            [
                tf.keras.Input([config.latent]),
                *dense,
                tf.keras.layers.Dense(pixels, dtype="float32"),
                tf.keras.layers.Reshape(shape, dtype="float32"),
            ],
            name="decoder",
        )
        self.optimize(
            "vae",
            tf.keras.optimizers.Adam(config.rate),
            [*self.encoder.trainable_variables, *self.decoder.trainable_variables],
        )

    def negative_elbo(self, images: tf.Tensor, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """-log p(x | z) and KL(q(z | x) || p(z)), both in nats an image, [n]; `noise` is N(0, 1) [n, latent]."""
        mean, log_variance = tf.split(self.encoder(images), 2, axis=1)
        outputs = self.decoder(mean + tf.exp(0.5 * log_variance) * noise)
        values = 0.5 * (images + 1.0)
        if self.config.likelihood == "bernoulli":
            reconstruction = losses.bernoulli_nll(values, outputs)
        else:
            reconstruction = losses.gaussian_nll(values, tf.sigmoid(outputs), self.config.deviation)
        return reconstruction, losses.kl_standard_normal(mean, log_variance)

    def train_step(self, batches):
        (batch,) = batches
        images = batch["image"]
        noise = self.normal([tf.shape(images)[0], self.config.latent])
        with tf.GradientTape() as tape:
            reconstruction, kl = (tf.reduce_mean(part) for part in self.negative_elbo(images, noise))
            loss = reconstruction + kl
        self.minimize("vae", tape, loss)
        return {"negative_elbo": loss, "reconstruction": reconstruction, "kl": kl}

    def generate(self, inputs, seeds):
        return self.decode(self.latents(seeds, self.config.latent))

    def decode(self, z):
        """The mean of p(x | z), as is usual: a draw from it would add independent noise to every pixel."""
        return 2.0 * tf.sigmoid(self.decoder(z)) - 1.0

    def importance_weighted(self, images: tf.Tensor, samples: int) -> tf.Tensor:
        """-log (1/K sum_k p(x, z_k) / q(z_k | x)) in nats an image, [n]: a bound that tightens with K (arXiv
        1509.00519).
        """
        mean, log_variance = tf.split(self.encoder(images), 2, axis=1)
        values = 0.5 * (images + 1.0)

        def log_weight(k):
            noise = tf.random.stateless_normal(tf.shape(mean), [k, 1])
            z = mean + tf.exp(0.5 * log_variance) * noise
            outputs = self.decoder(z)
            nll = (
                losses.bernoulli_nll(values, outputs)
                if self.config.likelihood == "bernoulli"
                else losses.gaussian_nll(values, tf.sigmoid(outputs), self.config.deviation)
            )
            # The constants of p(z) and q(z | x) cancel.
            return -nll - 0.5 * tf.reduce_sum(tf.square(z) - tf.square(noise) - log_variance, axis=1)

        weights = tf.map_fn(log_weight, tf.range(samples), fn_output_signature=tf.float32)
        return math.log(samples) - tf.reduce_logsumexp(weights, axis=0)

    def held_out(self, batch):
        reconstruction, kl = self.negative_elbo(
            batch["image"], self.held_out_latents(batch["image"], self.config.latent)
        )
        bound = self.importance_weighted(batch["image"], 50)
        return {
            "negative_elbo": reconstruction + kl,
            "reconstruction": reconstruction,
            "kl": kl,
            "importance_weighted": bound,
        }
