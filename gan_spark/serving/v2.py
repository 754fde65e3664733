"""The Open Inference Protocol, version 2, over HTTP: health, metadata, inference.

Tensors of a request are the columns of what the model can be asked: `seed` (INT64 [n]), `label` (BYTES [n], a class's
name), `caption` (BYTES [n]), `embedding` (FP32 [n, d]), `image` (BYTES [n], an encoded image in base64); the parameter
`part` is the domain of images to translate. With `image` alone, a model that classifies answers `probability` (FP32 [n,
classes]) and `label` (BYTES [n]); else the answer is `png` (BYTES [n], in base64) and `image` (UINT8 [n, height, width,
channels]).
"""

import base64
import math
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from .. import __version__
from . import asking, schemas
from .functions import Answers
from .refusal import Refused
from .service import Service
from .versions import Version

_TYPES = {"seed": "INT64", "label": "BYTES", "caption": "BYTES", "embedding": "FP32", "image": "BYTES"}
_VALUES = 2**21  # of pixels as numbers in one answer, at most; each is several bytes of JSON


def add_v2(app: FastAPI, service: Service) -> None:
    """Adds the protocol's paths."""

    @app.get("/v2/health/live", tags=["v2"])
    async def live() -> dict:
        return {"live": True}

    @app.get("/v2/health/ready", tags=["v2"])
    async def ready() -> dict:
        return {"ready": True}

    @app.get("/v2", tags=["v2"])
    async def server() -> dict:
        return {"name": "gan_spark", "version": __version__, "extensions": []}

    @app.get("/v2/models/{name}", tags=["v2"])
    @app.get("/v2/models/{name}/versions/{version}", tags=["v2"])
    async def model(request: Request, name: str, version: str = "") -> dict:
        with _leased(service, request, name, version) as chosen:
            return _metadata(name, chosen)

    @app.get("/v2/models/{name}/ready", tags=["v2"])
    @app.get("/v2/models/{name}/versions/{version}/ready", tags=["v2"])
    async def model_ready(request: Request, name: str, version: str = "") -> dict:
        with _leased(service, request, name, version):
            return {"name": name, "ready": True}

    @app.post("/v2/models/{name}/infer", tags=["v2"], openapi_extra=schemas.INFER)
    @app.post("/v2/models/{name}/versions/{version}/infer", tags=["v2"], openapi_extra=schemas.INFER)
    async def infer(request: Request, name: str, version: str = "") -> JSONResponse:
        value = asking.parsed(await request.body(), ("id", "inputs", "outputs", "parameters"))
        with _leased(service, request, name, version) as chosen:
            request.state.log["version"] = chosen.number
            tensors = await _inferred(service, request, chosen, value)
            answer = {
                "model_name": name,
                "model_version": str(chosen.number),
                "id": str(value.get("id") or request.state.id)[:100],
                "outputs": _requested(tensors, value.get("outputs")),
            }
            return JSONResponse(answer, headers={"X-Model-Version": str(chosen.number)})


def _leased(service: Service, request: Request, name: str, version: str):
    if name != service.name:
        raise Refused(404, f"no such model; this service has {service.name}")
    return service.lease(request, version)


def _metadata(name: str, version: Version) -> dict:
    answers = version.answers
    height, width, channels = answers.shape
    inputs = {column: [-1] for column in (answers.columns() if answers.generates else ())}
    outputs = {}
    if answers.generates:
        outputs |= {"png": ("BYTES", [-1]), "image": ("UINT8", [-1, height, width, channels])}
    if answers.classifies:
        inputs["image"] = [-1]
        outputs |= {"probability": ("FP32", [-1, len(answers.classes)]), "label": ("BYTES", [-1])}
    if "embedding" in inputs:
        inputs["embedding"] = [-1, answers.embedding]
    return {
        "name": name,
        "versions": [str(version.number)],
        "platform": "gan_spark",
        "inputs": [{"name": key, "datatype": _TYPES[key], "shape": shape} for key, shape in inputs.items()],
        "outputs": [{"name": key, "datatype": kind, "shape": shape} for key, (kind, shape) in outputs.items()],
    }


async def _inferred(service: Service, request: Request, version: Version, value: dict[str, Any]) -> dict[str, dict]:
    """The output tensors of a request, by name."""
    columns = _tensors(value.get("inputs"), version.answers)
    if set(columns) == {"image"} and version.answers.classifies:
        _check_count(len(columns["image"]), service)
        data = [asking.encoded(one, "image") for one in columns["image"]]
        probabilities = np.stack(await service.classify(request, version, data, "image"))
        labels = [version.answers.classes[place] for place in probabilities.argmax(1)]
        return {
            "probability": _tensor("FP32", probabilities.shape, probabilities.ravel().tolist()),
            "label": _tensor("BYTES", [len(labels)], labels),
        }
    if "seed" not in columns:
        raise Refused(400, "inputs: expected a tensor seed")
    parameters = value.get("parameters") or {}
    part = parameters.get("part") if isinstance(parameters, dict) else None
    asked = asking.generating(
        {**columns, "seeds": columns["seed"], **({"part": part} if part else {})}, version.answers, service.limits
    )
    return await _pictures(service, request, version, asked, value.get("outputs"))


async def _pictures(
    service: Service, request: Request, version: Version, asked: asking.Asked, outputs
) -> dict[str, dict]:
    names = _names(outputs) or ["png", "image"]
    shape = (len(asked.seeds), *version.answers.shape)
    if "image" in names and math.prod(shape) > _VALUES:
        raise Refused(
            400,
            f"{math.prod(shape)} values of pixels in one answer, of {_VALUES} at most; ask for the output png alone",
        )
    pictures = await service.generate(request, version, asked)
    pngs = await service.encoded(pictures) if "png" in names else []
    tensors = {"png": _tensor("BYTES", [len(pngs)], [base64.b64encode(png).decode() for png in pngs])}
    if "image" in names:
        tensors["image"] = _tensor("UINT8", shape, np.stack(pictures).ravel().tolist())
    return {name: tensor for name, tensor in tensors.items() if name in names or name == "image"}


def _check_count(count: int, service: Service) -> None:
    if not 1 <= count <= service.limits.max_images:
        raise Refused(400, f"{count} images; expected 1 to {service.limits.max_images} a request")


def _tensor(datatype: str, shape, data: list) -> dict:
    return {"datatype": datatype, "shape": list(shape), "data": data}


def _tensors(inputs: Any, answers: Answers) -> dict[str, list]:
    """Data of the input tensors by name, a value (of `embedding` a list of numbers) a row."""
    if not isinstance(inputs, list) or not inputs:
        raise Refused(400, "inputs: expected a list of tensors")
    columns = {}
    for tensor in inputs:
        name = tensor.get("name") if isinstance(tensor, dict) else None
        if name not in _TYPES or tensor.get("datatype") != _TYPES[name] or name in columns:
            kinds = ", ".join(f"{key} {kind}" for key, kind in _TYPES.items())
            raise Refused(400, f"inputs: expected tensors with name and datatype among {kinds}, each once")
        columns[name] = _rows(tensor, name, answers)
    return columns


def _rows(tensor: dict, name: str, answers: Answers) -> list:
    shape, data = tensor.get("shape"), tensor.get("data")
    width = [answers.embedding] if name == "embedding" else []
    is_shape = isinstance(shape, list) and all(type(one) is int and one > 0 for one in shape)
    if not is_shape or not isinstance(data, list) or shape[1:] not in (width, [] if width else [1]):
        raise Refused(400, f"inputs: {name}: expected shape {[-1, *width]} and data, a list")
    if data and isinstance(data[0], list):
        data = [one for row in data for one in (row if isinstance(row, list) else [row])]
    if len(data) != math.prod(shape):
        raise Refused(400, f"inputs: {name}: {len(data)} values for shape {shape[:4]}")
    return [data[start : start + width[0]] for start in range(0, len(data), width[0])] if width else data


def _names(outputs: Any) -> list[str]:
    """Names of the outputs that are asked for; none where all are."""
    if outputs is None:
        return []
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise Refused(400, "outputs: expected a list of objects with a name")
    return [one.get("name") for one in outputs]


def _requested(tensors: dict[str, dict], outputs: Any) -> list[dict]:
    names = _names(outputs) or list(tensors)
    if unknown := [name for name in names if name not in tensors]:
        raise Refused(400, f"outputs: {str(unknown[0])[:100]!r}: expected some of {', '.join(tensors)}")
    return [{"name": name, **tensors[name]} for name in names]
