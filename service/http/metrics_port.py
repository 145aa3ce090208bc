"""/metrics on a port of its own, so that who reaches the images does not reach the figures."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.connections import Room
from service.http.problems import MethodNotAllowedError, NotFoundError, problem
from service.http.protocol import bounded
from service.observability.metrics import Metrics
from service.settings import Settings

_CONNECTIONS = 16  # those who scrape; beyond them each may ask once


@asynccontextmanager
async def serving_metrics(
    listener: socket.socket, metrics: Metrics, settings: Settings
) -> AsyncIterator[None]:
    """Answer /metrics, and nothing else, on that socket until the end of the context."""
    config = uvicorn.Config(
        _metrics_app(metrics),
        http=bounded(
            settings.body_seconds,
            settings.max_head_bytes,
            Room(_CONNECTIONS, metrics.connections_refused.inc),
        ),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await server.up.wait()
        yield
    finally:
        server.should_exit = True
        await task


def _metrics_app(metrics: Metrics) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer: Response
        if scope["path"] != "/metrics":
            answer = problem(NotFoundError("this port has /metrics and nothing else"))
        elif scope["method"] not in ("GET", "HEAD"):
            detail = f"/metrics does not answer {scope['method']}"
            answer = problem(MethodNotAllowedError(detail, headers={"Allow": "GET, HEAD"}))
        else:
            answer = Response(await metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
        await answer(scope, receive, send)

    return app


class _Server(uvicorn.Server):
    """A second server of the process, which leaves the signals to the first."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle none."""
        yield
