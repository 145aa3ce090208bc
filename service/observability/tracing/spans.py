"""Tracing that is on: every span, name and attribute, and how they reach the collector.

    POST /generate                     the request, in the client's trace if it brought one
    +-- queue                          from its submission to the start of a batch
    +-- batch                          in the trace of the first sampled request; linked both ways
        +-- onnxruntime                with all others: noise comes before, encoding after it
        or inference.GRPCInferenceService/ModelInfer, whose children are Triton's own spans

Spans are made for sampled requests only, by the event loop but for the engine's. Each carries its
parent explicitly: a batch is drawn in a task that belongs to none of its requests.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from time import monotonic, time_ns
from types import TracebackType

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from service.observability.tracing.off import (
    Batch,
    BatchTrace,
    RequestTrace,
    Tracing,
    sent_traceparent,
)

log = structlog.get_logger(__name__)

_SERVICE = "sid-serve"  # unless OTEL_SERVICE_NAME says otherwise
_QUEUE, _BATCH = "queue", "batch"
_MODEL = "sid.model"
_BATCH_SIZE, _BATCH_REASON = "sid.batch.size", "sid.batch.reason"
_BATCH_LATENTS, _BATCH_ENCODE = "sid.batch.latents_ms", "sid.batch.encode_ms"
_ENGINE = "sid.engine"
# From OpenTelemetry's semantic conventions for HTTP, RPC and errors.
_METHOD, _PATH, _SCHEME = "http.request.method", "url.path", "url.scheme"
_ROUTE, _STATUS = "http.route", "http.response.status_code"
_RPC_SYSTEM, _RPC_METHOD = "rpc.system.name", "rpc.method"
_ERROR = "error.type"

# What each engine calls over gRPC. Which of several servers it was, gRPC does not say.
_REMOTE = {"triton": "inference.GRPCInferenceService/ModelInfer"}

_ROOT = Context()
_PROPAGATOR = TraceContextTextMapPropagator()
_LAST_SECONDS = 1.0  # for what is left at the end
_EXPORTER, _SDK = "opentelemetry.exporter", "opentelemetry.sdk"  # their loggers
_QUIET_SECONDS = 60.0  # without a loss, then it is over


class SpanTracing(Tracing):
    """Makes spans and sends them to an OTLP collector, in the background.

    The SDK reads OTEL_* itself: the sampler, resource, headers, certificates, queue.
    """

    def __init__(self, collector: str) -> None:
        resource = Resource.create({"service.version": version("sid-serve")})
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": _SERVICE}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer(_SERVICE, version("sid-serve"))
        self._delivery = _Delivery()
        self._exporter = _Exporter(collector, self._delivery)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._delivery.install()

    def start_request(self, scope: Scope) -> RequestTrace:
        """Begin the request's span; the name follows when its route is known."""
        attributes = {_METHOD: scope["method"], _PATH: scope["path"], _SCHEME: scope["scheme"]}
        span = self._tracer.start_span(
            scope["method"], _sent_context(scope), SpanKind.SERVER, attributes
        )
        context = span.get_span_context()
        if context.trace_flags.sampled:
            return _RequestSpan(self._tracer, span)
        # No traceparent either: Triton traces whatever has one, even what says "not sampled".
        return RequestTrace(format_trace_id(context.trace_id) if context.is_valid else None)

    async def aclose(self) -> None:
        """Deliver what is left within a second, or lose it."""
        # Once the exporter is shut down, what waits for the collector gives up.
        timer = asyncio.get_running_loop().call_later(_LAST_SECONDS, self._exporter.shutdown)
        await asyncio.to_thread(self._provider.shutdown)
        timer.cancel()
        self._delivery.remove()


class _RequestSpan(RequestTrace):
    """A sampled request."""

    __slots__ = ("_tracer", "span")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        trace_id = format_trace_id(span.get_span_context().trace_id)
        super().__init__(trace_id, _traceparent(span.get_span_context()))
        self._tracer = tracer
        self.span = span

    def start_batch(self, batch: Batch) -> BatchTrace:
        """Begin a batch as this span's child, linked with the spans of the other requests."""
        return _BatchSpan(self._tracer, self, batch)

    def queued(self, seconds: float, until: int) -> None:
        """Some of the request's images have waited so long, until this time (ns)."""
        context = set_span_in_context(self.span, _ROOT)
        start = until - int(seconds * 1e9)
        self._tracer.start_span(_QUEUE, context, start_time=start).end(until)

    def drawn_by(self, batches: Iterable[BatchTrace]) -> None:
        """Link this span to those batches, where they have spans."""
        if self.span.is_recording():  # it may have ended: its client left, its deadline passed
            for batch in batches:
                if isinstance(batch, _BatchSpan):
                    self.span.add_link(batch.context)

    def end(self, scope: Scope, status: int) -> None:
        """End the span, with what has become known of the request."""
        attributes: dict[str, str | int] = {_STATUS: status}
        if (route := getattr(scope.get("route"), "path", None)) is not None:
            attributes[_ROUTE] = route
            self.span.update_name(f"{scope['method']} {route}")
        if (model := scope["state"].get("model")) is not None:
            attributes[_MODEL] = model
        if status >= 500:
            attributes[_ERROR] = str(status)
            self.span.set_status(StatusCode.ERROR)
        self.span.set_attributes(attributes)
        self.span.end()


class _BatchSpan(BatchTrace):
    """A batch with at least one sampled request, and its engine's computation."""

    def __init__(self, tracer: Tracer, first: _RequestSpan, batch: Batch) -> None:
        super().__init__()
        requests = [request for request in batch.waited if isinstance(request, _RequestSpan)]
        others = [request for request in requests if request is not first]
        now = time_ns()
        self._tracer, self._engine = tracer, batch.engine
        self._span = tracer.start_span(
            _BATCH,
            set_span_in_context(first.span, _ROOT),
            attributes={
                _MODEL: batch.model,
                _BATCH_SIZE: batch.size,
                _BATCH_REASON: batch.reason,
            },
            links=[Link(request.span.get_span_context()) for request in others],
            start_time=now,
        )
        self.context = self._span.get_span_context()
        self._engine_span: Span | None = None
        self._engine_ended: int | None = None
        self._failed: list[tuple[Span, int]] = []  # spans of engines, and when the next one began
        for request in requests:
            request.queued(batch.waited[request], now)
        for request in others:
            request.drawn_by([self])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all of its spans."""
        for span, ended in self._failed:
            span.set_status(StatusCode.ERROR, "another engine drew the batch again")
            span.end(ended)
        if self._engine_span is not None:
            if error is not None and self._engine_ended is None:
                _fail(self._engine_span, error)
            self._engine_span.end(self._engine_ended)
        if error is not None:
            _fail(self._span, error)
        self._span.end()

    def start_engine(self) -> str:
        """Begin the engine's span; called by one of its threads.

        Once more where another engine draws the batch again.
        """
        if self._engine_span is not None:
            self._failed.append((self._engine_span, time_ns()))
            self._engine_ended = None
        attributes = {_ENGINE: f"{self._engine.name} {self._engine.version}".strip()}
        name, kind = self._engine.name, SpanKind.INTERNAL
        if (method := _REMOTE.get(name)) is not None:
            attributes |= {_RPC_SYSTEM: "grpc", _RPC_METHOD: method}
            name, kind = method, SpanKind.CLIENT
        context = set_span_in_context(self._span, _ROOT)
        self._engine_span = self._tracer.start_span(name, context, kind, attributes)
        return _traceparent(self._engine_span.get_span_context())

    def end_engine(self) -> None:
        """Note the time. The span is ended by the event loop alone, also when it is cancelled."""
        self._engine_ended = time_ns()

    def timed(self, latents: float, encode: float) -> None:
        """Note it: the gaps before and after the engine hold the switches between threads too."""
        self._span.set_attributes({_BATCH_LATENTS: latents * 1000, _BATCH_ENCODE: encode * 1000})


def _fail(span: Span, error: BaseException) -> None:
    span.set_attribute(_ERROR, type(error).__name__)
    span.set_status(StatusCode.ERROR, str(error))


def _sent_context(scope: Scope) -> Context:
    """The trace context that a request brought, with its tracestate; or none."""
    if (traceparent := sent_traceparent(scope)) is None:
        return _ROOT
    states = [value.decode("latin-1") for name, value in scope["headers"] if name == b"tracestate"]
    return _PROPAGATOR.extract({"traceparent": traceparent, "tracestate": ",".join(states)})


def _traceparent(context: SpanContext) -> str:
    ids = f"{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}"
    return f"00-{ids}-{context.trace_flags:02x}"


class _Exporter(OTLPSpanExporter):
    """OpenTelemetry's exporter, which tells whether the collector took what it sent."""

    def __init__(self, collector: str, delivery: "_Delivery") -> None:
        super().__init__(endpoint=collector)
        self._delivery = delivery

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; called by the processor's thread."""
        result = super().export(spans)
        self._delivery.sent(result is SpanExportResult.SUCCESS)
        return result


class _Delivery(logging.Handler):
    """Tells when spans begin to be lost, in one line, and when that is over.

    It takes the place of OpenTelemetry's own log lines, of which a collector that is away causes
    several a minute: retries, failures, and a queue that is full.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._library = logging.getLogger("opentelemetry")
        self._lost_at: float | None = None
        self._trouble = ""  # why the exporter tries again: a queue that is full does not say

    def install(self) -> None:
        """Take OpenTelemetry's log lines from now on."""
        self._library.propagate = False
        self._library.addHandler(self)

    def remove(self) -> None:
        """Leave them to others again."""
        self._library.removeHandler(self)
        self._library.propagate = True

    def emit(self, record: logging.LogRecord) -> None:
        """Take a line for a loss, unless the exporter only says that it will try again."""
        message = record.getMessage()
        if record.name.startswith(_EXPORTER) and record.levelno == logging.WARNING:
            self._trouble = message
        elif record.name.startswith((_EXPORTER, _SDK)):  # others complain about clients' headers
            self._record_lost(message)

    def sent(self, taken: bool) -> None:
        """Some spans were sent, and the collector took them or not."""
        if not taken:
            self._record_lost("the collector did not take them in time")
            return
        self._trouble = ""
        if self._lost_at is not None and monotonic() - self._lost_at > _QUIET_SECONDS:
            self._lost_at = None
            log.warning("traces are delivered again")

    def _record_lost(self, reason: str) -> None:
        if self._lost_at is None:
            log.warning("traces are lost", reason=f"{reason} {self._trouble}".strip())
        self._lost_at = monotonic()
