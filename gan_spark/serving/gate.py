"""Gate of the service: every request's id, token, size and time, before the application sees it; its line in the log.

Written against ASGI itself, so that it holds for whatever path is asked for.
"""

import asyncio
import hmac
import json
import logging
import os
import re
import time
from collections.abc import Iterator

from .limits import Limits
from .metrics import Metrics
from .refusal import Refused

log = logging.getLogger("gan_spark.serving.requests")
OPEN = ("/v2/health/live", "/v2/health/ready")  # for probes, which have no token
_BODIES = 16  # bodies of the largest size that are held at once; where more would be, requests are answered 503
_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_KEY = 200  # characters of a key that count


class Gate:
    """The application `app` behind the gate."""

    def __init__(self, app, limits: Limits, metrics: Metrics, token: str):
        self._app, self._limits, self._metrics, self._token = app, limits, metrics, token.encode()
        self._ids = _ids()
        self._held = 0  # bytes of bodies of requests that are not answered yet

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answer, body = time.monotonic(), _Answer(send), bytearray()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _ID.fullmatch(given) else next(self._ids)
        answer.headers.append((b"x-request-id", request_id.encode()))
        key = headers.get(b"x-sticky-key", b"").decode("latin-1")[:_KEY]
        scope["state"] = {**scope.get("state", {}), "id": request_id, "key": key, "began": began, "log": {}}
        try:
            self._check_token(scope["path"], headers)
            if scope["method"] in ("POST", "PUT", "PATCH"):
                await self._receive(headers, receive, body)
            await self._app(scope, _replayed(bytes(body), receive), answer.send)
        except Refused as error:
            await answer.refuse(error)
        except _Gone:
            answer.status = 499  # It went away before its request was whole.
        except Exception:
            log.exception("a request failed", extra={"request_id": request_id})
            await answer.refuse(Refused(500, f"the service failed over this request; its id is {request_id}"))
        finally:
            self._held -= len(body)
            self._tell(scope, request_id, answer.status, time.monotonic() - began)

    def _check_token(self, path: str, headers: dict[bytes, bytes]) -> None:
        expected = b"Bearer " + self._token
        if self._token and path not in OPEN and not hmac.compare_digest(headers.get(b"authorization", b""), expected):
            raise Refused(401, "expected the header Authorization: Bearer, with the service's token")

    async def _receive(self, headers: dict[bytes, bytes], receive, body: bytearray) -> None:
        """Receives the whole body; `Refused` with 413 as soon as it is too large, with 408 where it comes too slowly,
        with 503 where too much is held of others.
        """
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > 18 or int(declared) > self._limits.max_mb * 2**20:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.receive_seconds):
                while await self._receive_part(receive, body):
                    pass
        except TimeoutError:
            raise Refused(408, f"the request did not come within {self._limits.receive_seconds} s") from None

    async def _receive_part(self, receive, body: bytearray) -> bool:
        """Adds the next part of a body; whether more is to come."""
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        part, limit = message.get("body", b""), self._limits.max_mb * 2**20
        if len(body) + len(part) > limit:
            raise self._too_large()
        if self._held + len(part) > _BODIES * limit:
            raise Refused(503, "requests of others hold too much memory; ask again later", 1)
        body += part
        self._held += len(part)
        return bool(message.get("more_body"))

    def _too_large(self) -> Refused:
        return Refused(413, f"a body of over {self._limits.max_mb} MB")

    def _tell(self, scope, request_id: str, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "other")  # as the application names it, not as a request does
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        log.info(
            "request",
            extra={
                "request_id": request_id,
                "method": scope["method"],
                "path": path,
                "status": status,
                "milliseconds": round(seconds * 1000, 2),
                **scope["state"]["log"],
            },
        )


def _ids() -> Iterator[str]:
    """Ids that nobody guesses, since whoever has one may tell what became of its request; many a call of the system."""
    while True:
        data = os.urandom(4096).hex()
        yield from (data[start : start + 32] for start in range(0, len(data), 32))


class _Gone(Exception):
    """The client has closed its connection."""


def _replayed(body: bytes, receive):
    """A `receive` that gives the body at once, and then what the client does."""
    is_given = False

    async def replay():
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


class _Answer:
    """What is sent, with the gate's own headers; remembers the status."""

    def __init__(self, send):
        self._send, self.headers, self.status = send, [], 0

    async def send(self, message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self.headers]}
        await self._send(message)

    async def refuse(self, error: Refused) -> None:
        """Answers with the refusal, where nothing was answered yet."""
        if self.status:
            return
        body = json.dumps({"error": str(error)}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})
