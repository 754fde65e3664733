"""Requests to a function, and its answers: as an API gateway hands them on, or as whoever invokes it himself does."""

import base64
import binascii
import functools
import io
import json
import re
from collections.abc import Callable

from PIL import Image

MEGAPIXELS = 16
_FORMATS = ("PNG", "JPEG", "GIF", "BMP")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Refused(Exception):
    """A request that is not answered: an HTTP status and one sentence."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def handles(answer: Callable[[dict], object]) -> Callable[[dict, object], object]:
    """The handler of a function that answers the event of a request.

    To a gateway (its event has a `body`, or `httpMethod` or `requestContext`) the answer is a response of HTTP; else it
    is what `answer` gives, and a refusal is an error of the function.
    """

    @functools.wraps(answer)
    def handler(event: dict, _) -> object:
        if not isinstance(event, dict):
            raise Refused(400, f"expected an object, found {type(event).__name__}")
        is_gateways = not event.keys().isdisjoint(("body", "httpMethod", "requestContext"))
        try:
            value = answer(event)
        except Refused as error:
            if not is_gateways:
                raise
            return response(error.status, {"error": str(error)})
        return response(200, value) if is_gateways else value

    return handler


def response(status: int, value: object) -> dict:
    """A response as the gateway wants it; bytes are a PNG."""
    if isinstance(value, bytes):
        body, kind = base64.b64encode(value).decode(), "image/png"
    else:
        body, kind = json.dumps(value), "application/json"
    return {
        "statusCode": status,
        "headers": {"Content-Type": kind},
        "body": body,
        "isBase64Encoded": isinstance(value, bytes),
    }


def body(event: dict) -> bytes:
    """The bytes of the body that a gateway hands on."""
    text = event.get("body") or ""
    return decoded(text, "body") if event.get("isBase64Encoded") else text.encode()


def fields(event: dict) -> dict:
    """The JSON object of a gateway's body, or the event itself."""
    if "body" not in event:
        return event
    try:
        value = json.loads(body(event))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refused(400, "expected a body of one JSON object")
    return value


def decoded(text: object, key: str) -> bytes:
    if not isinstance(text, str):
        raise Refused(400, f"{key}: expected base64, found {type(text).__name__}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(400, f"{key}: not base64: {error}") from None


def name(value: object, key: str) -> str:
    """A name that becomes part of an object's key; nothing but letters, digits and `._-` is one."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise Refused(400, f"{key}: expected 1 to 100 letters, digits, '.', '_' and '-', found {str(value)[:40]!r}")
    return value


def png(data: bytes, key: str) -> bytes:
    """An image as PNG. What declares more than `MEGAPIXELS` is refused unread."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > MEGAPIXELS * 1_000_000:
            raise Refused(400, f"{key}: {image.width} x {image.height} pixels; at most {MEGAPIXELS} megapixels")
        image.load()
        if image.format == "PNG":
            return data
        out = io.BytesIO()
        image.convert("L" if image.mode == "L" else "RGB").save(out, "PNG")
    except Refused:
        raise
    except Exception as error:  # Pillow raises many types on hostile bytes.
        raise Refused(400, f"{key}: not an image that can be read ({', '.join(_FORMATS)}): {error}") from None
    return out.getvalue()
