"""HTTP connections of the service, with a time limit for what uvicorn has none for: the head of a request."""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_LINGER = 2.0  # seconds in which a client that was refused may still send, so that it comes to read why
_UNREAD = 30.0  # seconds in which a client has to read its answer
_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: 32\r\n\r\n"
    b"the request's head came too late"
)


def limited(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, which closes a connection whose next request has not come with its whole head in `seconds`,
    whose client goes on sending what was refused, or does not read its answer.
    """

    class Limited(H11Protocol):
        _head = None  # timer of the head that is awaited

        def connection_made(self, transport):
            super().connection_made(transport)
            self._await_head()

        def connection_lost(self, exc):
            self._stop_awaiting()
            super().connection_lost(exc)

        def data_received(self, data):
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_awaiting()
            elif self._head is None and not self.transport.is_closing():
                self._await_head()

        def on_response_complete(self):
            is_whole = self.conn.their_state is not h11.SEND_BODY
            super().on_response_complete()
            self._stop_awaiting()
            if not is_whole:
                self.loop.call_later(_LINGER, self._close_if_sending)
            if self.transport.get_write_buffer_size():
                self.loop.call_later(_UNREAD, self._abort_if_unread)

        def _await_head(self):
            self._head = self.loop.call_later(seconds, self._close_late)

        def _stop_awaiting(self):
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _close_if_sending(self):
            if self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY:
                self.transport.close()

        def _abort_if_unread(self):
            if self.transport.get_write_buffer_size():
                self.transport.abort()

        def _close_late(self):
            self._head = None
            if not self.transport.is_closing():
                if self.conn.our_state is h11.IDLE:
                    self.transport.write(_LATE)
                self.transport.close()

    return Limited
