"""Tracing that is off, the default: a request, the batch that drew its images, the computation.

No span is made, and the traceparent that a request brought goes on to the engine. Tracing that is
on (spans.py) has the same three classes.
"""

import re
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import NamedTuple, Self

from starlette.types import Scope

from service.engines import Engine

# W3C Trace Context, version 00; ids of zeros only are invalid.
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class BatchTrace:
    """A batch without a span: a context around all that is done for it."""

    def __init__(self, traceparent: str | None = None) -> None:
        self._traceparent = traceparent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """The batch has ended, by `error` if there is one."""

    def start_engine(self) -> str | None:
        """An engine computes from now on; returns the trace context that it should be told."""
        return self._traceparent

    def end_engine(self) -> None:
        """The engine has computed."""

    def timed(self, latents: float, encode: float) -> None:
        """Noise and encoding have taken so many seconds."""


class RequestTrace:
    """A request without a span.

    Attributes:
        trace_id: for log lines; None where no trace has one.
        traceparent: the W3C trace context that a batch for this request belongs to; None: to none.
    """

    __slots__ = ("trace_id", "traceparent")

    def __init__(self, trace_id: str | None = None, traceparent: str | None = None) -> None:
        self.trace_id = trace_id
        self.traceparent = traceparent

    def start_batch(self, batch: "Batch") -> BatchTrace:  # noqa: ARG002 see spans.py
        """Begin a batch as part of this request's trace."""
        return BatchTrace(self.traceparent)

    def drawn_by(self, batches: Iterable[BatchTrace]) -> None:
        """This request gets the images of batches that were drawn for another one."""

    def end(self, scope: Scope, status: int) -> None:
        """The request has been answered."""


UNTRACED = RequestTrace()


class Batch(NamedTuple):
    """What is known of a batch when it starts.

    Attributes:
        waited: for whom it is drawn, oldest first, and how many seconds each has waited.
        size: how many images.
        reason: why it starts.
        model: the model's name.
        engine: what computes it.
    """

    waited: Mapping[RequestTrace, float]
    size: int
    reason: str
    model: str
    engine: Engine


def start_batch(batch: Batch) -> BatchTrace:
    """Begin a batch as part of the trace of its first request that has one."""
    for request in batch.waited:
        if request.traceparent is not None:
            return request.start_batch(batch)
    return BatchTrace()


class Tracing:
    """Tracing that is off."""

    def start_request(self, scope: Scope) -> RequestTrace:
        """The trace of a request that has just come in."""
        return RequestTrace(traceparent=sent_traceparent(scope))

    async def aclose(self) -> None:
        """Deliver what is left."""


def sent_traceparent(scope: Scope) -> str | None:
    """The W3C trace context that a request brought; None if it brought none that is well-formed."""
    for name, value in scope["headers"]:
        if name == b"traceparent":
            return value.decode("ascii") if _TRACEPARENT.fullmatch(value) else None
    return None
