"""What happens around every request: telemetry, its trace, keys, the size of its body.

Plain ASGI, because Starlette's BaseHTTPMiddleware hides disconnects from the routes.
"""

import re
from random import getrandbits
from time import perf_counter
from typing import Any

import structlog
from prometheus_client import Counter, Histogram
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.exceptions import RefusedError
from service.http.disconnect import ClientLeftError
from service.http.problems import InternalError, internal_error, problem_for
from service.http.security import Keys
from service.observability.metrics import Metrics
from service.observability.tracing import UNTRACED, Tracing

Fields = list[tuple[bytes, bytes]]
"""A request's headers, their names in lower case."""

PROBES = frozenset({"/livez", "/readyz", "/metrics"})
# What needs no key: probes, the playground's own files, which ask their user for one, and the
# client, which pip fetches without one.
_OPEN = PROBES | {"/", "/client"}
_OPEN_PREFIXES = ("/playground/", "/client/")
# What counts against availability (deploy/prometheus/rules/recording.yml); the rest of the failures
# are the client's: its mistake, its rate, its deadline.
_FAILED = frozenset({500, 502, 503})
# What the log says of a request where it is known.
_LOGGED = ("client", "model", "priority", "problem")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def new_request_id() -> str:
    """An id for a request that brought none: random, so that it says nothing about the others."""
    return f"{getrandbits(128):032x}"  # no secret: the system's randomness costs ten times this


class RequestMetrics:
    """Name, count and time each request, and log and trace it unless it is a probe.

    The outermost of our middleware, so that whatever is answered carries an X-Request-ID. For
    that reason it also answers the exceptions that nothing else handled, and logs their traceback
    under the same id.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, tracing: Tracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._log = structlog.get_logger(__name__).bind()
        # The metrics' own look-up costs more than the counting; as many entries as they have.
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._timers: dict[str, Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        request_id = sent_request_id(scope["headers"]) or new_request_id()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        traced = scope["path"] not in PROBES
        trace = state["trace"] = self._tracing.start_request(scope) if traced else UNTRACED
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = [(b"x-request-id", request_id.encode("ascii"))]
                if "priority" in state:
                    added.append((b"x-priority", state["priority"].encode("ascii")))
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            self._log.exception("request failed", **_ids(state))
            state.setdefault("problem", InternalError.kind)
            if not status:  # else the answer is cut off: uvicorn closes the connection
                await internal_error()(scope, receive, watch)
        finally:
            trace.end(scope, status or 500)
            self._record(scope, status or 500, perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        route = _route(scope)
        model = state.get("model", "")
        if (counter := self._counters.get((route, model, status))) is None:
            counter = self._metrics.requests.labels(route, model, str(status))
            self._counters[route, model, status] = counter
        if (timer := self._timers.get(route)) is None:
            timer = self._timers[route] = self._metrics.request_seconds.labels(route)
        counter.inc()
        timer.observe(seconds)
        if route in PROBES:
            return
        known = {name: state[name] for name in _LOGGED if name in state}
        write = self._log.error if status in _FAILED else self._log.info
        write(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round(seconds * 1000, 2),
            **_ids(state),
            **known,
        )


class KeyRequiredError(RefusedError):
    """The request brought no API key, and what it asks for needs one."""

    status, kind = 401, "key-required"


class KeyUnknownError(RefusedError):
    """The request brought an API key that is not let in: a wrong one, or one that was taken out."""

    status, kind = 403, "key-unknown"


class BodyTooLargeError(RefusedError):
    """The request's body has more bytes than a body may have."""

    status, kind = 413, "body-too-large"


class ApiKeys:
    """Let in only requests with a known key; the request's state says whose, and its ceiling.

    Everything needs a key but what is listed as open, so that what is added later is guarded.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and _is_open(scope["path"])):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":  # nothing here speaks anything else
            if (key := sent_key(scope["headers"])) is None:
                detail = (
                    "this server asks for an API key, and the request brought none: send yours, as "
                    "`Authorization: Bearer KEY` or `X-API-Key: KEY`"
                )
                headers = {"WWW-Authenticate": "Bearer"}
                refusal = KeyRequiredError(detail, headers=headers)
                await _refuse(refusal, scope, receive, send)
            elif (known := self._keys.find(key)) is None:
                detail = (
                    "the API key is wrong: this server does not know the API key that was sent; "
                    "was all of it copied, and is it still in use here?"
                )
                await _refuse(KeyUnknownError(detail), scope, receive, send)
            else:
                state = scope.setdefault("state", {})
                state["client"], state["ceiling"] = known
                await self._app(scope, receive, send)


class BodyLimit:
    """Read each request's body before anything else does, and refuse one that is too large.

    In full, because nothing can be done with a part and `max_bytes` is small. How long it may
    take is up to service/http/protocol.py, which needs no timer for each request.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or (length := _body_length(scope)) == 0:
            await self._app(scope, receive, send)
            return
        body, size, more = b"", length, True
        while more and size <= self._max_bytes:
            message = await receive()
            if message["type"] == "http.disconnect":
                # Either way nobody hears this; the status is for metrics and logs.
                status = scope.get("state", {}).get("refused", ClientLeftError.status)
                await Response(status_code=status)(scope, receive, send)
                return
            body += message.get("body", b"")
            size, more = len(body), message.get("more_body", False)
        if size > self._max_bytes:
            detail = f"a request's body may have at most {self._max_bytes} bytes here"
            await _refuse(BodyTooLargeError(detail), scope, receive, send)
            return
        unread = True

        async def replay() -> Message:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self._app(scope, replay, send)


def _route(scope: Scope) -> str:
    """The route's template, not the path: paths are without number, time series are not.

    What was refused on its way to a route (its key, its body) counts as that route's too.
    """
    if (route := scope.get("route")) is None and "app" in scope:
        matching = (
            candidate
            for candidate in scope["app"].routes
            if candidate.matches(scope)[0] is not Match.NONE
        )
        route = next(matching, None)
    return getattr(route, "path", "other")


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_OPEN_PREFIXES)


async def _refuse(error: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    answer = problem_for(Request(scope), error)
    assert answer is not None
    await answer(scope, receive, send)


def _ids(state: dict[str, Any]) -> dict[str, str]:
    """What a request's log lines are found by."""
    ids = {"request_id": state["request_id"]}
    if (trace_id := state["trace"].trace_id) is not None:
        ids["trace_id"] = trace_id
    return ids


def sent_request_id(headers: Fields) -> str | None:
    """The id that a request with these headers brought, if it may be one."""
    for name, value in headers:
        if name == b"x-request-id":
            return value.decode("ascii") if _REQUEST_ID.fullmatch(value) else None
    return None


def sent_key(headers: Fields) -> bytes | None:
    """The API key that a request with these headers brought, if any."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer" and key.strip():
                return bytes(key.strip())
        elif name == b"x-api-key" and value.strip():
            return bytes(value.strip())
    return None


def _body_length(scope: Scope) -> int:
    """Bytes of the body to come; -1 where that is not known."""
    length = 0
    for name, value in scope["headers"]:
        if name == b"transfer-encoding":
            return -1
        if name == b"content-length":
            length = int(value) if value.isdigit() else -1
    return length
