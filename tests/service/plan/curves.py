"""Service curves of machines that nobody has."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from service.plan.curve import LEVELS, Cell, Curve, Gateway, Machine, MeasuredEngine


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
    """A curve whose batches take `milliseconds(busy, batch)`, each percentile times its spread."""
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
        date=datetime(2026, 1, 1, tzinfo=UTC),
        machine=Machine(processor="A processor", cores=cores, load=0),
        bundle="fashion:5:0123456789ab:float32",
        engine=MeasuredEngine(name=engine, version="1", precision="float32", threads=1),
        gateway=Gateway(**costs),
        cells=cells,
    )


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
