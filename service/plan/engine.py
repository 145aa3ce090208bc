"""A simulated engine: slots that share one machine, and take as long as was measured."""

import asyncio
from random import Random

from service.plan.clock import SimulatedLoop
from service.plan.times import ServiceTimes

_AT_ONCE = 1e-9  # seconds


class _Batch:
    """A batch in computation: what share of it is left, and its seconds by how many slots work."""

    __slots__ = ("done", "left", "seconds")

    def __init__(self, seconds: list[float], done: "asyncio.Future[None]") -> None:
        self.seconds = seconds
        self.left = 1.0
        self.done = done


class SimulatedEngine:
    """Computes batches on a simulated clock.

    Slots that work at the same time slow each other down. So a batch that would take T(k) seconds
    beside k - 1 others advances by dt / T(k) in dt seconds, whatever k becomes meanwhile.

    Args:
        loop: whose clock it goes by.
        times: how long batches take.
        random: which of the measured times the batches take.
    """

    def __init__(self, loop: SimulatedLoop, times: ServiceTimes, random: Random) -> None:
        self._loop = loop
        self._times = times
        self._rank = times.ranks(random)
        self._running: list[_Batch] = []
        self._since = 0.0
        self._forecast = 0  # of which number the latest forecast of the next end is
        self._busy_seconds = 0.0

    async def compute(self, size: int, *, rested: bool = False) -> None:
        """Return when a batch of so many images has been computed; see `ServiceTimes.draw`."""
        seconds = self._times.draw(size, self._rank(self._loop.time()), rested=rested)
        batch = _Batch(seconds, self._loop.create_future())
        self._advance()
        self._running.append(batch)
        self._foresee()
        await batch.done

    @property
    def busy(self) -> int:
        """How many slots work now."""
        return len(self._running)

    def busy_seconds(self) -> float:
        """Seconds that slots have worked up to now, summed over the slots."""
        self._advance()
        return self._busy_seconds

    def _advance(self) -> None:
        """Bring what is left of each batch up to now."""
        now, busy = self._loop.time(), len(self._running)
        elapsed = now - self._since
        self._since = now
        self._busy_seconds += elapsed * busy
        for batch in self._running:
            batch.left -= elapsed / batch.seconds[busy - 1]

    def _foresee(self) -> None:
        """Ring when the next batch ends, if the number of busy slots stays what it is."""
        self._forecast += 1
        if self._running:
            ends = self._since + min(self._seconds_left())
            self._loop.at(ends, self._ring, self._forecast)

    def _ring(self, forecast: int) -> None:
        if forecast != self._forecast:
            return  # another batch has begun since
        self._advance()
        # The next to end has ended, and what ends with it, whatever the rounded clock says.
        seconds = self._seconds_left()
        for batch, left in zip(self._running[:], seconds, strict=True):
            if left <= min(seconds) + _AT_ONCE:
                self._running.remove(batch)
                batch.done.set_result(None)
        self._foresee()

    def _seconds_left(self) -> list[float]:
        """Of each batch, if the number of busy slots stays what it is."""
        busy = len(self._running)
        return [batch.left * batch.seconds[busy - 1] for batch in self._running]
