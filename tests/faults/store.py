"""An S3 store on loopback whose answers fail as a test says: a proxy before moto's server."""

import contextlib
import http.client
import itertools
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

REFUSED = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>%s, says the store</Message></Error>"
SECONDS = 3  # that a client waits for an answer
_OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


class Request(NamedTuple):
    method: str
    path: str  # with its query


# What becomes of a request: None to hand it on, a status (of the code) to answer, "reset" to close the connection
# before the store has it, "lose" to close it once the store has done it, seconds to wait before it is handed on, or a
# function of what the store answers.
Rule = Callable[[Request], tuple[int, bytes] | str | float | Callable[[bytes], bytes] | None]


class Proxy(ThreadingHTTPServer):
    """Hands requests on to the store at `target`, but for what becomes of them by `rule`; counts both."""

    daemon_threads = True

    def __init__(self, target: tuple[str, int]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.rule = target, None
        self.failed: list[Request] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextlib.contextmanager
    def failing(self, rule: Rule) -> Iterator[list[Request]]:
        """What `rule` says becomes of requests meanwhile; gives those that it was not silent on."""
        self.rule, self.failed = rule, []
        try:
            yield self.failed
        finally:
            self.rule = None

    def handle_error(self, request, client_address) -> None:
        """Connections that a client has closed are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request, action = Request(self.command, self.path), None
        if self.server.rule is not None and (action := self.server.rule(request)) is not None:
            self.server.failed.append(request)
        if isinstance(action, tuple):
            status, code = action
            return self._send(status, [("Content-Type", "application/xml")], REFUSED % (code, code))
        if isinstance(action, (int, float)):
            time.sleep(action)
        if action == "reset":
            return self._reset()
        store = http.client.HTTPConnection(*self.server.target, timeout=60)
        store.request(self.command, self.path, body, dict(self.headers.items()))
        answer = store.getresponse()
        data = answer.read()
        store.close()
        if action == "lose":
            return self._reset()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OF_ONE_CONNECTION]
        data = action(data) if callable(action) else data
        self._send(answer.status, headers, data, answer.getheader("Content-Length"))

    def _send(self, status: int, headers: list, data: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        # That of HEAD is of what GET would give.
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

    def log_message(self, *_) -> None:
        """Tests count what failed."""


def every(count: int, action) -> Rule:
    """Each `count`-th request fails so."""
    numbers = itertools.count(1)
    return lambda request: None if next(numbers) % count else action


def after(count: int, action) -> Rule:
    """All requests but the first `count` fail so."""
    numbers = itertools.count()
    return lambda request: None if next(numbers) < count else action


def once(method: str, name: str, action) -> Rule:
    """The first request of this method that names this fails so."""
    left = [action]
    return lambda request: left.pop() if left and request.method == method and name in request.path else None


def late(part: str) -> Rule:
    """Listings do not show yet what has `part` in its name."""

    def without(data: bytes) -> bytes:
        kept = re.sub(
            rb"<Contents>(?:(?!</Contents>).)*?%s.*?</Contents>" % re.escape(part).encode(), b"", data, flags=re.S
        )
        return re.sub(
            rb"<CommonPrefixes>\s*<Prefix>[^<]*%s[^<]*</Prefix>\s*</CommonPrefixes>" % re.escape(part).encode(),
            b"",
            kept,
        )

    return lambda request: without if "list-type" in request.path else None


@contextlib.contextmanager
def serving(patch) -> Iterator[Proxy]:
    """moto's server with the bucket `lake`, and the environment of this process set to reach it through a proxy."""
    import fsspec
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    proxy = Proxy(moto.get_host_and_port())
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(key, "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("AWS_ENDPOINT_URL", proxy.url)
    patch.setenv("AWS_MAX_ATTEMPTS", "2")  # s3fs tries again by itself; both together take minutes
    patch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": SECONDS, "connect_timeout": SECONDS}})
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        s3fs.S3FileSystem().mkdir("lake")
        yield proxy
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.shutdown()
        proxy.server_close()
        moto.stop()
