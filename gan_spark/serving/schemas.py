"""Schemas of the service's requests, for its OpenAPI page."""


def _body(properties: dict, required: list[str], example: dict) -> dict:
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def _one_or_each(kind: dict, description: str) -> dict:
    return {"anyOf": [kind, {"type": "array", "items": kind}], "description": description}


_TEXT = {"type": "string"}
_BASE64 = {"type": "string", "format": "byte"}
_SEED = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}

CLASSIFY = _body(
    {"data": {**_BASE64, "description": "an encoded image, in base64"}}, ["data"], {"data": "iVBORw0KGgo="}
)

GENERATE = _body(
    {
        "seeds": {"type": "array", "items": _SEED, "description": "an image each; or first_seed and images"},
        "first_seed": {**_SEED, "description": "seeds count up from here"},
        "images": {"type": "integer", "minimum": 1, "description": "how many, with first_seed"},
        "label": _one_or_each(_TEXT, "name of the class, for all seeds or each; without it, each class in turn"),
        "caption": _one_or_each(_TEXT, "what to draw, for all seeds or each"),
        "embedding": {"description": "numbers, for all seeds, or a list of them each", "type": "array"},
        "image": _one_or_each(_BASE64, "an encoded image to start from, in base64, for all seeds or each"),
        "part": {"enum": ["a", "b"], "description": "the domain of the image, of a model that translates"},
        "format": {"enum": ["json", "png"], "description": "png: one picture, a grid of several; also by Accept"},
    },
    [],
    {"seeds": [1, 2, 3]},
)

FEEDBACK = _body(
    {
        "id": {"type": "string", "description": "of the request, as its answer and X-Request-Id have it"},
        "label": {"type": "string", "description": "name of the class that the image is of"},
        "kept": {"type": "boolean", "description": "whether what was made was kept"},
    },
    ["id"],
    {"id": "5f0c", "kept": True},
)

INFER = _body(
    {
        "id": _TEXT,
        "inputs": {"type": "array", "items": {"type": "object"}, "description": "name, shape, datatype, data of each"},
        "outputs": {"type": "array", "items": {"type": "object"}, "description": "name of each; all without it"},
        "parameters": {"type": "object"},
    },
    ["inputs"],
    {"inputs": [{"name": "seed", "shape": [2], "datatype": "INT64", "data": [1, 2]}]},
)
