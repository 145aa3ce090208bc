"""What closed and open loops share: their connections, their samples and their end."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable
from time import perf_counter
from typing import Any

from service.bench.connection import Connection
from service.bench.refusal import is_hopeless
from service.bench.samples import Samples
from service.bench.target import Target


class Load(ABC):
    """A load under way. Its kind decides what a connection that is free does next.

    Args:
        target: what is sent.
        address: the IP address and port that it is sent to.
    """

    def __init__(self, target: Target, address: tuple[str, int]) -> None:
        self.target = target
        self.samples = Samples()
        self.peak = 0
        self._address = address
        self._connections: set[Connection] = set()
        self._opening: dict[Connection, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        running = asyncio.get_running_loop()
        running.set_exception_handler(self._broken)
        self._finished: asyncio.Future[None] = running.create_future()

    @abstractmethod
    def free(self, connection: Connection, now: float) -> None:
        """A connection is new, or has its answer: give it something to do."""

    @abstractmethod
    def _gone(self, connection: Connection) -> None:
        """A connection is closed and takes no more requests."""

    @abstractmethod
    def _refused(self, due: float, reason: str) -> None:
        """A connection that was asked for at `due` could not be opened."""

    def opened(self, connection: Connection) -> None:
        """A connection that was asked for is there."""
        del self._opening[connection]
        self._connections.add(connection)
        self.free(connection, perf_counter())

    def lost(self, connection: Connection, failure: str) -> None:
        """A connection is at its end; a request under way on it ends with `failure`."""
        if connection not in self._connections:
            return  # it was closed from here, and its transport now says so
        self._close(connection)
        if connection.due is not None:
            self.samples.failed(connection.due, failure)
        self._gone(connection)

    def refused(self, status: int, body: bytes) -> None:
        """An answer that was just noted is none of 2xx: end the load if no other is to come."""
        if self.samples.refusal is None:
            self.samples.refusal = status, body
        if is_hopeless(self.samples.status):
            self._finish()

    async def finish(self, deadline: float) -> None:
        """Return when all is answered, or give up what is left at `deadline`."""
        await asyncio.wait([self._finished], timeout=deadline - perf_counter())
        if self._finished.done():
            self._finished.result()
        self.samples.late.extend(self._unsent())
        for connection in [*self._connections]:
            if connection.due is not None:
                self.samples.late.append(connection.due)
            self._close(connection)
        for task in self._tasks:
            task.cancel()

    def _unsent(self) -> Iterable[float]:
        """When the requests were due that no connection carries yet."""
        return self._opening.values()

    def _size(self) -> int:
        return len(self._connections) + len(self._opening)

    def _open(self, due: float) -> None:
        """Open one more connection, for the sake of a request that is due at `due`."""
        connection = Connection(self)
        self._opening[connection] = due
        self.peak = max(self.peak, self._size())
        task = asyncio.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: Connection) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, *self._address)
        except OSError as error:
            due = self._opening.pop(connection)
            self._refused(due, f"connect: {error.strerror or error}")

    def _close(self, connection: Connection) -> None:
        self._connections.discard(connection)
        connection.abort()

    def _broken(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A callback raised: that is a defect of ours, which no report may hide."""
        error = context.get("exception")
        # Of a network's errors, connection_lost tells.
        if error is not None and not isinstance(error, OSError) and not self._finished.done():
            self._finished.set_exception(error)

    def _finish(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)
