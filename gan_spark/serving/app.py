"""The service's application: its paths, and what each answers."""

import asyncio
import base64
import contextlib

import numpy as np
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from .. import __version__
from ..data import images
from . import asking, schemas
from .gate import Gate
from .limits import Limits
from .metrics import CONTENT_TYPE, Metrics
from .page import PAGE
from .recording import Recording
from .refusal import Refused
from .service import Service
from .v2 import add_v2
from .versions import Version, Versions

TOP = 3
_KEYS = ("seeds", "first_seed", "images", "label", "caption", "embedding", "image", "part", "format")


def top(probabilities: np.ndarray, version: Version) -> list[dict]:
    """The likeliest classes, as {"label", "description", "probability"}, which is in percent."""
    answers = version.answers
    return [
        {
            "label": answers.classes[place],
            "description": answers.descriptions[place] if answers.descriptions else answers.classes[place],
            "probability": round(float(probabilities[place]) * 100, 2),
        }
        for place in np.argsort(-probabilities, kind="stable")[:TOP]
    ]


class _Direct(APIRoute):
    """A route whose function takes the request itself and answers with a response: FastAPI's reading of parameters,
    which it does not have, would cost as much as a small network.
    """

    def get_route_handler(self):
        return self.endpoint


def application(
    versions: Versions, limits: Limits, metrics: Metrics, token: str = "", recording: Recording | None = None
):
    """The ASGI application that serves `versions`, which are watched while it runs."""
    service = Service(versions, limits, metrics, recording)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        watching = asyncio.create_task(versions.watch())
        yield
        watching.cancel()
        if recording:
            await asyncio.to_thread(recording.close)

    app = FastAPI(title=f"gan_spark: {versions.name}", version=__version__, lifespan=lifespan)
    _add_paths(app, service)
    add_v2(app, service)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _no_such_path)
    return Gate(app, limits, metrics, token)


async def _refused(_, error: Refused) -> JSONResponse:
    return JSONResponse({"error": str(error)}, error.status, error.headers)


async def _no_such_path(_, error: HTTPException) -> JSONResponse:
    text = "no such path; /docs lists them" if error.status_code == 404 else error.detail
    return JSONResponse({"error": text}, error.status_code, error.headers)


def _add_paths(app: FastAPI, service: Service) -> None:
    versions, direct = service.versions, APIRouter(route_class=_Direct)

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/ui")

    @app.get("/ui", include_in_schema=False)
    async def ui() -> HTMLResponse:
        return HTMLResponse(PAGE)

    @app.get("/metrics", summary="Figures for Prometheus", tags=["operation"])
    async def metrics() -> Response:
        service.metrics.waiting.set(versions.waiting())
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/model", summary="What is served: version, classes, what it takes", tags=["model"])
    async def model() -> dict:
        return _description(versions)

    @direct.post("/", summary="The three likeliest classes of an image", tags=["model"], openapi_extra=schemas.CLASSIFY)
    async def classify(request: Request) -> JSONResponse:
        value = asking.parsed(await request.body(), ("data",))
        data = asking.encoded(value.get("data"), "data")
        with service.lease(request) as version:
            (probabilities,) = await service.classify(request, version, [data], "data")
            return _answer(request, version, {"predictions": top(probabilities, version)})

    @direct.post("/generate", summary="Images of seeds", tags=["model"], openapi_extra=schemas.GENERATE)
    async def generate(request: Request) -> Response:
        value = asking.parsed(await request.body(), _KEYS)
        as_png = _wants_png(value, request.headers.get("accept", ""))
        with service.lease(request) as version:
            asked = asking.generating(value, version.answers, service.limits)
            pictures = await service.generate(request, version, asked)
            if as_png:
                sheet = pictures[0] if len(pictures) == 1 else images.grid(np.stack(pictures))
                return _png(request, version, (await service.encoded([sheet]))[0])
            pngs = await service.encoded(pictures)
            drawn = [
                {"seed": seed, "png": base64.b64encode(png).decode()}
                for seed, png in zip(asked.seeds, pngs, strict=True)
            ]
            return _answer(request, version, {"images": drawn})

    @app.post(
        "/feedback",
        summary="What became of an answer, by the id of its request",
        tags=["model"],
        status_code=202,
        openapi_extra=schemas.FEEDBACK,
    )
    async def feedback(request: Request) -> dict:
        if service.recording is None:
            raise Refused(404, "this service keeps no records")
        outcome = asking.outcome(await request.body())
        service.recording.feedback(*outcome)
        return {"id": outcome[0], "recorded": True}

    app.include_router(direct)


def _wants_png(value: dict, accept: str) -> bool:
    format = value.get("format") or ("png" if accept.partition(",")[0].strip() == "image/png" else "json")
    if format not in ("png", "json"):
        raise Refused(400, "format: expected 'json' or 'png'")
    return format == "png"


def _noted(request: Request, version: Version) -> dict[str, str]:
    """Headers that tell which version answers; the line in the log tells it too."""
    request.state.log["version"] = version.number
    return {"X-Model-Version": str(version.number)}


def _answer(request: Request, version: Version, content: dict) -> JSONResponse:
    headers = _noted(request, version)
    return JSONResponse({"id": request.state.id, "version": version.number, **content}, headers=headers)


def _png(request: Request, version: Version, png: bytes) -> Response:
    return Response(png, media_type="image/png", headers=_noted(request, version))


def _description(versions: Versions) -> dict:
    version, challenger, answers = versions.current, versions.challenger, versions.current.answers
    height, width, channels = answers.shape
    return {
        "name": versions.name,
        "version": version.number,
        "run": version.run,
        "step": version.step,
        "challenger": {"version": challenger.number, "share": versions.share} if challenger else None,
        "generates": answers.generates,
        "classifies": answers.classifies,
        "takes": list(answers.columns()[1:]) if answers.generates else [],
        "parts": list(answers.parts),
        "classes": list(answers.classes),
        "image": {"height": height, "width": width, "channels": channels},
    }
