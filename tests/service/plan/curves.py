"""Service curves of machines that nobody has."""

from collections.abc import Callable
from datetime import UTC, datetime
from random import Random
from typing import Any

from service.plan.curve import (
    LEVELS,
    Cell,
    Course,
    Curve,
    Gateway,
    Machine,
    MeasuredEngine,
    Rested,
    Served,
    Woken,
)
from service.plan.times import ServiceTimes


def make_curve(
    milliseconds: Callable[[int, int], float],
    *,
    slots: int = 1,
    batches: tuple[int, ...] = (1,),
    cores: int = 2,
    spread: tuple[float, ...] = (1,) * len(LEVELS),
    engine: str = "onnxruntime",
    **gateway: float,
) -> Curve:
    """A curve whose batches take `milliseconds(busy, batch)`, each percentile times its spread.

    It is of format 1; `with_pauses` makes it one of format 2.
    """
    cells = [
        Cell(
            busy=busy,
            batch=batch,
            batches=100,
            cores=min(busy, cores),
            milliseconds=[milliseconds(busy, batch) * factor for factor in spread],
        )
        for busy in range(1, slots + 1)
        for batch in batches
    ]
    costs: dict[str, Any] = {"loop_ms": 0, "lone_ms": 0, "client_ms": 0} | gateway
    return Curve(
        format=1,
        date=datetime(2026, 1, 1, tzinfo=UTC),
        machine=Machine(processor="A processor", cores=cores, load=0),
        bundle="fashion:5:0123456789ab:float32",
        engine=MeasuredEngine(name=engine, version="1", precision="float32", threads=1),
        gateway=Gateway(**costs),
        cells=cells,
    )


def with_course(curve: Curve, *, spell: float, seconds: float = 60.0) -> Curve:
    """The same, with slow spells and fast ones in turn, of so many seconds each on average.

    Each rank comes as often as any other: which are slow by themselves is unchanged.
    """
    random, began, ranks, at, slow = Random(0), [], [], 0.0, False
    until = random.expovariate(1 / spell)
    while at < seconds:
        if at >= until:
            slow, until = not slow, at + random.expovariate(1 / spell)
        began.append(at)
        ranks.append((random.random() + slow) / 2)
        at += 0.005
    return curve.model_copy(update={"course": Course(began=began, ranks=ranks, seconds=seconds)})


def with_served(curve: Curve, *longer: float) -> Curve:
    """The same where batches take so many times as long behind HTTP, which costs no time itself.

    Args:
        longer: of a lone image, of one in each slot, and of the largest batches; or of all alike.
    """
    most, slots = curve.batches[-1], curve.slots
    loads = ((1, 1, 1), (slots, 1, slots), (2 * slots * most, most, slots))
    factors = longer if len(longer) == 3 else longer * 3
    served = {
        connections: Served(
            connections=connections,
            batch=batch,
            busy=busy,
            milliseconds=factor * 1000 * ServiceTimes(curve, 0).mean(batch, busy),
        )
        for (connections, batch, busy), factor in zip(loads, factors, strict=True)
    }
    return curve.model_copy(update={"served": [*served.values()]})


def with_pauses(
    curve: Curve,
    *,
    longer: float = 1.0,
    late: Callable[[int], float] = lambda _: 1e-6,
    lone_loop_ms: float | None = None,
) -> Curve:
    """The same where a batch after a pause takes so many times as long.

    Its event loop is woken `late(busy)` milliseconds late, and a lone request costs it so much.
    """
    costs = curve.gateway
    lone = costs.loop_ms if lone_loop_ms is None else lone_loop_ms
    rested = [
        Rested(
            batch=batch,
            batches=9,
            milliseconds=[value * longer for value in curve.cell(1, batch).milliseconds],
        )
        for batch in curve.batches
    ]
    changes: dict[str, Any] = {
        "format": 2,
        "gateway": costs.model_copy(
            update={"lone_loop_ms": lone, "lone_client_ms": costs.client_ms}
        ),
        "rested": rested,
        "woken": [
            Woken(busy=busy, wakes=9, milliseconds=[late(busy)] * len(LEVELS))
            for busy in range(curve.slots + 1)
        ],
    }
    return Curve.model_validate(curve.model_copy(update=changes).model_dump())


SPREAD = (0.9, 0.95, 0.97, 1, 1.03, 1.1, 1.2, 1.6, 3)


def two_cores(**changes: Any) -> Curve:
    """Much like models/fashion on two cores: three slots, batches that cost less per image."""
    given: dict[str, Any] = {
        "slots": 3,
        "batches": (1, 2, 4, 8),
        "spread": SPREAD,
        "loop_ms": 0.35,
        "lone_ms": 0.8,
        "client_ms": 0.05,
    }
    return make_curve(lambda busy, batch: (1 + 1.5 * batch) * max(1, busy / 2), **given | changes)
