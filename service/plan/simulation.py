"""One gateway under load, simulated: its event loop, its batcher and its engine.

The batcher is the server's own, on a simulated clock (see `clock`). The event loop works on one
request at a time, first come first served, half of its time when the request comes and half when
the images go.
"""

import asyncio
import math
from bisect import bisect_left
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from random import Random

from service.bench.stats import percentile
from service.plan.clock import SimulatedLoop
from service.plan.engine import SimulatedEngine
from service.plan.times import ServiceTimes
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
        outside_seconds: what each request takes besides, in which nothing waits for anything.
    """

    concurrency: int
    max_batch_size: int
    queue_size: int
    loop_seconds: float = 0.0
    outside_seconds: float = 0.0

    def peak(self, times: ServiceTimes) -> float:
        """Images per second at which all slots compute full batches, or the loop is full."""
        seconds = times.mean(self.max_batch_size, self.concurrency)
        engine = self.concurrency * self.max_batch_size / seconds
        return min(engine, 1 / self.loop_seconds) if self.loop_seconds else engine


@dataclass(frozen=True)
class Outcome:
    """What became of the requests that counted.

    Attributes:
        latencies: ascending seconds of those that were answered.
        refused: how many were refused, as the queue was full.
        utilisation: mean share of the engine's slots that were busy.
        in_system: mean number of requests that an arriving one found not yet answered.
    """

    latencies: Sequence[float]
    refused: int
    utilisation: float
    in_system: float

    def percentile(self, percent: float) -> float:
        """Seconds that so many of all requests took at most; a refused one never ends."""
        return percentile([*self.latencies, *[math.inf] * self.refused], percent)


def simulate(
    gateway: Gateway,
    times: ServiceTimes,
    arrivals: Sequence[float],
    *,
    counted_from: float = 0.0,
    patience: float = math.inf,
    random: Random,
) -> Outcome:
    """Send requests for one image each to a gateway, and wait for the last.

    Args:
        gateway: its settings.
        times: how long batches take.
        arrivals: when the requests come, ascending seconds.
        counted_from: those that come before this time warm it up, and do not count.
        patience: stop, to save time, as soon as more than one in a hundred that count are refused
            or took longer than so many seconds. What has not ended then counts as refused.
        random: which of the measured times each batch takes.
    """
    loop = SimulatedLoop()  # type: ignore[abstract]
    simulation = _Simulation(loop, gateway, times, arrivals, counted_from, patience, random)
    return loop.run(simulation.run())


class _Simulation:
    def __init__(
        self,
        loop: SimulatedLoop,
        gateway: Gateway,
        times: ServiceTimes,
        arrivals: Sequence[float],
        counted_from: float,
        patience: float,
        random: Random,
    ) -> None:
        self._loop = loop
        self._gateway = gateway
        self._arrivals = arrivals
        self._counted_from = counted_from
        self._times = times
        self._random = random
        self._half = gateway.loop_seconds / 2
        self._loop_busy_until = 0.0
        self._next = 0
        self._open = 0
        self._open_seen: list[int] = []
        self._left = len(arrivals)
        self._patience = patience
        self._counted = len(arrivals) - bisect_left(arrivals, counted_from)
        self._may_be_late = self._counted // 100
        self._refused = 0
        self._latencies: list[float] = []
        self._busy_before = 0.0  # seconds of slots before anything counted

    async def run(self) -> Outcome:
        self._engine = SimulatedEngine(self._loop, self._times, self._random)
        self._batcher: Batcher[float, float] = Batcher(
            self._compute,
            max_batch_size=self._gateway.max_batch_size,
            queue_size=self._gateway.queue_size,
            concurrency=self._gateway.concurrency,
        )
        self._over = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop.at(self._counted_from, self._begin_to_count)
        self._loop.at(self._arrivals[0], self._arrive)
        await self._over
        seconds = self._loop.time() - self._counted_from
        busy = self._engine.busy_seconds() - self._busy_before
        await self._batcher.close()
        if self._tasks:
            await asyncio.wait(self._tasks)
        return Outcome(
            sorted(self._latencies),
            self._refused if not self._left else self._counted - len(self._latencies),
            busy / seconds / self._gateway.concurrency if seconds else 0.0,
            sum(self._open_seen) / max(len(self._open_seen), 1),
        )

    def _begin_to_count(self) -> None:
        self._busy_before = self._engine.busy_seconds()

    def _arrive(self) -> None:
        """Have the loop begin with the request that is due now, and be woken for the next."""
        due = self._arrivals[self._next]
        self._next += 1
        if due >= self._counted_from:
            self._open_seen.append(self._open)
        self._open += 1
        self._loop.at(self._loop_is_done(), self._admit, due)
        if self._next < len(self._arrivals):
            self._loop.at(self._arrivals[self._next], self._arrive)

    def _loop_is_done(self) -> float:
        """When the loop will have done half of a request's work, behind all that waits for it."""
        self._loop_busy_until = max(self._loop_busy_until, self._loop.time()) + self._half
        return self._loop_busy_until

    def _admit(self, due: float) -> None:
        # All work is of one kind: where kinds are told apart, here is where each request says its.
        try:
            images = self._batcher.submit([due])
        except QueueFullError:
            self._end(due, math.inf)
            return
        task = self._loop.create_task(self._answer(due, images))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, due: float, images: Awaitable[Sequence[float]]) -> None:
        try:
            await images
        except ClosedError:
            return  # the simulation has stopped
        self._end(due, self._loop_is_done() + self._gateway.outside_seconds - due)

    def _end(self, due: float, seconds: float) -> None:
        """Count a request that was due then and has taken so long; for ever if it was refused."""
        self._open -= 1
        self._left -= 1
        if due >= self._counted_from:
            if seconds < math.inf:
                self._latencies.append(seconds)
            else:
                self._refused += 1
            self._may_be_late -= seconds > self._patience
        stops = self._may_be_late < 0
        if (stops or not self._left) and not self._over.done():
            self._over.set_result(None)

    async def _compute(self, batch: list[float], reason: Reason) -> list[float]:  # noqa: ARG002
        await self._engine.compute(len(batch))
        return batch
