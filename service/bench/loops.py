"""The two kinds of load, each driven by its connections: when one is free, what does it send?"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from time import perf_counter

from service.bench.alarm import Alarm
from service.bench.base import Load
from service.bench.connection import Connection
from service.bench.target import Target

_RETRY_SECONDS = 0.1  # a server that cannot be reached is not asked again at once


class ClosedLoop(Load):
    """As many requests under way as there are connections: each answer sends the next."""

    def __init__(self, target: Target, address: tuple[str, int], connections: int) -> None:
        super().__init__(target, address)
        self._active = connections
        self._end = 0.0

    def start(self, start: float, end: float) -> None:
        """Open the connections, which send from now, `start`, until `end`."""
        self._end = end
        for _ in range(self._active):
            self._open(start)

    def free(self, connection: Connection, now: float) -> None:
        """Send the next request at once, until the end."""
        if now < self._end:
            connection.send(now, now)
        else:
            self._close(connection)
            self._leave()

    def _gone(self, connection: Connection) -> None:  # noqa: ARG002
        """Open another in its place."""
        self._reopen()

    def _refused(self, due: float, reason: str) -> None:
        """Count that as a request without an answer, and try again."""
        self.samples.failed(due, reason)
        asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._reopen)

    def _reopen(self) -> None:
        now = perf_counter()
        if now < self._end:
            self._open(now)
        else:
            self._leave()

    def _leave(self) -> None:
        self._active -= 1
        if not self._active:
            self._finish()


class OpenLoop(Load):
    """Requests go out on a schedule, whatever comes back.

    An arrival takes an idle connection, or has one opened, or is not sent when there are
    `max_connections` and all are busy. While connections open, whichever is free first serves the
    oldest arrival, so no more arrivals wait than connections are being opened.
    """

    def __init__(self, target: Target, address: tuple[str, int], max_connections: int) -> None:
        super().__init__(target, address)
        self._max_connections = max_connections
        self._idle: list[Connection] = []
        self._waiting: deque[float] = deque()
        self._start = 0.0
        self._schedule: Sequence[float] = ()
        self._next = 0
        self._alarm = Alarm(asyncio.get_running_loop(), self._tick)

    def start(self, start: float, schedule: Sequence[float]) -> None:
        """Send one request at each time of `schedule`, ascending seconds after `start`."""
        self._start = start
        self._schedule = schedule
        self._tick()

    def free(self, connection: Connection, now: float) -> None:
        """Send what has waited longest, or wait for the next arrival."""
        if self._waiting:
            connection.send(self._waiting.popleft(), now)
        else:
            self._idle.append(connection)
            self._check_end()

    def _gone(self, connection: Connection) -> None:
        """Forget it; the next arrival that needs one opens another."""
        if connection in self._idle:
            self._idle.remove(connection)
        self._check_end()

    def _refused(self, due: float, reason: str) -> None:  # noqa: ARG002
        """Count the request that was to use it, unless another connection took that."""
        if self._waiting:
            self.samples.failed(self._waiting.popleft(), reason)
        self._check_end()

    async def finish(self, deadline: float) -> None:
        """Return when all is answered, or give up what is left at `deadline`."""
        try:
            await super().finish(deadline)
        finally:
            self._alarm.close()

    def _unsent(self) -> Iterable[float]:
        return self._waiting

    def _tick(self) -> None:
        """Send all that is due, and be woken for what is due next."""
        now = perf_counter()
        schedule, start, position = self._schedule, self._start, self._next
        while position < len(schedule) and start + schedule[position] <= now:
            self._arrive(start + schedule[position], now)
            position += 1
        self._next = position
        if position < len(schedule):
            self._alarm.set(start + schedule[position])
        else:
            self._check_end()

    def _arrive(self, due: float, now: float) -> None:
        if self._idle:
            # The last used: the others fall idle, and the server may close them in peace.
            self._idle.pop().send(due, now)
        elif self._size() < self._max_connections:
            self._waiting.append(due)
            self._open(due)
        else:
            self.samples.not_sent.append(due)

    def _check_end(self) -> None:
        busy = len(self._connections) - len(self._idle)
        if self._next == len(self._schedule) and not busy and not self._waiting:
            self._finish()
