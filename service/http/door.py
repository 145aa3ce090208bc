"""Refusing at the door: while the queue is full, most requests end here, in the protocol.

No cycle, no scope and no task of uvicorn's is made for them, and the connection stays open.
"""

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.http.full_queue import PATH, FullQueue
from service.http.middleware import Fields
from service.http.protocol import BoundedProtocol

_QUERY = PATH + b"?"
_CLOSE = (b"connection", b"close")


class DoorProtocol(BoundedProtocol):
    """One connection, which asks `full_queue` before it has the application begin with a request.

    Only about a request that is there in one piece, behind no other that is being answered, and
    after which the connection stays open: all others go the usual way, and are refused there.
    """

    full_queue: FullQueue

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The body of a request that is not begun with yet; what is chunked may come byte by byte.
        self._held: bytearray | None = None
        self._head: Fields = []  # its headers

    def on_body(self, body: bytes) -> None:
        """Keep a body until all of it is there."""
        if self._held is None:
            super().on_body(body)
        else:
            self._held += body

    def on_message_complete(self) -> None:
        """Refuse the request, or have the application begin with it."""
        if self._held is not None:
            method, query = self.parser.get_method(), self.url[len(_QUERY) :]
            answer = self.full_queue.refusal(method, query, self._head, bytes(self._held))
            if answer is not None:
                self._size -= len(self._held)
                self._held = None
                self._send(answer)
                return
            self._release()
        super().on_message_complete()

    def _begin_request(self) -> None:
        """Hold a request back where the queue may be all that decides about it."""
        if self._may_be_refused():
            self._held = bytearray()
            self._head, self.headers = self.headers, []  # uvicorn adds trailers there
        else:
            super()._begin_request()

    def _may_be_refused(self) -> bool:
        return (
            (self.url == PATH or self.url.startswith(_QUERY))
            and self._unanswered() is None
            and not self._beyond
            and not self.expect_100_continue
            and not self.flow.write_paused  # its client reads no answers
            and self.parser.get_http_version() == "1.1"
            and self.parser.should_keep_alive()
            and _CLOSE not in self.server_state.default_headers
            and self.full_queue.may_refuse()
        )

    def _parse(self, data: bytes) -> None:
        try:
            super()._parse(data)
        finally:
            if self._held is not None:  # the rest of its body is still to come
                self._release()

    def _release(self) -> None:
        """Have the application begin with the request that was held back."""
        body, self._held = self._held, None
        super()._begin_request()
        if body:
            super().on_body(bytes(body))

    def _send(self, answer: bytes) -> None:
        fields = b"".join([b"%b: %b\r\n" % field for field in self.server_state.default_headers])
        self.transport.write(b"%b%b%b" % (STATUS_LINE[429], fields, answer))
        self.server_state.total_requests += 1
        self._end_request()
        self._idle()


def with_door(protocol: type[BoundedProtocol], full_queue: FullQueue) -> type[DoorProtocol]:
    """The protocol with its bounds, and with that at its door."""
    return type("Protocol", (DoorProtocol, protocol), {"full_queue": full_queue})
