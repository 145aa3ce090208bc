"""An event loop on a simulated clock: what is due in an hour is done as soon as nothing else is.

What runs on it is the code that runs in a server (asyncio's tasks and futures, the batcher), so
that a simulation follows the server's rules because it is the server's code.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")


class SimulatedLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as tasks and futures need, and a clock that begins at 0 seconds.

    It makes no handles, and what it calls sees the context of `run`: a simulation makes hundreds
    of thousands of calls, which then take half the time. There are no files, sockets or threads.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._due: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._count = 0

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run until `main` has returned.

        Raises:
            RuntimeError: it waits for what will never happen.
        """
        ready, due = self._ready, self._due
        asyncio._set_running_loop(self)
        try:
            task, is_stuck = self.create_task(main), False
            while not task.done():
                if ready:
                    callback, arguments = ready.popleft()
                    callback(*arguments)
                elif due:
                    self._now, _, callback, arguments = heapq.heappop(due)
                    callback(*arguments)
                else:
                    is_stuck = task.cancel()
            if is_stuck:
                raise RuntimeError("nothing is left to happen on the simulated clock")
            return task.result()
        finally:
            asyncio._set_running_loop(None)

    def at(self, when: float, callback: Callable[..., object], *arguments: object) -> None:
        """Call at a time of this clock, or now if that is past; it cannot be cancelled."""
        self._count += 1  # what is due at the same time happens in the order of these calls
        heapq.heappush(self._due, (max(when, self._now), self._count, callback, arguments))

    def time(self) -> float:
        """Seconds on the simulated clock."""
        return self._now

    def get_debug(self) -> bool:
        """Never."""
        return False

    def call_soon(  # type: ignore[override]  # no handle
        self,
        callback: Callable[..., object],
        *arguments: Any,
        context: Context | None = None,  # noqa: ARG002
    ) -> None:
        """Call before the clock moves on."""
        self._ready.append((callback, arguments))

    def create_future(self) -> "asyncio.Future[Any]":
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coroutine: Coroutine[Any, Any, T], *, name: str | None = None
    ) -> "asyncio.Task[T]":
        """A task of this loop."""
        return asyncio.Task(coroutine, loop=self, name=name)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """A task or callback has failed, and nobody would hear of it."""
        raise RuntimeError(context.get("message")) from context.get("exception")
