"""The fewest gateways that meet a wish, with their settings, found by simulation.

All gateways are alike and get their requests at random, so that one of them is simulated, with its
share of the load. The same chances are used for every trial, so that trials differ by their
settings and not by luck.
"""

import math
from dataclasses import dataclass
from random import Random

from service.plan import PlanError
from service.plan.arrivals import arrivals
from service.plan.curve import LEVELS, Curve
from service.plan.simulation import Gateway, Outcome, simulate
from service.plan.times import ServiceTimes

_TRIAL = 6_000  # requests; sixty of them are the slowest hundredth
_FINAL = 30_000
_WARMUP = 0.05  # share of the time in which the queue finds its length
_ALMOST_IDLE = 0.01  # of its peak: what a gateway does not meet then, it never meets
_ALIKE = 1.05  # times of trials that differ by less differ by chance
_LARGEST_QUEUE = 1_000_000  # as SID_QUEUE_SIZE allows


@dataclass(frozen=True)
class Wish:
    """What is wanted of all gateways together.

    Attributes:
        rate: requests per second, for one image each.
        p99: seconds in which 99 of 100 requests are answered; a refused one never is.
        shape: of the arrivals (see `arrivals.SHAPES`).
        price: of a machine for an hour, in any currency; None: not known.
    """

    rate: float
    p99: float
    shape: str = "poisson"
    price: float | None = None


@dataclass(frozen=True)
class Plan:
    """What meets a wish, and what is expected of it.

    Attributes:
        replicas: machines, each with one gateway.
        concurrency: batches that each computes at a time.
        max_batch_size: the largest batch.
        queue_size: images that may wait in each.
        p50, p99: seconds, of all requests.
        refused: the share of requests that finds the queue full.
        utilisation: mean share of the engine's slots that are busy.
        load: the share of the peak that is asked for.
        peak: images per second that each can draw at most.
        in_system: requests that each has under way, on average.
        per_million: what a million images cost, in the currency of the price.
    """

    replicas: int
    concurrency: int
    max_batch_size: int
    queue_size: int
    p50: float
    p99: float
    refused: float
    utilisation: float
    load: float
    peak: float
    in_system: float
    per_million: float | None


def make_plan(curve: Curve, wish: Wish) -> Plan:
    """Find the fewest gateways that meet a wish, and those of their settings that answer soonest.

    Raises:
        PlanError: no number of machines meets it; the message says why.
    """
    _check(wish)
    trials = _Trials(curve, wish)
    best: int | None = None
    # The settings that can do most come first; those behind have to do with fewer, or are out.
    for gateway in trials.settings:
        least = max(1, math.ceil(0.99 * wish.rate / gateway.peak(trials.times)))
        if best is None:
            best = trials.fewest(gateway, least)
        elif least < best and trials.meets(gateway, best - 1):
            best = trials.fewest(gateway, least, best - 1)
    if best is None:
        raise PlanError(_why_not(trials, wish))
    p99 = {one: trials.p99(one, best) for one in trials.settings}
    # Of those that hardly differ the one that can do most: it has more room for more requests.
    chosen = next(one for one in trials.settings if p99[one] <= _ALIKE * min(p99.values()))
    # More requests decide, should the trials have been lucky.
    while (final := trials.outcome(chosen, best, _FINAL)).percentile(99) > wish.p99:
        if best >= trials.almost_idle(chosen):
            raise PlanError(_why_not(trials, wish))
        best += 1
    peak = chosen.peak(trials.times)
    answered = len(final.latencies)
    return Plan(
        replicas=best,
        concurrency=chosen.concurrency,
        max_batch_size=chosen.max_batch_size,
        queue_size=chosen.queue_size,
        p50=final.percentile(50),
        p99=final.percentile(99),
        refused=final.refused / (final.refused + answered),
        utilisation=final.utilisation,
        load=wish.rate / best / peak,
        peak=peak,
        in_system=final.in_system,
        per_million=None if wish.price is None else wish.price * best / (3600 * wish.rate) * 1e6,
    )


def _check(wish: Wish) -> None:
    for name, value in (("rate", wish.rate), ("p99", wish.p99), ("price", wish.price)):
        if value is not None and not 0 < value < math.inf:
            raise PlanError(f"{name}: {value} is not a finite number above 0")


class _Trials:
    """Simulations of one wish on one curve, each done once."""

    def __init__(self, curve: Curve, wish: Wish) -> None:
        self.curve = curve
        self.wish = wish
        self.times = ServiceTimes(curve, curve.gateway.loop_ms)
        self._outcomes: dict[tuple[Gateway, int, int], Outcome] = {}
        settings = (self._gateway(k, b) for k in range(1, curve.slots + 1) for b in curve.batches)
        self.settings = sorted(settings, key=lambda one: -one.peak(self.times))

    def _gateway(self, concurrency: int, max_batch_size: int) -> Gateway:
        """Settings whose queue holds no more than is drawn in the time that is allowed."""
        measured = self.curve.gateway
        loop = measured.loop_ms / 1000
        outside = max(measured.lone_ms - measured.loop_ms, 0) / 1000
        endless = Gateway(concurrency, max_batch_size, _LARGEST_QUEUE, loop, outside)
        room = math.floor(endless.peak(self.times) * self.wish.p99)
        queue = min(max(room, 1), _LARGEST_QUEUE)
        return Gateway(concurrency, max_batch_size, queue, loop, outside)

    def outcome(self, gateway: Gateway, replicas: int, count: int = _TRIAL) -> Outcome:
        """What one of so many gateways does."""
        key = gateway, replicas, count
        if key not in self._outcomes:
            due = arrivals(self.wish.shape, self.wish.rate, replicas, count, Random(0))
            self._outcomes[key] = simulate(
                gateway,
                self.times,
                due,
                counted_from=due[-1] * _WARMUP,
                patience=self.wish.p99,
                random=Random(1),
            )
        return self._outcomes[key]

    def p99(self, gateway: Gateway, replicas: int) -> float:
        """Seconds; above the wish only roughly."""
        return self.outcome(gateway, replicas).percentile(99)

    def meets(self, gateway: Gateway, replicas: int) -> bool:
        """Whether so many gateways answer as fast as is wished."""
        return self.p99(gateway, replicas) <= self.wish.p99

    def fewest(self, gateway: Gateway, least: int, most: int | None = None) -> int | None:
        """The fewest gateways that meet the wish, at least `least`; None: no number does.

        Args:
            gateway: their settings.
            least: fewer are out of the question.
            most: a number that is known to meet it.
        """
        if most is None:
            most = self.almost_idle(gateway)
            if not self.meets(gateway, most):
                return None
        while least < most:
            # Few more than the least are the likely ones: they are looked at first.
            middle = min((least + most) // 2, least + max(1, least // 8))
            if self.meets(gateway, middle):
                most = middle
            else:
                least = middle + 1
        return most

    def almost_idle(self, gateway: Gateway) -> int:
        """So many gateways that each has next to nothing to do."""
        return math.ceil(self.wish.rate / (_ALMOST_IDLE * gateway.peak(self.times)))


def _why_not(trials: _Trials, wish: Wish) -> str:
    """What stands in the way of a wish that no number of gateways meets."""
    curve = trials.curve
    alone = curve.cell(1, 1).milliseconds[LEVELS.index(99)] + curve.gateway.lone_ms
    return (
        f"no number of machines answers 99 of 100 requests in {wish.p99 * 1000:g} ms: one image "
        f"alone takes up to {alone:.3g} ms on this machine ({curve.bundle} by "
        f"{curve.engine.name}); allow more time, or measure a faster machine or engine"
    )
