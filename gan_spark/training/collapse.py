"""Signs of a collapse."""


class Monitor:
    """Signs of a collapse, each told once: a discriminator that is never wrong, and images that become alike.

    The first is read off a cross-entropy alone, which the model names: a critic's loss may be negative, and squared
    errors still pull at images that a discriminator is sure about.
    """

    LOW_LOSS, TIMES, FALL = 0.05, 3, 1 / 3
    DISCRIMINATOR_AIDS = (
        "real_target",
        "discriminator_above",
        "discriminator_rate",
        "spectral_norm",
        "generator_noise",
        "dropout",
        "noise",
    )
    VARIETY_AIDS = ("minibatch", "feature_matching", "historical_averaging", "discriminator_rate", "gamma")

    def __init__(self, model):
        self.config, self.cross_entropy = model.config, model.cross_entropy
        self.low, self.highest, self.warned = 0, 0.0, set()

    def losses(self, step: int, scalars: dict[str, float]) -> str | None:
        """A warning where the discriminator's cross-entropy was under LOW_LOSS for TIMES logs in a row."""
        self.low = self.low + 1 if scalars.get(self.cross_entropy, 1.0) < self.LOW_LOSS else 0
        if self.low < self.TIMES:
            return None
        return self._warn_once(
            "discriminator",
            f"step {step}: the discriminator's loss was under {self.LOW_LOSS} {self.TIMES} times: it is never wrong,"
            " and the generator learns nothing from it",
            self.DISCRIMINATOR_AIDS,
        )

    def variety(self, step: int, pixels) -> str | None:
        """A warning where the deviation between the images of one batch, uint8 [n, h, w, c], fell to FALL of the
        highest yet.
        """
        deviation = float(pixels.std(axis=0).mean())
        self.highest = max(self.highest, deviation)
        if deviation >= self.FALL * self.highest:
            return None
        return self._warn_once(
            "variety",
            f"step {step}: images of the fixed seeds differ by {deviation:.1f} of 255, after {self.highest:.1f}: the"
            " generator may have collapsed",
            self.VARIETY_AIDS,
        )

    def _warn_once(self, sign: str, text: str, aids: tuple[str, ...]) -> str | None:
        if sign in self.warned:
            return None
        self.warned.add(sign)
        there = [f"model.{aid}" for aid in aids if hasattr(self.config, aid)]
        return text + (f". What may help: {', '.join(there)}" if there else "")
