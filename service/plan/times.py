"""How long batches take, of any size and beside any number of others, from a service curve."""

from bisect import bisect
from collections.abc import Callable
from random import Random

import numpy as np
from numpy.typing import NDArray

from service.plan.curve import LEVELS, Curve, Served

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
        longer: how many times as long batches take, by their size and by how many slots are busy,
            both from 1; None: once.
    """

    def __init__(
        self,
        curve: Curve,
        beside_ms: float,
        per_batch_ms: float = 0.0,
        longer: NDArray[np.float64] | None = None,
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
                measured.append(np.interp(levels, LEVELS, cell.milliseconds) + extra)
            for point, column in enumerate(np.array(measured).T):
                table[:, point, busy - 1] = np.interp(sizes, curve.batches, column) / 1000
        self._course = curve.course
        rested = table
        self._late: list[list[float]] = [
            (np.interp(levels, LEVELS, woken.milliseconds) / 1000).tolist() for woken in curve.woken
        ]
        if curve.rested:
            after_pauses = np.array(
                [
                    np.interp(levels, LEVELS, one.milliseconds)
                    - np.interp(levels, LEVELS, curve.cell(1, one.batch).milliseconds)
                    for one in curve.rested
                ]
            )
            by_size = [np.interp(sizes, curve.batches, column) / 1000 for column in after_pauses.T]
            rested = table + np.array(by_size).T[:, :, None]
            # No sooner than the soonest: percentiles of few batches may lie the other way round.
            rested = np.maximum(rested, table.min(axis=1, keepdims=True))
        if longer is not None:
            table, rested = table * longer[:, None], rested * longer[:, None]
        self._means = table.mean(axis=1), rested.mean(axis=1)
        self._table: list[list[list[float]]] = table.tolist()
        self._rested: list[list[list[float]]] = rested.tolist()

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

    def mean(self, size: float, busy: float, *, rested: bool = False) -> float:
        """The mean seconds of a batch, of so many images and slots busy on average; see `draw`."""
        means = self._means[rested]
        sizes, slots = (np.arange(length) + 1 for length in means.shape)
        by_slots = [np.interp(size, sizes, column) for column in means.T]
        return float(np.interp(busy, slots, by_slots))


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
    time they take caches, and moments of waiting, from the engine: how much longer batches take for
    that is measured.
    """
    longer = _longer(curve) if curve.served else None
    return ServiceTimes(curve, *_beside(curve, with_client), longer)


def _longer(curve: Curve) -> NDArray[np.float64]:
    """How many times as long batches take behind HTTP as beside its processor time alone.

    Measured where no request waits, with few slots busy and with all, and where most wait. For
    batches of sizes in between it lies in between.
    """
    times = ServiceTimes(curve, *_beside(curve, with_client=True))

    def factor(one: Served) -> float:
        idle = one.connections <= curve.slots  # so each batch begins on a slot that was
        return one.milliseconds / 1000 / times.mean(one.batch, one.busy, rested=idle)

    *few, full = curve.served
    by_slots = {min(one.connections, curve.slots): factor(one) for one in few}
    if curve.batches[-1] == 1:
        by_slots[curve.slots] = factor(full)
    slots, sizes = np.arange(curve.slots) + 1, np.arange(curve.batches[-1]) + 1
    smallest = np.interp(slots, list(by_slots), list(by_slots.values()))
    share = np.clip((sizes - 1) / max(full.batch - 1, 1e-9), 0, 1)[:, None]
    return smallest * (1 - share) + factor(full) * share


def _beside(curve: Curve, with_client: bool) -> tuple[float, float]:
    """Milliseconds of processor time beside the engine: for each image, and for each batch."""
    costs = [loop_costs(curve), *([client_costs(curve)] if with_client else [])]
    request, wake = map(sum, zip(*costs, strict=True))
    return request + wake, wake
