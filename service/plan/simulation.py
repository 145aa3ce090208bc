"""One gateway under load, simulated: its event loop, its batcher and its engine.

The batcher is the server's own, with its priorities, on a simulated clock (see `clock`). The event
loop works on one request at a time, first come first served, half of its time when the request
comes and half when the images go. What it has to be woken for costs more.
"""

import asyncio
import math
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from random import Random

from service.plan.clock import SimulatedLoop
from service.plan.curve import Curve
from service.plan.engine import SimulatedEngine
from service.plan.outcome import Outcome, outcome_of, tallies
from service.plan.times import ServiceTimes, loop_costs
from service.priority import Priority
from service.serving.batching import Batcher, Reason
from service.serving.exceptions import ClosedError, QueueFullError


@dataclass(frozen=True)
class Gateway:
    """What one gateway is, beside its engine's times.

    Attributes:
        concurrency: batches at a time.
        max_batch_size: the largest batch.
        queue_size: images that may wait.
        loop_seconds: the event loop's time for each request.
        wake_seconds: the event loop's time for being woken, when it had nothing to do.
        outside_seconds: what each request takes besides, in which nothing waits for anything.
        beside_client: whether its clients run on the same machine, where they are woken late too.
    """

    concurrency: int
    max_batch_size: int
    queue_size: int
    loop_seconds: float = 0.0
    outside_seconds: float = 0.0
    wake_seconds: float = 0.0
    beside_client: bool = False

    @classmethod
    def measured(
        cls, curve: Curve, concurrency: int, max_batch_size: int, queue_size: int
    ) -> "Gateway":
        """One of a curve's machines, with these settings."""
        request, wake = loop_costs(curve)
        lone = request + 2 * wake
        return cls(
            concurrency,
            max_batch_size,
            queue_size,
            request / 1000,
            max(curve.gateway.lone_ms - lone, 0) / 1000,
            wake / 1000,
        )

    def peak(self, times: ServiceTimes) -> float:
        """Images per second at which all slots compute full batches, or the loop is full."""
        seconds = times.mean(self.max_batch_size, self.concurrency)
        engine = self.concurrency * self.max_batch_size / seconds
        return min(engine, 1 / self.loop_seconds) if self.loop_seconds else engine


def simulate(
    gateway: Gateway,
    times: ServiceTimes,
    arrivals: Sequence[float],
    *,
    priorities: Sequence[Priority] | None = None,
    counted_from: float = 0.0,
    patience: float = math.inf,
    random: Random,
) -> Outcome:
    """Send requests for one image each to a gateway, and wait for the last.

    Args:
        gateway: its settings.
        times: how long batches take.
        arrivals: when the requests come, ascending seconds.
        priorities: what each of them has; None: all have the highest.
        counted_from: those that come before this time warm it up, and do not count.
        patience: stop, to save time, as soon as of one priority more than one in a hundred that
            count are refused or, of the highest, took longer than so many seconds. What has not
            ended then counts as refused.
        random: which of the measured times each batch takes.
    """
    loop = SimulatedLoop()  # type: ignore[abstract]
    given = priorities or [Priority.INTERACTIVE] * len(arrivals)
    requests = [_Request(due, priority) for due, priority in zip(arrivals, given, strict=True)]
    simulation = _Simulation(loop, gateway, times, requests, counted_from, patience, random)
    return loop.run(simulation.run())


class _Request:
    """A request under way: since when, of which priority, and how long it was in the queue."""

    __slots__ = ("due", "priority", "submitted", "waited")

    def __init__(self, due: float, priority: Priority) -> None:
        self.due = due
        self.priority = priority
        self.submitted = self.waited = 0.0


class _Simulation:
    def __init__(
        self,
        loop: SimulatedLoop,
        gateway: Gateway,
        times: ServiceTimes,
        requests: Sequence[_Request],
        counted_from: float,
        patience: float,
        random: Random,
    ) -> None:
        self._loop = loop
        self._gateway = gateway
        self._requests = requests
        self._counted_from = counted_from
        self._times = times
        self._random = random
        self._half = gateway.loop_seconds / 2
        self._loop_busy_until = -math.inf
        self._next = 0
        self._open = 0
        self._open_seen: list[int] = []
        self._left = len(requests)
        counted = (one.priority for one in requests if one.due >= counted_from)
        self._tallies = tallies(counted, patience)
        self._busy_before = 0.0  # seconds of slots before anything counted

    async def run(self) -> Outcome:
        self._engine = SimulatedEngine(self._loop, self._times, self._random)
        self._batcher: Batcher[_Request, _Request] = Batcher(
            self._compute,
            max_batch_size=self._gateway.max_batch_size,
            queue_size=self._gateway.queue_size,
            concurrency=self._gateway.concurrency,
        )
        self._over = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop.at(self._counted_from, self._begin_to_count)
        self._loop.at(self._requests[0].due, self._arrive)
        await self._over
        seconds = self._loop.time() - self._counted_from
        busy = self._engine.busy_seconds() - self._busy_before
        await self._batcher.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        return outcome_of(
            self._tallies,
            busy / seconds / self._gateway.concurrency if seconds else 0.0,
            sum(self._open_seen) / max(len(self._open_seen), 1),
        )

    def _begin_to_count(self) -> None:
        self._busy_before = self._engine.busy_seconds()

    def _arrive(self) -> None:
        """Have the request sent that is due now, and be woken for the next."""
        request = self._requests[self._next]
        self._next += 1
        if request.due >= self._counted_from:
            self._open_seen.append(self._open)
        self._open += 1
        if self._gateway.beside_client:
            self._loop.at(self._loop.time() + self._late(), self._come, request)
        else:
            self._come(request)
        if self._next < len(self._requests):
            self._loop.at(self._requests[self._next].due, self._arrive)

    def _come(self, request: _Request) -> None:
        """Have the loop begin with a request that was sent, as soon as it is woken."""
        now = self._loop.time()
        if self._loop_busy_until < now:
            self._loop_busy_until = now + self._late()
            self._loop_busy_until += self._gateway.wake_seconds
        self._loop.at(self._loop_is_done(), self._admit, request)

    def _late(self) -> float:
        return self._times.late(self._engine.busy, self._random)

    def _loop_is_done(self) -> float:
        """When the loop will have done half of a request's work, behind all that waits for it."""
        now = self._loop.time()
        if self._loop_busy_until < now:  # that it is woken late is part of the engine's time
            self._loop_busy_until = now + self._gateway.wake_seconds
        self._loop_busy_until += self._half
        return self._loop_busy_until

    def _admit(self, request: _Request) -> None:
        request.submitted = self._loop.time()
        try:
            images = self._batcher.submit([request], priority=request.priority)
        except QueueFullError:
            self._end(request, math.inf)
            return
        task = self._loop.create_task(self._answer(request, images))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, request: _Request, images: Awaitable[Sequence[_Request]]) -> None:
        try:
            await images
        except ClosedError:
            return  # the simulation has stopped
        except QueueFullError:  # it made room for a higher priority
            self._end(request, math.inf)
            return
        seconds = self._loop_is_done() + self._gateway.outside_seconds - request.due
        if self._gateway.beside_client:
            seconds += self._late()
        self._end(request, seconds)

    def _end(self, request: _Request, seconds: float) -> None:
        """Count a request that has taken so long; for ever if it was refused."""
        self._open -= 1
        self._left -= 1
        stops = not self._left
        if request.due >= self._counted_from:
            stops |= self._tallies[request.priority].end(seconds, request.waited)
        if stops and not self._over.done():
            self._over.set_result(None)

    async def _compute(self, batch: list[_Request], reason: Reason) -> list[_Request]:
        for request in batch:
            request.waited = self._loop.time() - request.submitted
        await self._engine.compute(len(batch), rested=reason == "idle")
        return batch
