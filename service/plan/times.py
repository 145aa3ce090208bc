"""How long batches take, of any size and beside any number of others, from a service curve."""

from bisect import bisect
from collections.abc import Callable
from random import Random

import numpy as np

from service.plan.curve import LEVELS, Curve

_FULL = 800  # milliseconds of work in a second, of one thread
_POINTS = 100  # of a cell's distribution; each is drawn as often as the others


class ServiceTimes:
    """Seconds of a batch, with what HTTP takes from the engine where both share the processors.

    Sizes between the measured ones are interpolated. A batch of b images on one of k busy slots
    lies beside b / k requests' worth of the event loop's work for each slot: as far as no
    processor is idle for that, it takes the engine's time. A batch that begins on a slot that was
    idle takes longer than one that follows another, by as much as a lone one does.

    Args:
        curve: what was measured.
        beside_ms: processor time beside the engine, for each image: the event loop's, and the
            client's where it runs on the same machine.
        per_batch_ms: the same for each batch, beside that of its images.
        slower: how many times as long all of it takes.
    """

    def __init__(
        self, curve: Curve, beside_ms: float, per_batch_ms: float = 0.0, slower: float = 1.0
    ) -> None:
        levels = (np.arange(_POINTS) + 0.5) / _POINTS * 100
        sizes = np.arange(1, curve.batches[-1] + 1)
        table = np.empty((len(sizes), _POINTS, curve.slots))
        for busy in range(1, curve.slots + 1):
            measured = []
            for batch in curve.batches:
                cell = curve.cell(busy, batch)
                taken = _share_taken(cell.cores, curve.machine.cores)
                beside = batch * beside_ms + per_batch_ms
                extra = beside * taken * busy / max(cell.cores, 1e-9)
                measured.append(slower * (np.interp(levels, LEVELS, cell.milliseconds) + extra))
            for point, column in enumerate(np.array(measured).T):
                table[:, point, busy - 1] = np.interp(sizes, curve.batches, column) / 1000
        self._course = curve.course
        self._means = table.mean(axis=1)
        self._table: list[list[list[float]]] = table.tolist()
        self._late: list[list[float]] = [
            (np.interp(levels, LEVELS, woken.milliseconds) / 1000).tolist() for woken in curve.woken
        ]
        self._rested = self._table
        if curve.rested:
            longer = np.array(
                [
                    np.interp(levels, LEVELS, rested.milliseconds)
                    - np.interp(levels, LEVELS, curve.cell(1, rested.batch).milliseconds)
                    for rested in curve.rested
                ]
            )
            by_size = [np.interp(sizes, curve.batches, column) / 1000 for column in longer.T]
            after_pause = table + np.array(by_size).T[:, :, None]
            # No sooner than the soonest: percentiles of few batches may lie the other way round.
            self._rested = np.maximum(after_pause, table.min(axis=1, keepdims=True)).tolist()

    def draw(self, size: int, rank: float, *, rested: bool = False) -> list[float]:
        """One batch's seconds, by how many slots are busy from 1: a point of the distribution.

        Args:
            size: images of the batch.
            rank: which point: the share of batches that take less time, below 1.
            rested: whether its slot was idle before it.
        """
        table = self._rested if rested else self._table
        return table[size - 1][int(rank * _POINTS)]

    def ranks(self, random: Random) -> Callable[[float], float]:
        """The rank of a batch that begins at a time (seconds), as the measured ones followed.

        Args:
            random: where in what was measured it begins; of a curve without a course, each rank.
        """
        if (course := self._course) is None:
            return lambda _: random.random()
        offset = random.random() * course.seconds

        def rank(at: float) -> float:
            index = bisect(course.began, (at + offset) % course.seconds) - 1
            return course.ranks[index]  # the first begins at 0

        return rank

    def late(self, busy: int, random: Random) -> float:
        """How many seconds late an event loop is woken, with so many slots busy."""
        return self._late[busy][int(random.random() * _POINTS)] if self._late else 0.0

    def mean(self, size: int, busy: int) -> float:
        """The mean seconds of a batch, with so many slots busy."""
        return float(self._means[size - 1, busy - 1])


def _share_taken(used: float, cores: int) -> float:
    """Which share of one more thread's work the engine pays for, that keeps `used` of the cores."""
    return min(max(1 - (cores - used), 0.0), 1.0)


def loop_costs(curve: Curve) -> tuple[float, float]:
    """Milliseconds of the event loop's processor time: for each request, and for being woken."""
    gateway = curve.gateway
    return _costs(gateway.loop_ms, gateway.lone_loop_ms, curve.batches[-1])


def client_costs(curve: Curve) -> tuple[float, float]:
    """The same of the client that put the load on the gateway."""
    gateway = curve.gateway
    return _costs(gateway.client_ms, gateway.lone_client_ms, curve.batches[-1])


def _costs(full: float, lone: float | None, batch: int) -> tuple[float, float]:
    """What a request costs, and what being woken does.

    A lone request wakes a process twice. Under as much load as there can be, the images of the
    largest batch go together, and as many requests come together in their place.
    """
    if lone is None or batch == 1:  # in batches of one there is no telling
        return full, 0.0
    wake = max(lone - full, 0) / (2 - 2 / batch)
    wake = min(wake, full * batch / 2)  # a request costs something
    return full - 2 * wake / batch, wake


def gateway_times(curve: Curve, *, with_client: bool = False) -> ServiceTimes:
    """The times beside a gateway's event loop, and a client on the same machine if there is one.

    Each request wakes the loop, and each batch once more for its images. Beyond their processor
    time they take caches and moments of waiting from the engine: by as much as the measured peak is
    below that of these times, all batches take longer.
    """
    return ServiceTimes(curve, *_beside(curve, with_client), _slower(curve))


def _slower(curve: Curve) -> float:
    """How many times as long batches take behind HTTP as their time and its own say."""
    gateway = curve.gateway
    if gateway.peak is None:
        return 1.0
    if gateway.peak * max(gateway.loop_ms, gateway.client_ms) > _FULL:
        return 1.0  # the event loop or the client is the limit, and nothing is known of the engine
    batch = curve.batches[-1]
    seconds = ServiceTimes(curve, *_beside(curve, with_client=True)).mean(batch, curve.slots)
    return curve.slots * batch / seconds / gateway.peak


def _beside(curve: Curve, with_client: bool) -> tuple[float, float]:
    """Milliseconds of processor time beside the engine: for each image, and for each batch."""
    costs = [loop_costs(curve), *([client_costs(curve)] if with_client else [])]
    request, wake = map(sum, zip(*costs, strict=True))
    return request + wake, wake
