"""Noticing that a client left, so that nothing is computed for nobody."""

import asyncio
from types import TracebackType

from starlette.types import Receive

from service.exceptions import RefusedError


class ClientLeftError(RefusedError):
    """The client closed its connection before the answer was ready; nobody will read one.

    The status tells such requests apart in metrics and logs.
    """

    status, kind = 499, "client-left"


class CancelOnDisconnect:
    """`async with`: cancels its body and raises ClientLeftError if the client leaves.

    Listens on the request's channel rather than polling `is_disconnected`. The request's body
    must have been read before: from then on the only message of the channel is the disconnect. A
    BaseHTTPMiddleware in front of the route would swallow that message; there is none.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = False

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        assert self._task is not None
        self._cancelling = self._task.cancelling()
        self._listener = asyncio.create_task(self._listen(self._task))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.cancel()
        task = self._task
        # A cancelled task holds the traceback of its end, and that this object: without these
        # two lines every request would leave a cycle for the garbage collector to find.
        del self._listener, self._task
        # As asyncio.timeout does: ours, unless somebody else cancelled the task as well.
        if (
            self._left
            and task is not None
            and task.uncancel() <= self._cancelling
            and isinstance(error, asyncio.CancelledError)
        ):
            raise ClientLeftError("the client left") from error

    async def _listen(self, task: asyncio.Task[object]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        task.cancel()
