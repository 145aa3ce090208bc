"""A service curve: how long batches take on one machine, and what the gateway adds.

A JSON file that `sid bench --curve` writes and `sid plan` reads.
"""

from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.bundle import first_error
from service.plan import PlanError

# The percentiles of which a curve holds the milliseconds; 0 and 100 are the extremes.
LEVELS = (0, 10, 25, 50, 75, 90, 95, 99, 100)

Milliseconds = Annotated[float, Field(gt=0, le=3_600_000)]


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

    Attributes:
        loop_ms: processor time of the event loop, which one core has to do for all requests.
        lone_ms: what a lone request takes beside its engine time, seen from its client.
        client_ms: processor time of the client, which is taken from the engine where both share a
            machine, as in the measurement.
    """

    loop_ms: float = Field(ge=0)
    lone_ms: float = Field(ge=0)
    client_ms: float = Field(ge=0)


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
    milliseconds: list[Milliseconds]

    @field_validator("milliseconds")
    @classmethod
    def _ascending(cls, values: list[float]) -> list[float]:
        if len(values) != len(LEVELS) or any(later < one for one, later in pairwise(values)):
            raise ValueError(f"{len(LEVELS)} ascending numbers are expected")
        return values


class Curve(_Part):
    """A service curve.

    Attributes:
        date: when it was measured.
        bundle: the tag of what was drawn, `name:version:digest:graph`.
        levels: the percentiles of which the cells hold the milliseconds.
        cells: every number of busy slots from 1, each with the same batch sizes, of which 1 is one.
    """

    format: Literal[1] = 1
    date: datetime
    machine: Machine
    bundle: str
    engine: MeasuredEngine
    gateway: Gateway
    levels: tuple[int, ...] = LEVELS
    cells: list[Cell] = Field(min_length=1)

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
        return self

    @property
    def slots(self) -> int:
        """The most slots that were busy at a time."""
        return max(cell.busy for cell in self.cells)

    @property
    def batches(self) -> list[int]:
        """The batch sizes that were measured, ascending."""
        return sorted({cell.batch for cell in self.cells})

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
    head = curve.model_copy(update={"cells": []}).model_dump_json(indent=1)
    cells = ",\n  ".join(cell.model_dump_json() for cell in curve.cells)
    try:
        path.write_text(head.replace('"cells": []', f'"cells": [\n  {cells}\n ]') + "\n", "utf-8")
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error


def now() -> datetime:
    """The date of a curve that is being measured."""
    return datetime.now(UTC).replace(microsecond=0)
