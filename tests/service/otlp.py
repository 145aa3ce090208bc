"""Receivers of traces: OTLP over gRPC, as the gateway sends them, and over HTTP, as Triton does."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import MappingProxyType
from typing import Any, NamedTuple

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


class Seen(NamedTuple):
    """A span that was received; ids in hexadecimal, times in seconds."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    kind: str = ""
    attributes: Mapping[str, Any] = MappingProxyType({})
    links: tuple[str, ...] = ()
    error: bool = False
    said: str = ""
    start: float = 0
    end: float = 0

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Received(list[Seen]):
    """What a receiver has received, in the order of the spans' ends."""

    url = ""

    def named(self, name: str) -> list[Seen]:
        return [span for span in self if span.name == name]

    def one(self, name: str) -> Seen:
        (span,) = self.named(name)
        return span


@contextmanager
def collector(port: int = 0) -> Iterator[Received]:
    """OTLP over gRPC."""
    received = Received()

    class Service(TraceServiceServicer):
        def Export(self, request, _):
            for resource in request.resource_spans:
                service = _attributes(resource.resource)["service.name"]
                for scope in resource.scope_spans:
                    received.extend(_seen(service, span) for span in scope.spans)
            return ExportTraceServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(Service(), server)
    received.url = f"http://127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    server.start()
    try:
        yield received
    finally:
        server.stop(0).wait()


@contextmanager
def http_collector() -> Iterator[Received]:
    """OTLP over HTTP in JSON, which is what Triton sends."""
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # Triton keeps its connection

        def do_POST(self):
            sent = json.loads(self.rfile.read(int(self.headers["content-length"])))
            for resource in sent["resourceSpans"]:
                attributes = resource["resource"]["attributes"]
                names = {a["key"]: a["value"].get("stringValue") for a in attributes}
                for scope in resource["scopeSpans"]:
                    received.extend(
                        Seen(
                            names["service.name"],
                            span["name"],
                            span["traceId"],
                            span["spanId"],
                            span.get("parentSpanId", ""),
                        )
                        for span in scope["spans"]
                    )
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()


def _seen(service: str, span: Span) -> Seen:
    return Seen(
        service=service,
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        attributes=_attributes(span),
        links=tuple(link.span_id.hex() for link in span.links),
        error=span.status.code == Status.STATUS_CODE_ERROR,
        said=span.status.message,
        start=span.start_time_unix_nano / 1e9,
        end=span.end_time_unix_nano / 1e9,
    )


def _attributes(thing: Any) -> dict[str, Any]:
    return {
        one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in thing.attributes
    }
