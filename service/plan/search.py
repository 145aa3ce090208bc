"""The fewest gateways that meet a wish, with their settings, found by simulation.

The p99 that is wished for is that of the most urgent requests. Those of lower priorities may take
as long as they like, but of each 99 in 100 are answered: else the fewest gateways would be those
that refuse them.

All gateways are alike and get their requests at random, so that one of them is simulated, with its
share of the load. The same chances are used for every trial, so that trials differ by their
settings and not by luck.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random

from service.bench.stats import percentile
from service.plan import PlanError
from service.plan.arrivals import arrivals
from service.plan.curve import LEVELS, Curve
from service.plan.outcome import Outcome
from service.plan.simulation import Gateway, simulate
from service.plan.times import gateway_times
from service.priority import Priority

_TRIAL = 6_000  # requests; sixty of them are the slowest hundredth
_FINAL = 30_000
_WARMUP = 0.05  # share of the time in which the queue finds its length
_ALMOST_IDLE = 0.01  # of its peak: what a gateway does not meet then, it never meets
_ALIKE = 1.05  # times of trials that differ by less differ by chance
_LARGEST_QUEUE = 1_000_000  # as SID_QUEUE_SIZE allows
_MAY_BE_REFUSED = 0.01  # of each priority
_LEAST_SHARE = 0.01  # of a priority: of a smaller one too few requests are simulated
_AT_MOST_LONGER = 5  # times: a trial of a mix of which little is urgent


@dataclass(frozen=True)
class Wish:
    """What is wanted of all gateways together.

    Attributes:
        rate: requests per second, for one image each, of all priorities together.
        p99: seconds in which 99 of 100 requests of the highest priority are answered; a refused
            one never is.
        shape: of the arrivals (see `arrivals.SHAPES`).
        price: of a machine for an hour, in any currency; None: not known.
        mix: which share of the requests has each priority; together 1.
    """

    rate: float
    p99: float
    shape: str = "poisson"
    price: float | None = None
    mix: Mapping[Priority, float] = field(default_factory=lambda: {Priority.INTERACTIVE: 1.0})

    @property
    def most_urgent(self) -> Priority:
        """The highest priority of the mix, of which the p99 is meant."""
        return min(self.mix)


@dataclass(frozen=True)
class Part:
    """What is expected of the requests of one priority.

    Attributes:
        share: of all requests.
        p50, p99: seconds; infinite where so many are refused.
        refused: which share of them is refused, or gives its place in the queue to others.
        waited: mean seconds in the queue.
    """

    share: float
    p50: float
    p99: float
    refused: float
    waited: float


@dataclass(frozen=True)
class Plan:
    """What meets a wish, and what is expected of it.

    Attributes:
        replicas: machines, each with one gateway.
        concurrency: batches that each computes at a time.
        max_batch_size: the largest batch.
        queue_size: images that may wait in each.
        p50, p99: seconds, of the requests of the highest priority.
        refused: the share of all requests that is refused for want of room in the queue.
        utilisation: mean share of the engine's slots that are busy.
        load: the share of the peak that is asked for.
        peak: images per second that each can draw at most.
        in_system: requests that each has under way, on average.
        per_million: what a million images cost, in the currency of the price.
        parts: what is expected of each priority of the mix.
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
    parts: Mapping[Priority, Part]


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
    while not trials.is_met(final := trials.outcome(chosen, best, _FINAL)):
        if best >= trials.almost_idle(chosen):
            raise PlanError(_why_not(trials, wish))
        best += 1
    peak = chosen.peak(trials.times)
    return Plan(
        replicas=best,
        concurrency=chosen.concurrency,
        max_batch_size=chosen.max_batch_size,
        queue_size=chosen.queue_size,
        p50=final.most_urgent.percentile(50),
        p99=final.most_urgent.percentile(99),
        refused=final.refused_share,
        utilisation=final.utilisation,
        load=wish.rate / best / peak,
        peak=peak,
        in_system=final.in_system,
        per_million=None if wish.price is None else wish.price * best / (3600 * wish.rate) * 1e6,
        parts={
            priority: Part(
                wish.mix[priority],
                part.percentile(50),
                part.percentile(99),
                part.refused_share,
                part.waited,
            )
            for priority, part in final.by_priority.items()
        },
    )


def _check(wish: Wish) -> None:
    for name, value in (("rate", wish.rate), ("p99", wish.p99), ("price", wish.price)):
        if value is not None and not 0 < value < math.inf:
            raise PlanError(f"{name}: {value} is not a finite number above 0")
    for priority, share in wish.mix.items():
        if not _LEAST_SHARE <= share <= 1:
            raise PlanError(
                f"mix: {priority} has a share of {share:g}; {_LEAST_SHARE:g} to 1 is expected"
            )
    if not math.isclose(total := math.fsum(wish.mix.values()), 1, abs_tol=1e-6):
        raise PlanError(f"mix: the shares add up to {total:g}; 1 is expected")


class _Trials:
    """Simulations of one wish on one curve, each done once."""

    def __init__(self, curve: Curve, wish: Wish) -> None:
        self.curve = curve
        self.wish = wish
        self.times = gateway_times(curve)
        self._outcomes: dict[tuple[Gateway, int, int], Outcome] = {}
        settings = (self._gateway(k, b) for k in range(1, curve.slots + 1) for b in curve.batches)
        self.settings = sorted(settings, key=lambda one: -one.peak(self.times))

    def _gateway(self, concurrency: int, max_batch_size: int) -> Gateway:
        """Settings whose queue holds no more than is drawn in the time that is allowed."""
        endless = Gateway.measured(self.curve, concurrency, max_batch_size, _LARGEST_QUEUE)
        room = math.floor(endless.peak(self.times) * self.wish.p99)
        return replace(endless, queue_size=min(max(room, 1), _LARGEST_QUEUE))

    def outcome(self, gateway: Gateway, replicas: int, count: int = _TRIAL) -> Outcome:
        """What one of so many gateways does, up to where it is plain that it is not enough."""
        key = gateway, replicas, count
        if key not in self._outcomes:
            self._outcomes[key] = self._simulate(gateway, replicas, count, self.wish.p99)
        return self._outcomes[key]

    def to_the_end(self, gateway: Gateway, replicas: int) -> Outcome:
        """What one of so many gateways does, enough or not."""
        return self._simulate(gateway, replicas, _TRIAL, math.inf)

    def _simulate(self, gateway: Gateway, replicas: int, count: int, patience: float) -> Outcome:
        mix = self.wish.mix
        count = math.ceil(count * min(1 / mix[self.wish.most_urgent], _AT_MOST_LONGER))
        due = arrivals(self.wish.shape, self.wish.rate, replicas, count, Random(0))
        return simulate(
            gateway,
            self.times,
            due,
            priorities=Random(2).choices([*mix], [*mix.values()], k=count),
            counted_from=due[-1] * _WARMUP,
            patience=patience,
            random=Random(1),
        )

    def p99(self, gateway: Gateway, replicas: int) -> float:
        """Seconds, of the most urgent; above the wish only roughly. Endless if others suffer."""
        return _p99(self.outcome(gateway, replicas))

    def meets(self, gateway: Gateway, replicas: int) -> bool:
        """Whether so many gateways do what is wished."""
        return self.is_met(self.outcome(gateway, replicas))

    def is_met(self, outcome: Outcome) -> bool:
        """Whether the most urgent are answered as fast as is wished, and the others at all."""
        return _p99(outcome) <= self.wish.p99

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


def _p99(outcome: Outcome) -> float:
    """Seconds, of the most urgent; endless where too many of another priority are refused."""
    refused = max(part.refused_share for part in outcome.by_priority.values())
    return outcome.most_urgent.percentile(99) if refused <= _MAY_BE_REFUSED else math.inf


def _why_not(trials: _Trials, wish: Wish) -> str:
    """What stands in the way of a wish that no number of gateways meets."""
    is_mix = len(wish.mix) > 1
    soonest = math.inf
    for gateway in trials.settings:
        parts = trials.to_the_end(gateway, trials.almost_idle(gateway)).by_priority
        p99 = percentile(parts[wish.most_urgent].latencies, 99)
        soonest = min(soonest, p99)
        worst = max(parts, key=lambda priority: parts[priority].refused_share)
        refused = parts[worst].refused_share
        if p99 <= wish.p99 and refused > _MAY_BE_REFUSED:
            return (
                f"no number of machines answers 99 of 100 {f'{worst} ' if is_mix else ''}requests "
                f"with a p99 of {wish.p99 * 1000:g} ms: {refused:.1%} of them find no room in a "
                f"queue for {gateway.queue_size} images, as many as a machine draws in that time; "
                "allow more time, or fewer requests at once"
            )
    curve = trials.curve
    alone = curve.lone[LEVELS.index(99)] + curve.gateway.lone_ms
    who = f"{wish.most_urgent} " if is_mix else ""
    return (
        f"no number of machines answers 99 of 100 {who}requests in {wish.p99 * 1000:g} ms: "
        f"machines that are almost idle need about {soonest * 1000:.3g} ms, and one image alone "
        f"takes up to {alone:.3g} ms on this machine ({curve.bundle} by {curve.engine.name}); "
        "allow more time, or measure a faster machine or engine"
    )
