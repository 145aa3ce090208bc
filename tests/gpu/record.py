"""What a section writes down while it runs, so that nothing is lost when it is killed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.gpu.section import Row, Section


class Skipped(Exception):
    """A section, or a part of one, that cannot run here; the message says why, in one line."""


class Record:
    """The results of one section, a line of JSON each, in a file that is flushed with each line.

    Args:
        section: whose rows may be recorded.
        path: the file.
        toy: whether to run at toy size, on the CPU.
    """

    def __init__(self, section: Section, path: Path, *, toy: bool) -> None:
        self.toy = toy
        self._section = section
        self._rows = {row.key: row for row in section.rows}
        self._file = path.open("a", encoding="utf-8")

    def row(self, key: str, value: float, **details: Any) -> None:
        """Write down the value of a row, with whatever else belongs to it; and say it."""
        row = self._rows[key]
        self._write({"row": key, "value": value, "details": details})
        print(f"{self._section.name}: {row.title}: {measured(row, value, details)}", flush=True)

    def note(self, text: str) -> None:
        """Write down what a reader has to know, such as why a row is missing; and say it."""
        self._write({"note": text})
        print(f"{self._section.name}: {text}", flush=True)

    def facts(self, **facts: Any) -> None:
        """Write down what stands above the tables, such as the card's name."""
        self._write({"facts": facts})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def read_record(path: Path) -> list[dict[str, Any]]:
    """What a section has written; a last line that it could not finish is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def measured(row: Row, value: float, details: Mapping[str, Any]) -> str:
    """The value of a row for people, with its unit and what else belongs to it."""
    more = [f"{name.replace('_', ' ')} {shown(one)}" for name, one in details.items()]
    return ", ".join([f"{shown(value)} {row.unit}".strip(), *more])


def shown(value: Any) -> str:
    """A number with three digits that count, and commas from a thousand on; others as they are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e9:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
