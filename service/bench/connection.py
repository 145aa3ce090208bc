"""One keep-alive HTTP/1.1 connection as a state machine: no task, no stream, no future.

The load generator shares its processors with the server it measures, so whatever it burns is
missing from the result.
"""

import asyncio
from time import perf_counter
from typing import Protocol, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpResponseParser

from service.bench.samples import Samples
from service.bench.target import Target


class Owner(Protocol):
    """What a connection asks of the load that it belongs to (`service.bench.base.Load`).

    Attributes:
        target: what is sent.
        samples: where answers are noted.
    """

    target: Target
    samples: Samples

    def opened(self, connection: "Connection") -> None:
        """The connection is there."""

    def free(self, connection: "Connection", now: float) -> None:
        """The connection has its answer, and is free for the next request."""

    def lost(self, connection: "Connection", failure: str) -> None:
        """The connection is at its end; a request under way on it ends with `failure`."""

    def refused(self, status: int, body: bytes) -> None:
        """An answer that was just noted is none of 2xx."""


class Connection(asyncio.Protocol):
    """Carries one request at a time; tells its load when it is free for the next, or lost.

    An answer has a length or is chunked: one that only ends with its connection has not arrived.
    """

    __slots__ = (
        "_body",
        "_complete",
        "_keep",
        "_load",
        "_parser",
        "_timing",
        "_transport",
        "due",
        "sent",
    )

    def __init__(self, load: Owner) -> None:
        self._load = load
        self._parser = HttpResponseParser(self)
        self._complete = False
        self._keep = True
        self._timing: bytes | None = None
        self._body = b""  # of the first refusal
        self.due: float | None = None  # None: no request is under way
        self.sent = 0.0

    def send(self, due: float, now: float) -> None:
        """Send the next request, which was due at `due`."""
        self.due = due
        self.sent = now
        self._timing = None
        self._transport.write(self._load.target.request())

    def abort(self) -> None:
        """Close at once; what was not read is lost."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be there for the first request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._load.opened(self)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and pass the answer on when it is whole."""
        try:
            self._parser.feed_data(data)
        except HttpParserCallbackError:
            raise  # a defect of ours
        except HttpParserError:
            self._load.lost(self, "not HTTP")
        else:
            if self._complete:
                self._complete = False
                self._answered()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        """Tell the load, which may know already."""
        self._load.lost(self, "dropped")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the one header that the report is about (called by the parser)."""
        if len(name) == 13 and name.lower() == b"server-timing":
            self._timing = value

    def on_body(self, part: bytes) -> None:
        """Keep what the first refusal says (called by the parser)."""
        if self._load.samples.refusal is None and self._parser.get_status_code() >= 300:
            self._body += part

    def on_message_complete(self) -> None:
        """Note that the answer is whole (called by the parser)."""
        self._complete = True
        self._keep = self._parser.should_keep_alive()

    def _answered(self) -> None:
        due, now = self.due, perf_counter()
        keep = self._keep
        if due is None:
            keep = False  # nobody asked: a server says 408 before it hangs up on an idle client
        else:
            status = self._parser.get_status_code()
            self._load.samples.answered(due, self.sent, now, status, self._timing)
            self.due = None
            if status >= 300:
                self._load.refused(status, self._body)
        if keep:
            self._load.free(self, now)
        else:
            self._load.lost(self, "dropped")
