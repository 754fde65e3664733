"""HTTP connections of the service: how many there may be, and limits for what uvicorn has none for: a request's head,
and slow readers.
"""

import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEAD = 2**16  # bytes of a head, or between two parts of a body, at most
_LINGER = 2.0  # seconds in which a client that was refused may still send, so that it comes to read why
_UNREAD = 30.0  # seconds in which a client has to read its answer
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 32\r\n\r\n"
    b"the request's head came too late"
)


async def _busy(scope, receive, send) -> None:
    """The application of a connection that is one too many."""
    body = json.dumps({"error": "too many connections are open; ask again later"}).encode()
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"retry-after", b"1")]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Limited(HttpToolsProtocol):
    """uvicorn's protocol, which answers 503 on each of more than `most` connections, and closes one whose next request
    has not come with its whole head in `seconds`, whose head is too large, whose client goes on sending what was
    refused, or does not read its answer.
    """

    seconds: float
    most: int
    _head = None  # timer of the head that is awaited
    _is_in_head, _is_whole = True, True
    _unused = 0  # bytes since the parser last made something of them

    def connection_made(self, transport):
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self.app = _busy
        self._await_head()

    def connection_lost(self, exc):
        self._stop_awaiting()
        super().connection_lost(exc)

    def data_received(self, data):
        self._unused += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unused > _HEAD:
            self.send_400_response(f"A head of over {_HEAD} bytes.")
        elif self._is_in_head and self._head is None and self._is_idle():
            self._await_head()

    def on_headers_complete(self):
        self._is_in_head, self._is_whole, self._unused = False, False, 0
        self._stop_awaiting()
        super().on_headers_complete()

    def on_body(self, body):
        self._unused = 0
        super().on_body(body)

    def on_message_complete(self):
        self._is_in_head, self._is_whole, self._unused = True, True, 0
        super().on_message_complete()

    def on_response_complete(self):
        super().on_response_complete()
        if not self._is_whole:
            self.loop.call_later(_LINGER, self._close_if_sending)
        if self.transport.get_write_buffer_size():
            self.loop.call_later(_UNREAD, self._abort_if_unread)

    def _is_idle(self):
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self):
        self._head = self.loop.call_later(self.seconds, self._close_late)

    def _stop_awaiting(self):
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _close_if_sending(self):
        if not self._is_whole and self.cycle.response_complete:
            self.transport.close()

    def _abort_if_unread(self):
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _close_late(self):
        self._head = None
        if not self.transport.is_closing():
            if self._is_idle():
                self.transport.write(_LATE)
            self.transport.close()


def limited(seconds: float, connections: int) -> type[Limited]:
    return type("Limited", (Limited,), {"seconds": seconds, "most": connections})
