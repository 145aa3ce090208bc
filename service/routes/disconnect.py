"""Noticing that a client left, so that nothing is computed for nobody."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

T = TypeVar("T")


class ClientDisconnectedError(Exception):
    """The client closed its connection before the answer was ready."""


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it as soon as the client leaves.

    Listens on the request's channel rather than polling `is_disconnected`. The body must have
    been read before: from then on the only message of the channel is the disconnect. A
    BaseHTTPMiddleware in front of the route would swallow that message; there is none.

    Raises:
        ClientDisconnectedError: the client left; nobody will read an answer.
    """
    task = asyncio.ensure_future(work)
    listener = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, listener), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnectedError
    finally:
        task.cancel()
        listener.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
