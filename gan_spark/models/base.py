"""Interface of models, the only one that the trainer knows.

A model is given `reduce`, which averages a list of tensors over all ranks and is the only
thing about them that it ever sees. Whatever a model carries from step to step must come
from reduced values, so that every rank holds the same model.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from . import statistics


class TrainedModel(tf.Module):
    """Networks, their optimizers, and one step of training."""

    Config: type  # frozen dataclass with at least `name`, `image_size` and `channels`
    batches_per_step = 1  # WGAN-GP: n_critic; DiscoGAN: 1 + generator_steps
    monitored = ""  # the value of `held_out` by which checkpoints are compared; higher is better
    widens = (
        False  # whether it may begin with the weights of one with fewer classes, which come first in its last layer
    )
    cross_entropy = ""  # the scalar of `train_step` that is the discriminator's; near 0 it is never wrong

    @classmethod
    def reads(cls, config) -> tuple[str, ...]:
        """Names of what a batch holds: columns of the dataset, or its parts (each then a batch of its own)."""
        return ("image",)

    @classmethod
    def batch_statistics(cls, config) -> str:
        """What a step takes over the images of its batch, beside the means of losses.

        "none"; "whole", where it takes them over all ranks' images if it is built to (`statistics.py`); or "rank",
        where it knows its own rank's alone, as is assumed of a model that does not say.
        """
        return "rank"

    def __init__(self, config, reduce: Callable[[list], list] = list, seed: int = 0):
        """A model without optimizers yet. `seed` is this rank's own: ranks draw different latents.

        A model whose config has fields that name runs (`option(run=...)`) takes a further keyword for each:
        the model of that run, frozen, since its variables are registered with no optimizer.
        """
        super().__init__()
        self.config = config
        self.reduce = reduce
        self.statistics = statistics.current()
        self.seed = seed
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="step")
        self.optimizers = {}
        self.groups = {}
        self._streams = 0

    def optimize(self, name: str, optimizer: tf.keras.optimizers.Optimizer, variables: Sequence[tf.Variable]) -> None:
        """Registers an optimizer for `variables`. Every trainable variable belongs to one, or stays frozen."""
        optimizer.build(variables)
        self.optimizers[name] = optimizer
        self.groups[name] = list(variables)

    def minimize(
        self, name: str, tape: tf.GradientTape, loss: tf.Tensor, clip: float = 0.0, above: float = 0.0
    ) -> None:
        """One step of optimizer `name` on gradients that are averaged over all ranks.

        With `clip`, their joint norm is held to it; with `above`, nothing moves where the loss, averaged too, is not
        above it.
        """
        variables = self.groups[name]
        gradients = self.reduce(tape.gradient(loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO))
        if clip:
            gradients, _ = tf.clip_by_global_norm(gradients, clip)
        if not above:
            self.optimizers[name].apply_gradients(zip(gradients, variables, strict=True))
        else:
            (mean,) = self.reduce([loss])
            tf.cond(mean > above, lambda: self._apply(name, gradients), lambda: tf.constant(False))

    def _apply(self, name: str, gradients: list[tf.Tensor]) -> tf.Tensor:
        self.optimizers[name].apply_gradients(zip(gradients, self.groups[name], strict=True))
        return tf.constant(True)

    def normal(self, shape: Sequence[int], stream: int = 0) -> tf.Tensor:
        """N(0, 1) noise that is a function of the rank's seed, the step and `stream` alone.

        So a resumed run draws what it would have drawn.
        """
        return tf.random.stateless_normal(shape, self._key(stream))

    def uniform(self, shape: Sequence[int], stream: int = 0, low: float = -1.0) -> tf.Tensor:
        """Uniform noise in [low, 1], as `normal` gives it."""
        return tf.random.stateless_uniform(shape, self._key(stream), low, 1.0)

    def fresh_key(self) -> tf.Tensor:
        """The key of a stream of noise that nothing else in a step draws from, for layers: one each time it is called.

        Calls are counted while a step is traced, so that the same step has the same streams in every process.
        """
        self._streams += 1
        return self._key(500 + self._streams % 500)

    def _key(self, stream: int) -> tf.Tensor:
        # Seeds from 1 on, so that no noise of training is what `latents` makes of a small seed.
        return tf.stack([self.step, tf.constant((self.seed + 1) * 1000 + stream, tf.int64)])

    def state(self) -> list[tf.Variable]:
        """All variables that are carried from step to step: `tf.Module.variables` leaves out optimizer slots."""
        slots = [variable for optimizer in self.optimizers.values() for variable in optimizer.variables]
        unique = {id(variable): variable for variable in [*self.variables, *slots]}
        return list(unique.values())

    def begin(self) -> None:
        """Called on rank 0 before the first step of a run, once the runs that the model is built on are restored."""

    def train_step(self, batches: list[dict[str, tf.Tensor]]) -> dict[str, tf.Tensor]:
        """One step on `batches_per_step` batches; returns scalars to log."""
        raise NotImplementedError(f"{type(self).__name__}.train_step: every model defines its step")

    def preview(self, batch: dict[str, tf.Tensor], seeds: tf.Tensor) -> tf.Tensor | None:
        """Images in [-1, 1] that show how training goes, or None where there is nothing to look at."""
        return None

    def held_out(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Values an image that are averaged over a held-out split, by name; each of shape [batch]."""
        return {}


class GenerativeModel(TrainedModel):
    """A model that makes images."""

    @classmethod
    def takes(cls, config) -> tuple[str, ...]:
        """Names of what `generate` needs beside seeds.

        "label" (int32 [n]), "image", "caption" (string [n]), "embedding" or a part's name (images of it).
        """
        return ()

    def __init__(self, config, reduce: Callable[[list], list] = list, seed: int = 0):
        super().__init__(config, reduce, seed)
        self._averages = []

    def average(self, copy: tf.keras.Model, network: tf.keras.Model) -> tf.keras.Model:
        """Makes `copy` follow `network` as an exponential moving average, one `update_averages` a step."""
        copy.set_weights(network.get_weights())
        copy.trainable = False
        self._averages.append((copy, network))
        return copy

    def update_averages(self, decay: float) -> None:
        """Moves the averages by a step: average = d average + (1 - d) weights.

        d = min(decay, (1 + step) / (10 + step)), so that early weights are forgotten.
        """
        step = tf.cast(self.step, tf.float32)
        rate = tf.minimum(decay, (1.0 + step) / (10.0 + step))
        for copy, network in self._averages:
            for average, weight in zip(copy.variables, network.variables, strict=True):
                average.assign(rate * average + (1.0 - rate) * weight)

    def use_newest_weights(self) -> None:
        """Samples are drawn from the newest weights from here on: each average takes those that it follows."""
        for copy, network in self._averages:
            copy.set_weights(network.get_weights())

    def latents(self, seeds: tf.Tensor, size: int, distribution: str = "normal", stream: int = 0) -> tf.Tensor:
        """N(0, 1), or uniform in [-1, 1], [n, size]; row i is a function of seeds[i] and `stream` alone."""

        def draw(seed):
            pair = tf.stack([seed, stream])
            return (
                tf.random.stateless_normal([size], pair)
                if distribution == "normal"
                else tf.random.stateless_uniform([size], pair, -1.0, 1.0)
            )

        return tf.map_fn(draw, tf.cast(seeds, tf.int64), fn_output_signature=tf.float32)

    def held_out_latents(self, images: tf.Tensor, size: int) -> tf.Tensor:
        """N(0, 1) [n, size], for values of held-out images.

        Each image has its own (of the sum of its pixels), however images are batched.
        """
        return self.latents(tf.cast(tf.reduce_sum(tf.round((images + 1.0) * 127.5), [1, 2, 3]), tf.int64), size)

    def generate(self, inputs: dict[str, tf.Tensor], seeds: tf.Tensor) -> tf.Tensor:
        """Images in [-1, 1], [n, height, width, channels], one a seed."""
        raise NotImplementedError(f"{type(self).__name__}.generate: every generative model defines its sampler")

    def preview(self, batch, seeds):
        """One image a seed; a batch of fewer rows than seeds is gone through again."""

        def repeated(values):
            return tf.gather(values, tf.range(tf.shape(seeds)[0]) % tf.shape(values)[0])

        return self.generate(tf.nest.map_structure(repeated, batch), seeds)
