"""What came of the rows of methods.py, as JSON and as a table."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FIGURES = ("distance", "accuracy", "precision", "recall")


@dataclass
class Result:
    """What came of one row with one seed, or of a teacher.

    Attributes:
        name, title: the row's.
        seed: of the training; None: a teacher.
        images: from how many the generator learned here and, before, in the row that it started in.
        resting: how many more were seen while it rested.
        seconds: the training took, of all commands that went on with it.
        measured: what 'sid-distill evaluate' printed; None: not measured.
        why: in one line, why not.
    """

    name: str
    title: str
    seed: int | None = None
    images: list[int] = field(default_factory=list)
    resting: int = 0
    seconds: float = 0.0
    measured: dict[str, Any] | None = None
    why: str | None = None


def write(
    folder: Path, settings: dict[str, str], results: Sequence[Result], left_out: dict[str, str]
) -> None:
    """Write the results and the table to methods.json and methods.md in a folder."""
    whole = {
        "settings": settings, "results": [asdict(one) for one in results], "left_out": left_out
    }  # fmt: skip
    (folder / "methods.json").write_text(json.dumps(whole, indent=1) + "\n")
    (folder / "methods.md").write_text(table(results, left_out))


def table(results: Sequence[Result], left_out: dict[str, str]) -> str:
    """The table in Markdown: medians over the seeds and, of several, each in brackets."""
    heads = ["", "evaluations", "images", *FIGURES, "minutes"]
    lines = [f"| {' | '.join(heads)} |".replace("|  |", "| |"), "|" + "---|" * len(heads)]
    names = dict.fromkeys(one.name for one in results)
    notes = [f"{name} is left out: {why}." for name, why in left_out.items()]
    for name in names:
        alike = [one for one in results if one.name == name]
        there = [one for one in alike if one.measured is not None]
        notes += [
            f"{name}{'' if one.seed is None else f', seed {one.seed},'} is missing: {one.why}."
            for one in alike
            if one.measured is None
        ]
        if not there:
            continue
        first = there[0].measured or {}
        cells = [there[0].title, str(first["evaluations"])]
        images = [f"{images:,}" for images in there[0].images]
        images += [f"{there[0].resting:,} at rest"] if there[0].resting else []
        cells.append(" + ".join(images) or "-")
        for figure in FIGURES:
            cells.append(spread([(one.measured or {}).get(figure) for one in there]))
        cells.append(spread([one.seconds / 60 for one in there], 1) if there[0].seconds else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *notes, *([""] if notes else [])]).rstrip("\n") + "\n"


def spread(values: Sequence[float | None], digits: int = 3) -> str:
    """A median and, of several, all: "4.020 (3.981, 4.059)"; "-" where something is missing."""
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return "-"
    median = f"{statistics.median(found):.{digits}f}"
    each = ", ".join(f"{value:.{digits}f}" for value in found)
    return f"{median} ({each})" if len(found) > 1 else median
