"""The statistics of a report: pure functions of measured seconds."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_POINTS_PER_DECADE = 20
_STAGE = re.compile(rb'([^\s,;]+)\s*;(?:[^,;]*;)*?\s*dur="?(\d+(?:\.\d+)?)')


@dataclass(frozen=True)
class Latency:
    """A distribution of seconds; percentiles are by nearest rank."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float


def latency(ordered: Sequence[float]) -> Latency | None:
    """Summarise ascending values; None when there are none."""
    if not ordered:
        return None
    p50, p90, p99, p99_9 = (percentile(ordered, percent) for percent in (50, 90, 99, 99.9))
    mean = math.fsum(ordered) / len(ordered)
    return Latency(len(ordered), mean, p50, p90, p99, p99_9, ordered[-1])


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of ascending values: always one that was measured.

    It is the smallest value that at least `percent` % of all values do not exceed.
    """
    # Rounded first: 99.9 is not exact in binary, and one ulp must not make it the next rank.
    rank = math.ceil(round(len(ordered) * percent / 100, 9))
    return ordered[max(rank, 1) - 1]


def curve(ordered: Sequence[float]) -> list[tuple[float, float]]:
    """Percentiles of ascending values as (percent, seconds), from 0 up to the last but one value.

    The points are evenly spaced in nines (90, 99, 99.9): what is rare has as much room as the rest.
    """
    if not ordered:
        return []
    steps = math.floor(_POINTS_PER_DECADE * math.log10(len(ordered)))
    percents = (100 * (1 - 10 ** (-step / _POINTS_PER_DECADE)) for step in range(steps + 1))
    return [(percent, percentile(ordered, percent)) for percent in percents]


def stage_means(timings: Iterable[bytes]) -> dict[str, float]:
    """Mean seconds of each stage of Server-Timing headers, over the answers that name it."""
    stages: defaultdict[str, list[float]] = defaultdict(list)
    for timing in timings:
        for name, milliseconds in _STAGE.findall(timing):
            stages[name.decode("latin-1")].append(float(milliseconds) / 1000)
    return {name: math.fsum(seconds) / len(seconds) for name, seconds in stages.items()}
