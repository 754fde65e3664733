"""What a request asks for, read from its body: nothing in it is taken for a path, a URL or a name of a file."""

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..data import captions, images
from .functions import Answers
from .limits import Limits
from .refusal import Refused

SEEDS = 2**63  # seeds are below


def parsed(body: bytes, keys: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of a body that has these keys alone. `Refused` with 400."""

    def refuse(text: str):
        raise ValueError(f"{text} is no JSON number")

    try:
        value = json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON that can be read: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise Refused(400, f"expected a JSON object, found {type(value).__name__}")
    if unknown := [key for key in value if key not in keys]:
        raise Refused(400, f"unknown key {unknown[0][:100]!r}; expected some of {', '.join(keys)}")
    return value


def encoded(value: Any, place: str) -> bytes:
    """The bytes of a base64 text. `Refused` with 400, which names its `place`."""
    if not isinstance(value, str):
        raise Refused(400, f"{place}: expected an image in base64, found {_kind(value)}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{place}: not base64: {error}") from None


def decoded(data: bytes, answers: Answers, limits: Limits, place: str) -> np.ndarray:
    """An encoded image as the model takes it, uint8, fitted as those that it learnt from. `Refused` with 400."""
    try:
        return images.decode(data, *answers.shape, answers.fit, limits.max_megapixels)
    except images.BadImage as error:
        raise Refused(400, f"{place}: {error}") from None


@dataclasses.dataclass(frozen=True)
class Asked:
    """Rows to be made images of: their seeds, and for each column beside them a value a seed."""

    call: str
    seeds: list[int]
    columns: dict[str, list]

    def rows(self, answers: Answers, limits: Limits) -> list[dict]:
        """The rows as a version takes them; decodes images, which takes a while."""
        columns = dict(self.columns)
        if "image" in columns:
            # Of one image for all seeds the same object, which is decoded once.
            pixels = {id(data): decoded(data, answers, limits, "image") for data in columns["image"]}
            columns["image"] = [pixels[id(data)] for data in columns["image"]]
        return [
            {"seed": seed, **{name: values[place] for name, values in columns.items()}}
            for place, seed in enumerate(self.seeds)
        ]


def generating(value: dict[str, Any], answers: Answers, limits: Limits) -> Asked:
    """Of {"seeds": [...]}, or {"first_seed", "images"}, with what the model takes. `Refused` with 400 or 404."""
    if not answers.generates:
        raise Refused(404, "the model that is served classifies images, and makes none; send them to POST /")
    seeds = _seeds(value, limits)
    takes = answers.columns()[1:]
    known = {"label", "caption", "embedding", "image", "part"}
    if strangers := [key for key in known & value.keys() if key not in takes and not (key == "part" and answers.parts)]:
        has = ", ".join((*takes, *(["part"] if answers.parts else []))) or "seeds alone"
        raise Refused(400, f"{strangers[0]}: the model takes {has}; leave it out")
    readers: dict[str, Callable] = {
        "label": lambda one: label_index(one, answers.classes),
        "caption": _caption,
        "embedding": lambda one: _embedding(one, answers.embedding),
        "image": lambda one: encoded(one, "image"),
    }
    call, columns = _call(value, answers), {}
    for name in takes:
        if name == "label" and value.get("label") is None:  # each in turn, as in the batch job
            columns[name] = [seed % len(answers.classes) for seed in seeds]
            continue
        columns[name] = _one_a_seed(name, value.get(name), len(seeds), readers[name])
    return Asked(call, seeds, columns)


def _call(value: dict[str, Any], answers: Answers) -> str:
    if not answers.parts:
        return "generate"
    part = value.get("part")
    if part not in answers.parts:
        raise Refused(
            400, f"part: expected the domain of the image, one of {', '.join(answers.parts)}, found {_kind(part)}"
        )
    return f"generate_{part}"


def _seeds(value: dict[str, Any], limits: Limits) -> list[int]:
    if ("seeds" in value) == ("images" in value or "first_seed" in value):
        raise Refused(400, "expected either seeds, a list, or images, how many, with first_seed")
    if "seeds" in value:
        seeds = value["seeds"]
        if not isinstance(seeds, list) or not seeds:
            raise Refused(400, f"seeds: expected a list of whole numbers, found {_kind(seeds)}")
        _check_count(len(seeds), limits)
        for seed in seeds:
            _check_seed(seed, "seeds")
        return seeds
    count, first = value.get("images", 1), value.get("first_seed", 0)
    if type(count) is not int or count < 1:
        raise Refused(400, f"images: expected a whole number, at least 1, found {_kind(count)}")
    _check_count(count, limits)
    _check_seed(first, "first_seed")
    _check_seed(first + count - 1, "first_seed")
    return list(range(first, first + count))


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.max_images:
        raise Refused(400, f"{count} images asked for; at most {limits.max_images} a request")


def _check_seed(seed: Any, place: str) -> None:
    if type(seed) is not int or not 0 <= seed < SEEDS:
        raise Refused(400, f"{place}: expected whole numbers from 0 to 2^63 - 1, found {_kind(seed)}")


def _one_a_seed(name: str, value: Any, count: int, read: Callable[[Any], Any]) -> list:
    """One value for all seeds, or a list of one a seed."""
    if value is None:
        raise Refused(400, f"{name} is missing, which the model takes")
    is_list = isinstance(value, list) and not (name == "embedding" and value and not isinstance(value[0], list))
    if not is_list:
        return [read(value)] * count
    if len(value) != count:
        raise Refused(400, f"{name}: {len(value)} values for {count} seeds; expected one for all, or one each")
    return [read(one) for one in value]


def label_index(value: Any, classes: tuple[str, ...]) -> int:
    """The index of a class, by its name. `Refused` with 400."""
    if not isinstance(value, str) or value not in classes:
        names = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
        raise Refused(400, f"label: expected the name of a class ({names}), found {_kind(value)}")
    return classes.index(value)


def _caption(value: Any) -> str:
    if not isinstance(value, str) or len(value) > captions.LIMIT or not captions.has_text(value):
        raise Refused(400, f"caption: expected text of 1 to {captions.LIMIT} characters, found {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused(400, "caption: expected text, found half a character") from None
    return value


def _embedding(value: Any, size: int) -> np.ndarray:
    is_numbers = isinstance(value, list) and len(value) == size and all(type(one) in (int, float) for one in value)
    with np.errstate(over="ignore"):
        array = np.array(value, np.float32) if is_numbers else None
    if array is None or not np.isfinite(array).all():
        raise Refused(400, f"embedding: expected {size} finite numbers, found {_kind(value)}")
    return array


_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def outcome(body: bytes) -> tuple[str, str | None, bool | None]:
    """(Id of a request, the label that would have been correct, whether its images were kept) of a feedback, one of the
    last two None. `Refused` with 400.
    """
    value = parsed(body, ("id", "label", "kept"))
    request_id, label, kept = (value.get(key) for key in ("id", "label", "kept"))
    if not isinstance(request_id, str) or not _ID.fullmatch(request_id):
        raise Refused(400, f"id: expected the id of a request, found {_kind(request_id)}")
    is_label = isinstance(label, str) and 0 < len(label) <= 200 and kept is None
    if not is_label and not (isinstance(kept, bool) and label is None):
        raise Refused(400, "expected either label, the name of the right class, or kept, true or false")
    return request_id, label, kept


def _kind(value: Any) -> str:
    """A value in words that are short whatever it is."""
    if value is None:
        return "nothing"
    if isinstance(value, (list, dict)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, str) and len(value) > 40:
        return f"a text of {len(value)} characters"
    return repr(value) if not isinstance(value, int) or abs(value) < 2**80 else "a large number"
