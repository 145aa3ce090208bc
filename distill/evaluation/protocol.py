"""How often images are drawn and what becomes of the trials' figures."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Name = Literal["one", "edm", "sid"]


@dataclass(frozen=True)
class Protocol:
    """A way of measuring that has a name.

    Trial k of N images takes the seeds from first_seed + k N on, classes from 0 again.

    Attributes:
        trials: how many.
        images: images in each, unless the user says otherwise.
    """

    trials: int
    images: int


PROTOCOLS: dict[Name, Protocol] = {
    "one": Protocol(1, 10_000),
    "edm": Protocol(3, 50_000),  # Karras et al. 2022, section 5: the smallest of three
    "sid": Protocol(10, 50_000),  # Zhou et al. 2024, table 1: mean and deviation of ten
}


def summary(name: Name, trials: Sequence[dict[str, float]]) -> dict[str, float]:
    """Make one set of figures of the trials'.

    Returns:
        "one" and "edm": the figures of the trial of the smallest distance. "sid": the mean of
        each figure and, as distance_std, accuracy_std and so on, its sample standard deviation
        over the trials; the deviation that a figure has within one trial (kernel_distance_std)
        gives way to it.
    """
    if name != "sid":
        return min(trials, key=lambda trial: trial["distance"])
    result = {}
    for figure in trials[0]:
        if not figure.endswith("_std"):
            values = [trial[figure] for trial in trials]
            result[figure] = statistics.fmean(values)
            result[f"{figure}_std"] = statistics.stdev(values)
    return result
