"""HTTP on the wire: uvicorn's protocol, with the bounds that it lacks.

uvicorn's (0.54) lets the head of a request grow without end, waits for ever for a head or a body
that does not come, reads the rest of a body whose request is long answered, and answers what is
not HTTP in plain text. Here:

- a head has at most `head_bytes` (431) and `head_seconds` from the connection's start or its first
  byte (408; a connection on which nothing came is closed without a word, as it may be a spare);
- a body has `body_seconds` from the end of its head (408; its size is for middleware.BodyLimit);
- after an early answer (401, 404, 413) the rest of the body is read and thrown away up to
  `rest_bytes`, so that the client gets to read the answer and may go on; then the connection ends;
- each of these answers is a problem+json with an X-Request-ID, like the application's own.

**Half-closed connections.** A client that has shut down its sending side cannot be told from one
that has left, and most have left: so the application gets `http.disconnect`, whatever still waits
for the client is dropped, and the connection ends, as under nginx and plain uvicorn. Since it may
be listening after all, it is told first (400 `half-closed`); uvicorn says nothing. Answers that are
made without waiting are out before the end of the stream is seen. That holds for pipelined
requests too: uvicorn tells only the last one's application that the client left.

The price is one timer for each connection and none for each request: it looks at the one deadline
that the connection has, and sets itself to the next time at which one can have passed.
"""

import asyncio
from enum import Enum, auto
from math import inf
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service.errors import problem
from service.middleware import new_request_id

log = structlog.get_logger(__name__)


class _Phase(Enum):
    """What the next bytes of a connection are, and what becomes of those that are too many."""

    HEAD = auto()  # of the next request: 431
    BODY = auto()  # of the request that is being answered: bounded by uvicorn's flow control
    NOTHING = auto()  # the request is complete; what comes now is the head of a pipelined one
    REST = auto()  # of a body whose request is answered: thrown away, then closed
    NOISE = auto()  # after an answer that ends the connection: thrown away, then closed


# An Enum's attributes are slow to read (Python 3.11), and every packet asks for some.
_HEAD, _BODY, _NOTHING, _REST, _NOISE = _Phase


class BoundedProtocol(HttpToolsProtocol):
    """One connection. The bounds are class attributes, so that `bounded` can set them."""

    head_bytes = 16 * 1024
    head_seconds = 10.0
    body_seconds = 10.0
    rest_bytes = 256 * 1024

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # an upgrade is not followed; the request is answered
        self._phase = _HEAD
        self._due = inf  # the deadline of the phase
        self._size = 0  # bytes since the phase began, at most; of a body only the framing
        self._running: RequestResponseCycle | None = None
        self._head_too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first head."""
        super().connection_made(transport)
        self._enter(_HEAD)
        self._check_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application; uvicorn tells only that of the last pipelined request."""
        self._timer.cancel()
        if (running := self._unanswered()) is not None:
            _disconnect(running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and count what is not bounded otherwise."""
        self._unset_keepalive_if_required()
        if self._phase is _NOTHING:
            self._phase, self._size = _HEAD, 0
        self._size += len(data)
        if self._phase is not _NOISE:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade:
                pass
            except httptools.HttpParserError:
                if self._head_too_large:
                    self._refuse_head()
                else:
                    self._refuse(400, "malformed", "what was sent is not a valid HTTP request")
        if self._size > self.head_bytes:
            self._overflow()
        if self._due == inf and self._phase is not _NOTHING:  # seldom: most come in one piece
            self._set_deadline()

    def eof_received(self) -> None:
        """Close, as uvicorn does, but tell a client that only shut down its sending side."""
        running = self._unanswered()
        if running is not None and not running.response_started:
            detail = "the connection was shut down before the answer, which counts as leaving"
            self._answer(400, "half-closed", detail, running)

    def on_headers_complete(self) -> None:
        """Check the size of the head, as what arrived may have gone beyond it, and go on."""
        if self._size > self.head_bytes and self._head_size() > self.head_bytes:
            self._head_too_large = True
            raise ValueError("the head is too large")  # stops the parser; data_received answers
        super().on_headers_complete()
        if not self.pipeline:
            self._running = self.cycle
        # Without a reset of the size: what arrived already may hold another head.
        self._phase, self._due = _BODY, inf

    def on_body(self, body: bytes) -> None:
        """Leave the body out of what is counted here: what remains is its framing, and trailers."""
        super().on_body(body)
        if self._phase is _BODY:
            self._size -= len(body)

    def on_message_complete(self) -> None:
        """End the body's phase."""
        super().on_message_complete()
        if self._phase is _BODY:
            self._phase, self._due = _NOTHING, inf
        else:
            self._enter(_HEAD)

    def on_response_complete(self) -> None:
        """Notice an answer that came before the end of its request's body."""
        if self.pipeline:
            self._running = self.pipeline[-1][0]  # the one that starts now
        super().on_response_complete()
        if self._phase is _BODY and self.cycle.response_complete:
            self._enter(_REST)
        elif self._due != inf:
            self._set_deadline()  # what is on its way waited for this answer, or may have

    def _unanswered(self) -> RequestResponseCycle | None:
        running = self._running
        if running is None or running.response_complete or running.disconnected:
            return None
        return running

    def _enter(self, phase: _Phase) -> None:
        self._phase, self._size = phase, 0
        self._set_deadline()

    def _set_deadline(self) -> None:
        seconds = self.body_seconds if self._phase is _BODY else self.head_seconds
        self._due = self.loop.time() + seconds

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _check_later(self) -> None:
        """Set the timer so that whatever deadline is set in between cannot have passed before."""
        now = self.loop.time()
        later = now + min(self.head_seconds, self.body_seconds)
        self._timer = self.loop.call_at(
            self._due if now < self._due < later else later, self._check
        )

    def _check(self) -> None:
        if not self.transport.is_closing():
            if self._due <= self.loop.time():
                self._expire()
            self._check_later()

    def _overflow(self) -> None:
        """More arrived than a head may have: end what is too large by the measure of its phase."""
        if self._phase is _HEAD:
            self._refuse_head()
        elif self._size > self.rest_bytes:
            if self._phase is _BODY:
                self._refuse_head()  # trailers are headers too
            elif self._phase is not _NOTHING:
                self.transport.close()

    def _expire(self) -> None:
        running = self._unanswered()
        if running is not None and (running is not self.cycle or self.flow.read_paused):
            self._set_deadline()  # it waits for us: behind another request, or for a full buffer
        elif self._phase is _BODY:
            detail = f"the body did not arrive within {self.body_seconds:g} s"
            self._refuse(408, "request-timeout", detail)
        elif running is not None:
            self._set_deadline()  # a part of the next head, which may come when it likes till then
        elif self._phase is _HEAD and self._size:
            detail = f"the request's head did not arrive within {self.head_seconds:g} s"
            self._refuse(408, "request-timeout", detail)
        else:
            self.transport.close()

    def _refuse_head(self) -> None:
        detail = f"the request line and headers may have at most {self.head_bytes} bytes here"
        self._refuse(431, "head-too-large", detail)

    def _refuse(self, status: int, kind: str, detail: str) -> None:
        """Answer and end the connection, but let an earlier request of it have its answer."""
        self._enter(_NOISE)
        running = self._unanswered()
        if running is not None and not running.more_body:
            running.keep_alive = False
            return
        if running is not None:
            running.scope["state"]["refused"] = status
            _disconnect(running)
            if running.response_started:
                self.transport.close()
                return
        self._answer(status, kind, detail, running)
        # Not closed yet: bytes that nobody read would make the kernel reset the connection, and
        # the client could lose the answer.
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _answer(
        self, status: int, kind: str, detail: str, running: RequestResponseCycle | None
    ) -> None:
        state = running.scope["state"] if running is not None else {}
        if (request_id := state.get("request_id")) is None:
            request_id = new_request_id()
            log.info("request refused", status=status, reason=kind, request_id=request_id)
        headers = {"Connection": "close", "X-Request-ID": request_id}
        response = problem(status, kind, detail, headers)
        fields = (*self.server_state.default_headers, *response.raw_headers)
        head = b"".join(b"%b: %b\r\n" % field for field in fields)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], head, bytes(response.body)))


def bounded(body_seconds: float) -> type[BoundedProtocol]:
    """The protocol with the bounds that a setting changes, for uvicorn's `http`."""
    return type("Protocol", (BoundedProtocol,), {"body_seconds": body_seconds})


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Have the application's `receive` say `http.disconnect`."""
    cycle.disconnected = True
    cycle.message_event.set()
