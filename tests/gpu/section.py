"""What a section of the kit is, and the rows that it fills."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One line of a table of the report.

    Attributes:
        key: by which a section records what it measured.
        title: what was measured.
        unit: of the value.
        before: the value on the card of `BEFORE`, for people.
        at_least: the aim, or None.
        at_most: the aim from above, or None.
        must: whether to miss the aim is an error and not only shown.
    """

    key: str
    title: str
    unit: str = "images/s"
    before: str = ""
    at_least: float | None = None
    at_most: float | None = None
    must: bool = False

    def reached(self, value: float) -> bool | None:
        """Whether a value is within the aim; None: there is none. NaN never is."""
        if self.at_least is None and self.at_most is None:
            return None
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True)
class Section:
    """A part of the kit, which runs in a process of its own.

    Attributes:
        module: the module whose function `run(record)` it is.
        title: the heading of its table.
        seconds: after so many its process group is killed; what it has recorded stays.
        needs: modules without which it is left out, and says so.
        rows: of its table.
        apart: it runs on a card only when it is asked for, beside the eight minutes.
    """

    module: str
    title: str
    seconds: float
    needs: tuple[str, ...]
    rows: tuple[Row, ...] = field(default=())
    apart: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        return self.module.rpartition(".")[2]
