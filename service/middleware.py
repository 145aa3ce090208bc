"""What happens around every request.

Plain ASGI, because Starlette's BaseHTTPMiddleware hides disconnects from the routes.
"""

from time import perf_counter

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry import Telemetry

log = structlog.get_logger(__name__)

_PROBES = frozenset({"/livez", "/readyz", "/metrics"})


class RequestTelemetry:
    """Count and time each request, and log it unless it is a probe."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # what is sent for an exception that nothing here handled
        started = perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            seconds = perf_counter() - started
            # The route's template, not the path: paths are without number, time series are not.
            route = getattr(scope.get("route"), "path", "other")
            model = scope.get("state", {}).get("model", "")
            self._telemetry.requests.labels(route, model, str(status)).inc()
            self._telemetry.request_seconds.labels(route).observe(seconds)
            if route not in _PROBES:
                log.info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round(seconds * 1000, 2),
                )
