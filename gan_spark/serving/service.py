"""What the service's paths share: versions, limits, figures, and how rows of a request are answered."""

import asyncio
import time

import numpy as np

from ..data import images
from . import asking
from .limits import Limits
from .metrics import Metrics
from .refusal import Refused
from .versions import Version, Versions

_AT_ONCE = 2**16  # values of pixels that the event loop's own thread encodes; more would keep others waiting


class Service:
    """What the paths share: versions, limits, figures."""

    def __init__(self, versions: Versions, limits: Limits, metrics: Metrics):
        self.versions, self.limits, self.metrics = versions, limits, metrics

    @property
    def name(self) -> str:
        return self.versions.name

    def deadline(self) -> float:
        return time.monotonic() + self.limits.answer_seconds

    async def classify(self, version: Version, data: list[bytes], place: str) -> list[np.ndarray]:
        """Class probabilities of encoded images, by one version."""
        if not version.answers.classifies:
            raise Refused(404, "the model that is served makes images, and classifies none; ask POST /generate")
        deadline = self.deadline()
        rows = await asyncio.to_thread(
            lambda: [{"image": asking.decoded(one, version.answers, self.limits, place)} for one in data]
        )
        probabilities = await version.ask("classify", rows, deadline)
        for one in probabilities:
            self.metrics.classes.labels(version.answers.classes[int(np.argmax(one))]).inc()
        return probabilities

    async def generate(self, version: Version, asked: asking.Asked) -> list[np.ndarray]:
        """Images, uint8, by one version."""
        deadline = self.deadline()
        has_images = "image" in asked.columns
        rows = await _off_loop(lambda: asked.rows(version.answers, self.limits), has_images)
        return await version.ask(asked.call, rows, deadline)


async def _off_loop(function, is_long: bool):
    """What the function gives, which another thread calls where it takes long."""
    return await asyncio.to_thread(function) if is_long else function()


async def encoded(pictures: list[np.ndarray]) -> list[bytes]:
    """PNG of each image, as the batch job's table has it."""
    is_long = sum(picture.size for picture in pictures) > _AT_ONCE
    return await _off_loop(lambda: [images.encode_png(picture) for picture in pictures], is_long)
