"""What became of the requests of a simulation, all together and by priority."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from service.bench.stats import percentile
from service.priority import Priority


@dataclass(frozen=True)
class Answers:
    """What became of some of the requests that counted.

    Attributes:
        latencies: ascending seconds of those that were answered.
        refused: how many were refused: the queue was full, or gave their place to others.
        waited: mean seconds in the queue of those that were answered.
    """

    latencies: Sequence[float]
    refused: int
    waited: float

    def percentile(self, percent: float) -> float:
        """Seconds that so many of these requests took at most; a refused one never ends."""
        return percentile([*self.latencies, *[math.inf] * self.refused], percent)

    @property
    def refused_share(self) -> float:
        """Which share of these requests was refused."""
        return self.refused / (self.refused + len(self.latencies))


@dataclass(frozen=True)
class Outcome(Answers):
    """What became of all requests that counted.

    Attributes:
        by_priority: the same of each priority that had any.
        utilisation: mean share of the engine's slots that were busy.
        in_system: mean number of requests that an arriving one found not yet answered.
    """

    by_priority: Mapping[Priority, Answers]
    utilisation: float
    in_system: float

    @property
    def most_urgent(self) -> Answers:
        """Those of the highest priority that there was."""
        return self.by_priority[min(self.by_priority)]


class Tally:
    """What has become so far of those requests of one priority that count.

    Args:
        count: how many count.
        in_time: seconds after which an answer is late.
        may_be_late: how many may be late or refused.
    """

    def __init__(self, count: int, in_time: float, may_be_late: int) -> None:
        self._in_time = in_time
        self._may_be_late = may_be_late
        self._left = count
        self._latencies: list[float] = []
        self._refused = 0
        self._waited = 0.0

    def end(self, seconds: float, waited: float) -> bool:
        """Count one that took so long, for ever if it was refused; whether too many were late."""
        self._left -= 1
        if seconds < math.inf:
            self._latencies.append(seconds)
            self._waited += waited
        else:
            self._refused += 1
        self._may_be_late -= seconds > self._in_time or seconds == math.inf
        return self._may_be_late < 0

    def answers(self) -> Answers:
        """The account, with what has not ended counted as refused."""
        mean = self._waited / len(self._latencies) if self._latencies else 0.0
        return Answers(sorted(self._latencies), self._refused + self._left, mean)


def tallies(counted: Iterable[Priority], patience: float) -> dict[Priority, Tally]:
    """An account for each priority, of the priority of each request that will count.

    Who is not of the highest of them may be answered late, but not refused. With endless patience
    there are never too many.
    """
    counts = Counter(counted)
    return {
        priority: Tally(
            count,
            patience if priority == min(counts) else math.inf,
            count // 100 if patience < math.inf else count,
        )
        for priority, count in sorted(counts.items())
    }


def outcome_of(tallied: Mapping[Priority, Tally], utilisation: float, in_system: float) -> Outcome:
    """The whole account, when all has ended or the simulation has stopped."""
    by_priority = {priority: tally.answers() for priority, tally in tallied.items()}
    parts = by_priority.values()
    answered = sum(len(part.latencies) for part in parts)
    waited = math.fsum(part.waited * len(part.latencies) for part in parts)
    return Outcome(
        latencies=sorted(chain.from_iterable(part.latencies for part in parts)),
        refused=sum(part.refused for part in parts),
        waited=waited / max(answered, 1),
        by_priority=by_priority,
        utilisation=utilisation,
        in_system=in_system,
    )
