"""Traces: a request, the batch that drew its images, and the engine's computation.

Off by default (off.py): OpenTelemetry's SDK is then not imported. SID_TRACES turns
them on (spans.py).
"""

from service.extras import how_to_install
from service.observability.tracing.off import (
    UNTRACED,
    Batch,
    BatchTrace,
    RequestTrace,
    Tracing,
    sent_traceparent,
    start_batch,
)

__all__ = [
    "UNTRACED",
    "Batch",
    "BatchTrace",
    "RequestTrace",
    "Tracing",
    "TracingError",
    "open_tracing",
    "sent_traceparent",
    "start_batch",
]


class TracingError(Exception):
    """Traces were asked for and cannot be made; the message is one line for people."""


def open_tracing(collector: str | None) -> Tracing:
    """Tracing to an OTLP collector, http://host:port; off without one.

    Raises:
        TracingError: OpenTelemetry is not installed, or cannot be set up.
    """
    if collector is None:
        return Tracing()
    try:
        # Here, for it takes a tenth of a second, which only its users should wait.
        from service.observability.tracing.spans import SpanTracing
    except ImportError as error:
        raise TracingError(
            f"SID_TRACES needs the extra `tracing`, {how_to_install('tracing')}: {error}"
        ) from error
    try:
        return SpanTracing(collector)
    except Exception as error:  # of any kind: the SDK reads many OTEL_* variables
        raise TracingError(f"SID_TRACES: OpenTelemetry cannot be set up: {error}") from error
