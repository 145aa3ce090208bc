"""A service curve: how long batches take on one machine, and what the gateway adds.

A JSON file that `sid bench --curve` writes and `sid plan` reads.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from service.bundle import first_error
from service.plan import PlanError

# The percentiles of which a curve holds the milliseconds; 0 and 100 are the extremes.
LEVELS = (0, 10, 25, 50, 75, 90, 95, 99, 100)

Milliseconds = Annotated[float, Field(gt=0, le=3_600_000)]


def _ascending(values: list[float]) -> list[float]:
    if len(values) != len(LEVELS) or any(later < one for one, later in pairwise(values)):
        raise ValueError(f"{len(LEVELS)} ascending numbers are expected")
    return values


Distribution = Annotated[list[Milliseconds], AfterValidator(_ascending)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Machine(_Part):
    """Where a curve was measured.

    Attributes:
        processor: its name.
        cores: how many of its processors the process may use.
        load: processes that wanted to run in the minute before; 0 on an idle machine.
    """

    processor: str
    cores: int = Field(ge=1)
    load: float = Field(ge=0)


class MeasuredEngine(_Part):
    """What computed: its name and version, the numbers' format, threads of one batch."""

    name: str
    version: str
    precision: str
    threads: int = Field(ge=1)


class Gateway(_Part):
    """What HTTP costs, for each request with one image.

    Under as much load as there can be a process is woken once for many requests, and by a lone
    request twice: for it, and for its image. So the lone one costs far more.

    Attributes:
        loop_ms: processor time of the event loop, which one core has to do for all requests, under
            as much load as there can be.
        lone_ms: what a lone request takes beside its engine time, seen from its client.
        client_ms: processor time of the client, which is taken from the engine where both share a
            machine, as in the measurement.
        lone_loop_ms, lone_client_ms: processor time of both for a lone request; None in a curve of
            format 1, which did not measure it.
    """

    loop_ms: float = Field(ge=0)
    lone_ms: float = Field(ge=0)
    client_ms: float = Field(ge=0)
    lone_loop_ms: float | None = Field(default=None, ge=0)
    lone_client_ms: float | None = Field(default=None, ge=0)


class Served(_Part):
    """What batches took behind HTTP, while so many connections always had a request under way.

    The client was on the same machine.

    Attributes:
        connections: how many.
        batch: images of a batch, on average.
        busy: how many slots computed, on average.
        milliseconds: a batch's time, on average: noise, network and files, as in a cell.
    """

    connections: int = Field(ge=1)
    batch: float = Field(ge=1, le=4096)
    busy: float = Field(gt=0)
    milliseconds: Milliseconds


class Rested(_Part):
    """Lone batches of one size, each after a pause, in which processors and caches forget.

    Attributes:
        batch: images of each batch.
        batches: how many were measured.
        milliseconds: percentiles of a batch's time, by `LEVELS`.
    """

    batch: int = Field(ge=1, le=4096)
    batches: int = Field(ge=1)
    milliseconds: Distribution


class Woken(_Part):
    """How late an event loop is woken while so many slots compute beside it.

    Attributes:
        busy: the slots; 0: none.
        wakes: how often it was measured.
        milliseconds: percentiles of the lateness, by `LEVELS`: it waits for a processor, and for
            the interpreter that the slots' threads use too.
    """

    busy: int = Field(ge=0, le=1024)
    wakes: int = Field(ge=1)
    milliseconds: Distribution


class Cell(_Part):
    """Batches of one size, with so many slots busy all the time.

    Attributes:
        busy: slots that compute at the same time, each a batch of this size.
        batch: images of each batch, noise and files with it.
        batches: how many were measured.
        cores: processors that this process kept busy meanwhile.
        milliseconds: percentiles of a batch's time, by `LEVELS`.
    """

    busy: int = Field(ge=1, le=1024)
    batch: int = Field(ge=1, le=4096)
    batches: int = Field(ge=1)
    cores: float = Field(ge=0)
    milliseconds: Distribution


class Course(_Part):
    """Batches in succession, of the largest size and with all slots busy: which were slow?

    A machine has slow moments, which several batches share. Drawn each by itself, slow batches
    would lie evenly among the others, and the queue behind them would never grow.

    Attributes:
        began: when each batch began, in seconds since the first, ascending.
        ranks: which share of all of these batches took less time than it.
        seconds: how long that was measured.
    """

    began: list[Annotated[float, Field(ge=0)]] = Field(min_length=1)
    ranks: list[Annotated[float, Field(ge=0, lt=1)]] = Field(min_length=1)
    seconds: float = Field(gt=0)

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if len(self.began) != len(self.ranks) or self.began != sorted(self.began):
            raise ValueError("as many ranks as times are expected, and those ascend")
        return self


class Curve(_Part):
    """A service curve.

    Attributes:
        date: when it was measured.
        bundle: the tag of what was drawn, `name:version:digest:graph`.
        levels: the percentiles of which the cells hold the milliseconds.
        cells: every number of busy slots from 1, each with the same batch sizes, of which 1 is one.
        rested: what a batch takes that comes after a pause, for the same batch sizes; empty in a
            curve of format 1, which is read as one in which a pause makes no difference.
        woken: how late an event loop is woken, for each number of busy slots from 0; empty in a
            curve of format 1, which is read as one in which it is never late.
        served: what batches took behind HTTP, by ascending connections: one, as many as slots, and
            more than fill them, of which most wait; empty in a curve of before 2026-11-29, which is
            read as one in which HTTP takes nothing but its processor time.
        course: which of many batches in succession were slow; None in a curve of before
            2026-11-29, which is read as one in which slow batches come singly.
    """

    format: Literal[1, 2] = 2
    date: datetime
    machine: Machine
    bundle: str
    engine: MeasuredEngine
    gateway: Gateway
    levels: tuple[int, ...] = LEVELS
    cells: list[Cell] = Field(min_length=1)
    rested: list[Rested] = Field(default_factory=list)
    woken: list[Woken] = Field(default_factory=list)
    served: list[Served] = Field(default_factory=list)
    course: Course | None = None

    @field_validator("levels")
    @classmethod
    def _known(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if levels != LEVELS:
            raise ValueError(f"{list(LEVELS)} is expected")
        return levels

    @model_validator(mode="after")
    def _complete(self) -> Self:
        measured = [(cell.busy, cell.batch) for cell in self.cells]
        wanted = {(busy, batch) for busy in range(1, self.slots + 1) for batch in self.batches}
        if len(measured) != len(set(measured)) or set(measured) != wanted or self.batches[0] != 1:
            raise ValueError(
                "cells: each batch size from 1 is expected once for each number of busy slots "
                "from 1"
            )
        connections = [one.connections for one in self.served]
        if connections and (len(connections) < 2 or connections != sorted(set(connections))):
            raise ValueError("served: two or more ascending numbers of connections are expected")
        lone = self.gateway.lone_loop_ms, self.gateway.lone_client_ms
        if self.format == 1:
            if self.rested or self.woken or lone != (None, None):
                raise ValueError("format 1 has no lone_loop_ms, lone_client_ms, rested and woken")
        elif (
            None in lone
            or [one.batch for one in self.rested] != self.batches
            or [one.busy for one in self.woken] != [*range(self.slots + 1)]
        ):
            raise ValueError(
                "format 2 has lone_loop_ms and lone_client_ms, each batch size once in rested, and "
                "each number of busy slots from 0 once in woken"
            )
        return self

    @property
    def slots(self) -> int:
        """The most slots that were busy at a time."""
        return max(cell.busy for cell in self.cells)

    @property
    def batches(self) -> list[int]:
        """The batch sizes that were measured, ascending."""
        return sorted({cell.batch for cell in self.cells})

    @property
    def lone(self) -> list[float]:
        """Milliseconds that the engine takes for one image alone, by `LEVELS`."""
        return self.rested[0].milliseconds if self.rested else self.cell(1, 1).milliseconds

    def cell(self, busy: int, batch: int) -> Cell:
        """The cell of so many busy slots and that batch size; KeyError when there is none."""
        return {(cell.busy, cell.batch): cell for cell in self.cells}[busy, batch]


def read_curve(path: Path) -> Curve:
    """Read a curve; raises PlanError in one line when the file is none."""
    try:
        return Curve.model_validate_json(path.read_bytes())
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        place, message, _ = first_error(error)
        where = f"{place}: " if place else ""
        raise PlanError(
            f"{path}: {where}{message}; a file that `sid bench --curve` wrote is expected"
        ) from error


def write_curve(curve: Curve, path: Path) -> None:
    """Write a curve, one cell a line; raises PlanError when the file cannot be written."""
    parts: dict[str, Sequence[_Part]]
    parts = {
        "cells": curve.cells,
        "rested": curve.rested,
        "woken": curve.woken,
        "served": curve.served,
    }
    bare = curve.model_copy(update={"course": None} | {name: [] for name in parts})
    text = bare.model_dump_json(indent=1)
    if curve.course is not None:
        text = text.replace('"course": null', f'"course": {curve.course.model_dump_json()}')
    for name, lines in parts.items():
        joined = ",\n  ".join(line.model_dump_json() for line in lines)
        text = text.replace(f'"{name}": []', f'"{name}": [\n  {joined}\n ]')
    try:
        path.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error


def now() -> datetime:
    """The date of a curve that is being measured."""
    return datetime.now(UTC).replace(microsecond=0)
