"""HTTP on the wire: uvicorn's protocol, with the bounds that it lacks.

uvicorn's (0.54) lets the head of a request grow without end, waits for ever for a head or a body
that does not come, reads the rest of a body whose request is long answered, and answers what is
not HTTP in plain text. Here:

- a head has at most `head_bytes` (431) and `head_seconds` from the connection's start or its first
  byte (408; a connection on which nothing came is closed without a word, as it may be a spare);
- a body has `body_seconds` from the end of its head (408; its size is for middleware.BodyLimit);
- after an early answer (401, 404, 413) the rest of the body is read and thrown away up to
  `rest_bytes`, so that the client gets to read the answer and may go on; then the connection ends;
- beyond so many open connections each may ask once: probes are answered, all else is 503;
- each of these answers is a problem+json with an X-Request-ID, like the application's own.

**Whose byte is it?** Each byte belongs to exactly one request, or the connection ends: where a
proxy in front and this server disagree on that, one client's body becomes another's request. The
parser (llhttp) refuses most of what is ambiguous: a length beside chunks, two lengths, folded
lines, bare line feeds. What it and uvicorn let through is seen to here:

- an offer to change the protocol (`Upgrade`) ends the request for the parser, body or not. It is
  not followed, so the request is read once more without it (RFC 9110, 7.8);
- a transfer coding besides `chunked`, or in HTTP/1.0, is refused (RFC 9112, 6.1);
- CONNECT, other versions of HTTP and several Host fields are refused;
- trailers are read, and do not become headers of the request (RFC 9110, 6.5.1);
- after `Expect: 100-continue` and a final answer nobody knows if the body comes: the connection
  ends, unless some of the body is there.

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
from collections.abc import Callable, Iterator
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

from service.exceptions import RefusedError
from service.http.connections import Room
from service.http.cors import answer_headers
from service.http.middleware import PROBES, new_request_id
from service.http.problems import MalformedError, problem

log = structlog.get_logger(__name__)


_PROBES = frozenset(path.encode("ascii") for path in PROBES)
_MALFORMED = "what was sent is not a valid HTTP request"


class HalfClosedError(RefusedError):
    """The client shut down its sending side before it had its answer, which counts as leaving."""

    status, kind = 400, "half-closed"


class RequestTimeoutError(RefusedError):
    """The head or the body of a request did not arrive in time."""

    status, kind = 408, "request-timeout"


class HeadTooLargeError(RefusedError):
    """The request line and headers, or the trailers, have more bytes than they may."""

    status, kind = 431, "head-too-large"


class NotImplementedHereError(RefusedError):
    """A part of HTTP that this server leaves out."""

    status, kind = 501, "not-implemented"


class TooManyConnectionsError(RefusedError):
    """More connections are open than may be."""

    status, kind = 503, "too-many-connections"


class HttpVersionError(RefusedError):
    """Another version of HTTP than 1.1 and 1.0."""

    status, kind = 505, "http-version"


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
    room: Room | None = None  # None: there is no limit on connections
    count_refusal: Callable[[int], None] = staticmethod(lambda _: None)  # status
    allowed_origins: frozenset[str] = frozenset()  # whose pages may read the answers

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ws_protocol_class = None  # an upgrade is not followed; the request is answered
        self._phase = _HEAD
        self._due = inf  # the deadline of the phase
        self._size = 0  # bytes since the phase began, at most; of a body only the framing
        self._begun = False  # a request of which the parser has not seen the end
        self._running: RequestResponseCycle | None = None
        self._refusal: RefusedError | None = None  # why a callback stopped the parser
        self._beyond = False  # the limit on connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first head."""
        super().connection_made(transport)
        self._beyond = self.room is not None and not self.room.enter(self, len(self.connections))
        self._enter(_HEAD)
        self._check_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the application; uvicorn tells only that of the last pipelined request."""
        self._timer.cancel()
        if self.room is not None:
            self.room.leave(self)
        if (running := self._unanswered()) is not None:
            _disconnect(running)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and count what is not bounded otherwise."""
        if idle := self._phase is _NOTHING:
            self._phase, self._size = _HEAD, 0
        self._size += len(data)
        if self._phase is not _NOISE:
            try:
                self._parse(data)
            except httptools.HttpParserError:
                self._refuse(self._refusal or MalformedError(_MALFORMED))
        if idle and self._phase is _HEAD and not self._begun:
            self._phase = _NOTHING  # blank lines (RFC 9112, 2.2): it idles on, with the same end
        if self._size > self.head_bytes:
            self._overflow()
        if self._due == inf and self._phase is not _NOTHING:  # seldom: most come in one piece
            self._set_deadline()

    def eof_received(self) -> None:
        """Close, as uvicorn does, but tell a client that only shut down its sending side."""
        running = self._unanswered()
        if running is not None and not running.response_started:
            detail = "the connection was shut down before the answer, which counts as leaving"
            self._answer(HalfClosedError(detail), running)

    def on_message_begin(self) -> None:
        """Note that this is a request, and not a blank line before one."""
        super().on_message_begin()
        self._begun = True
        self._unset_keepalive_if_required()

    def on_headers_complete(self) -> None:
        """Check the head, whose size may have gone beyond the bound, and start the request."""
        self._refusal = self._check_head()
        if self._refusal is not None:
            raise ValueError("refused")  # stops the parser; data_received answers
        if self.parser.should_upgrade():
            return  # `_parse` reads it once more, without the offer
        self._begin_request()

    def _begin_request(self) -> None:
        """Have the application begin with the request whose head was read."""
        self._unset_keepalive_if_required()  # an answer before it may have set it since
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # its clients do not know what that is
        super().on_headers_complete()
        self.headers = []  # uvicorn adds trailers there; the request has the list that was
        if self.expect_100_continue or self._beyond:
            self.cycle.keep_alive = False  # unless the body comes before the answer
        if not self.pipeline:
            self._running = self.cycle
        # Without a reset of the size: what arrived already may hold another head.
        self._phase, self._due = _BODY, inf

    def on_body(self, body: bytes) -> None:
        """Leave the body out of what is counted here: what remains is its framing, and trailers."""
        self._restore_keep_alive()
        super().on_body(body)
        if self._phase is _BODY:
            self._size -= len(body)

    def on_message_complete(self) -> None:
        """End the body's phase."""
        if self.parser.should_upgrade():
            return  # the end of its head; see on_headers_complete
        self._restore_keep_alive()
        super().on_message_complete()
        if self._phase is _REST:
            self._idle()
        self._end_request()

    def _idle(self) -> None:
        """Close the connection if no further request comes in time."""
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _end_request(self) -> None:
        """Note that all of a request was read."""
        self._begun = False
        self._phase, self._due = _NOTHING, inf

    def on_response_complete(self) -> None:
        """Notice an answer that came before the end of its request's body."""
        if self.pipeline:
            self._running = self.pipeline[-1][0]  # the one that starts now
        super().on_response_complete()
        if self._phase is _BODY and self.cycle.response_complete:
            self._unset_keepalive_if_required()  # it does not idle yet
            self._enter(_REST)
        elif self._due != inf:
            self._set_deadline()  # what is on its way waited for this answer, or may have

    def shutdown(self) -> None:
        """End the connection, when its request is answered if it has one."""
        self.expect_100_continue = False  # so that what comes does not keep the connection
        super().shutdown()

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    def _restore_keep_alive(self) -> None:
        """The client sends the body that it asked leave for: it may go on with the connection."""
        if self.expect_100_continue and not self.cycle.response_started:
            self.expect_100_continue = False
            self.cycle.keep_alive = self.parser.should_keep_alive() and not self._beyond

    def _parse(self, data: bytes) -> None:
        """Feed the parser, and have it read a request that offers an upgrade as any other.

        The parser takes such a request to end with its head, and says where in `data` that was.
        A new one gets the same head without the offer, and then what follows.
        """
        rest = memoryview(data)  # no copy for each of many pipelined offers
        while rest:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as offer:
                head = b"".join(self._head_without_offer())
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
                self.parser.feed_data(head)
                rest = rest[offer.args[0] :]
            else:
                return

    def _head_without_offer(self) -> Iterator[bytes]:
        version = self.parser.get_http_version().encode("ascii")
        yield b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        for name, value in self.headers:
            if name != b"upgrade":
                yield b"%b: %b\r\n" % (name, value)
        yield b"\r\n"

    def _check_head(self) -> RefusedError | None:
        """Why the request that begins with this head is refused; None: it is not."""
        if self._size > self.head_bytes and self._head_size() > self.head_bytes:
            return self._head_too_large()
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            return HttpVersionError(f"this server speaks HTTP/1.1, not HTTP/{version}")
        if self.parser.get_method() == b"CONNECT":
            return NotImplementedHereError("this server is no proxy: it does not answer CONNECT")
        if self._beyond and self.url.partition(b"?")[0] not in _PROBES:
            assert self.room is not None
            self.room.refuse()
            detail = f"{self.room.limit} connections are open, which is all there may be"
            return TooManyConnectionsError(f"{detail}; try again later")
        hosts, coding = 0, None
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                coding = value if coding is None else b"%b, %b" % (coding, value)
        if hosts > 1:
            return MalformedError("a request has one Host field, not several")
        if coding is None:
            return None
        if version == "1.0":
            return MalformedError("HTTP/1.0 knows no Transfer-Encoding: send a Content-Length")
        codings = [part.strip() for part in coding.lower().split(b",")]
        if codings != [b"chunked"]:
            if codings[-1] != b"chunked":
                return MalformedError(_MALFORMED)  # nobody knows where the body ends
            return NotImplementedHereError("of transfer codings this server knows only `chunked`")
        return None

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
        """More arrived than a head may have: refuse it by the limit of the part being read."""
        if self._phase is _HEAD:
            self._refuse(self._head_too_large())
        elif self._size > self.rest_bytes:
            if self._phase is _BODY:
                self._refuse(self._head_too_large())  # trailers are headers too
            elif self._phase is not _NOTHING:
                self.transport.close()

    def _expire(self) -> None:
        running = self._unanswered()
        if running is not None and (running is not self.cycle or self.flow.read_paused):
            self._set_deadline()  # it waits for us: behind another request, or for a full buffer
        elif self._phase is _BODY:
            detail = f"the body did not arrive within {self.body_seconds:g} s"
            self._refuse(RequestTimeoutError(detail))
        elif running is not None:
            self._set_deadline()  # a part of the next head, which may come when it likes till then
        elif self._phase is _HEAD and self._size:
            detail = f"the request's head did not arrive within {self.head_seconds:g} s"
            self._refuse(RequestTimeoutError(detail))
        else:
            self.transport.close()

    def _head_too_large(self) -> RefusedError:
        detail = f"the request line and headers may have at most {self.head_bytes} bytes here"
        return HeadTooLargeError(detail)

    def _refuse(self, refusal: RefusedError) -> None:
        """Answer and end the connection, but let an earlier request of it have its answer."""
        answered = self._phase is _REST
        self._enter(_NOISE)
        running = self._unanswered()
        if running is not None and not running.more_body:
            running.keep_alive = False
            return
        if running is not None:
            running.scope["state"]["refused"] = refusal.status
            _disconnect(running)
            if running.response_started:
                self.transport.close()
                return
        if not answered:  # a second answer could pass for that of the client's next request
            self._answer(refusal, running)
        # Not closed yet: bytes that nobody read would make the kernel reset the connection, and
        # the client could lose the answer.
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _answer(self, refusal: RefusedError, running: RequestResponseCycle | None) -> None:
        state = running.scope["state"] if running is not None else {}
        if (request_id := state.get("request_id")) is None:
            request_id = new_request_id()
            log.info(
                "request refused",
                status=refusal.status,
                problem=refusal.kind,
                request_id=request_id,
            )
            self.count_refusal(refusal.status)
        headers = {"Connection": "close", "X-Request-ID": request_id}
        request_headers = running.scope["headers"] if running is not None else self.headers or ()
        origin = dict(request_headers).get(b"origin", b"").decode("latin-1")
        headers.update(answer_headers(self.allowed_origins, origin))
        response = problem(refusal, headers)
        fields = (*self.server_state.default_headers, *response.raw_headers)
        head = b"".join(b"%b: %b\r\n" % field for field in fields)
        line = STATUS_LINE[refusal.status]
        self.transport.write(b"%b%b\r\n%b" % (line, head, bytes(response.body)))


def bounded(
    body_seconds: float,
    head_bytes: int = BoundedProtocol.head_bytes,
    room: Room | None = None,
    count_refusal: Callable[[int], None] = lambda _: None,
    allowed_origins: frozenset[str] = frozenset(),
) -> type[BoundedProtocol]:
    """The protocol with the bounds that settings change, for uvicorn's `http`.

    Args:
        body_seconds: how long a body may take.
        head_bytes: how large a head may be.
        room: the limit on connections.
        count_refusal: called with the status of an answer of which the application knows nothing.
        allowed_origins: whose pages may read the answers (`cors.origins`).
    """
    bounds = {
        "body_seconds": body_seconds,
        "head_bytes": head_bytes,
        "rest_bytes": max(BoundedProtocol.rest_bytes, 2 * head_bytes),
        "room": room,
        "count_refusal": staticmethod(count_refusal),
        "allowed_origins": allowed_origins,
    }
    return type("Protocol", (BoundedProtocol,), bounds)


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Have the application's `receive` say `http.disconnect`."""
    cycle.disconnected = True
    cycle.message_event.set()
