"""Recording of requests: which are recorded, and what of them."""

import json
import time

import numpy as np
from fastapi import Request

from . import records, statistics
from .asking import Asked
from .records import Records
from .versions import Version, place


class Recording:
    """Records the `share` of the requests, with the images that were sent where `with_images`."""

    def __init__(self, sink: Records, share: float, with_images: bool):
        self._sink, self._share, self._with_images = sink, share, with_images

    def classified(
        self,
        request: Request,
        version: Version,
        sent: list[bytes],
        pixels: list[np.ndarray],
        labels: list[str],
        probabilities: list[float],
    ) -> None:
        if self._is_chosen(request):
            self._add(
                request,
                version,
                call="classify",
                images=len(sent),
                label=labels,
                probability=probabilities,
                features=statistics.features(np.stack(pixels)).tolist(),
                sent=sent if self._with_images else None,
            )

    def generated(self, request: Request, version: Version, asked: Asked) -> None:
        if self._is_chosen(request):
            texts = {name: values for name, values in asked.columns.items() if name in ("label", "caption")}
            if "label" in texts:
                texts["label"] = [version.answers.classes[index] for index in texts["label"]]
            self._add(
                request,
                version,
                call=asked.call,
                images=len(asked.seeds),
                asked=json.dumps({"seeds": asked.seeds, **texts}),
                sent=asked.columns.get("image") if self._with_images else None,
            )

    def feedback(self, request_id: str, correct_label: str | None, kept: bool | None) -> None:
        self._sink.add(kind="feedback", request_id=request_id, correct_label=correct_label, kept=kept)

    def close(self) -> None:
        self._sink.close()

    def _is_chosen(self, request: Request) -> bool:
        return place(request.state.id) < self._share

    def _add(self, request: Request, version: Version, **row) -> None:
        self._sink.add(
            kind="request",
            request_id=request.state.id,
            user=records.user(request.state.key),
            version=version.number,
            run=version.run,
            step=version.step,
            milliseconds=(time.monotonic() - request.state.began) * 1000,
            **row,
        )
