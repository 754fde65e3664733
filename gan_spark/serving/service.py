"""What the service's paths share: versions, limits, figures, and how rows of a request are answered."""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from fastapi import Request

from ..data import images
from . import asking
from .limits import Limits
from .metrics import Metrics
from .recording import Recording
from .refusal import Refused
from .versions import Version, Versions

_AT_ONCE = 2**16  # values of pixels that the event loop's own thread encodes; more would keep others waiting


class Service:
    """What the paths share: versions, limits, figures."""

    def __init__(self, versions: Versions, limits: Limits, metrics: Metrics, recording: Recording | None = None):
        self.versions, self.limits, self.metrics, self.recording = versions, limits, metrics, recording
        self._threads = ThreadPoolExecutor(os.cpu_count())  # of asyncio's own there are more, which hinder each other

    @property
    def name(self) -> str:
        return self.versions.name

    def deadline(self) -> float:
        return time.monotonic() + self.limits.answer_seconds

    def lease(self, request: Request, version: str = ""):
        """The version that answers the request, which its line in the log tells."""
        return self.versions.lease(request.state.key or request.state.id, version)

    async def classify(self, request: Request, version: Version, data: list[bytes], place: str) -> list[np.ndarray]:
        """Class probabilities of encoded images, by one version."""
        if not version.answers.classifies:
            raise Refused(404, "the model that is served makes images, and classifies none; ask POST /generate")
        deadline = self.deadline()
        rows = await self._off_loop(
            lambda: [{"image": asking.decoded(one, version.answers, self.limits, place)} for one in data], True
        )
        probabilities = await version.ask("classify", rows, deadline)
        labels = [version.answers.classes[int(np.argmax(one))] for one in probabilities]
        for label in labels:
            self.metrics.classes.labels(label).inc()
        if self.recording:
            self.recording.classified(
                request,
                version,
                data,
                [row["image"] for row in rows],
                labels,
                [float(one.max()) for one in probabilities],
            )
        return probabilities

    async def generate(self, request: Request, version: Version, asked: asking.Asked) -> list[np.ndarray]:
        """Images, uint8, by one version."""
        deadline = self.deadline()
        has_images = "image" in asked.columns
        rows = await self._off_loop(lambda: asked.rows(version.answers, self.limits), has_images)
        pictures = await version.ask(asked.call, rows, deadline)
        if self.recording:
            self.recording.generated(request, version, asked)
        return pictures

    async def encoded(self, pictures: list[np.ndarray]) -> list[bytes]:
        """PNG of each image, as the batch job's table has it."""
        is_long = sum(picture.size for picture in pictures) > _AT_ONCE
        return await self._off_loop(lambda: [images.encode_png(picture) for picture in pictures], is_long)

    async def _off_loop(self, function, is_long: bool):
        """What the function gives, which another thread calls where it takes long."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function) if is_long else function()
