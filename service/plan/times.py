"""How long batches take, of any size and beside any number of others, from a service curve."""

from random import Random

import numpy as np

from service.plan.curve import LEVELS, Curve

_POINTS = 100  # of a cell's distribution; each is drawn as often as the others


class ServiceTimes:
    """Seconds of a batch, with what HTTP takes from the engine where both share the processors.

    Sizes between the measured ones are interpolated. A batch of b images on one of k busy slots
    lies beside b / k requests' worth of the event loop's work for each slot: as far as no
    processor is idle for that, it takes the engine's time.

    Args:
        curve: what was measured.
        beside_ms: processor time beside the engine, for each image: the event loop's, and the
            client's where it runs on the same machine.
    """

    def __init__(self, curve: Curve, beside_ms: float) -> None:
        levels = (np.arange(_POINTS) + 0.5) / _POINTS * 100
        sizes = np.arange(1, curve.batches[-1] + 1)
        table = np.empty((len(sizes), _POINTS, curve.slots))
        for busy in range(1, curve.slots + 1):
            measured = []
            for batch in curve.batches:
                cell = curve.cell(busy, batch)
                taken = _share_taken(cell.cores, curve.machine.cores)
                extra = batch * beside_ms * taken * busy / max(cell.cores, 1e-9)
                measured.append(np.interp(levels, LEVELS, cell.milliseconds) + extra)
            for point, column in enumerate(np.array(measured).T):
                table[:, point, busy - 1] = np.interp(sizes, curve.batches, column) / 1000
        self._means = table.mean(axis=1)
        self._table: list[list[list[float]]] = table.tolist()

    def draw(self, size: int, random: Random) -> list[float]:
        """One batch's seconds, by how many slots are busy from 1: a point of the distribution."""
        return self._table[size - 1][int(random.random() * _POINTS)]

    def mean(self, size: int, busy: int) -> float:
        """The mean seconds of a batch, with so many slots busy."""
        return float(self._means[size - 1, busy - 1])


def _share_taken(used: float, cores: int) -> float:
    """Which share of one more thread's work the engine pays for, that keeps `used` of the cores."""
    return min(max(1 - (cores - used), 0.0), 1.0)
