"""Cross-origin requests: pages of other origins may call the API, if the operator lets them.

By the Fetch standard (fetch.spec.whatwg.org, "CORS protocol"). Starlette's middleware leaves
`Vary: Origin` out of answers to requests without an allowed origin, so that a shared cache, which
may keep our images for a year, would hand such an answer to a page that then cannot read it; and
it refuses in plain text.
"""

from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.addresses import EVERY_ORIGIN

_METHODS = "GET, HEAD, POST"
_PREFLIGHT_SECONDS = 7200  # the longest that Chromium heeds
# What a page may read of an answer, besides what it always may (Content-Type, Cache-Control, ...).
_EXPOSED = ", ".join(
    (
        "Allow",
        "ETag",
        "Retry-After",
        "Server-Timing",
        "WWW-Authenticate",
        "X-Class-Label",
        "X-Inputs",
        "X-Mix",
        "X-Model",
        "X-Priority",
        "X-Request-ID",
        "X-Seed",
        "X-Toward",
    )
)


def answer_headers(allowed: frozenset[str], origin: str | None) -> dict[str, str]:
    """The headers of any answer to a page of `origin`; none where no origin at all is allowed.

    Args:
        allowed: origins, as `service.addresses.origins` reads them.
        origin: the request's Origin header, if it has one.
    """
    headers = {}
    if allowed and EVERY_ORIGIN not in allowed:
        headers["Vary"] = "Origin"
    if EVERY_ORIGIN in allowed or origin in allowed:
        granted = EVERY_ORIGIN if EVERY_ORIGIN in allowed else str(origin)
        headers["Access-Control-Allow-Origin"] = granted
        headers["Access-Control-Expose-Headers"] = _EXPOSED
    return headers


class CrossOrigin:
    """ASGI: answers preflights, and lets pages of some origins read all other answers.

    No cookies are let along, and none are needed: a key is a header that the page sets. It stands
    outside of what asks for keys, for browsers send none with a preflight.

    Args:
        app: the rest of the application.
        allowed: origins, as `service.addresses.origins` reads them.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self._app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_headers = Headers(scope=scope)
        granted = answer_headers(self._allowed, request_headers.get("origin"))
        vary = granted.pop("Vary", None)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(granted)
                if vary is not None:
                    headers.add_vary_header(vary)
            await send(message)

        if granted and _is_preflight(scope, request_headers):
            await _answer_preflight(request_headers, with_headers)
        else:  # a preflight of another origin gets the answer to any OPTIONS: no leave
            await self._app(scope, receive, with_headers)


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return (
        scope["method"] == "OPTIONS"
        and "origin" in headers
        and "access-control-request-method" in headers
    )


async def _answer_preflight(request_headers: Headers, send: Send) -> None:
    """Say what a page may send: any header, for clients' libraries add some of their own."""
    headers = {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
        "Vary": "Access-Control-Request-Headers",
    }
    if requested := request_headers.get("access-control-request-headers"):
        headers["Access-Control-Allow-Headers"] = requested
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
