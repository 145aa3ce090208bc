"""The report of the kit: JSON with everything, and the Markdown tables of docs/results/gpu.md."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from tests.gpu.record import measured, shown
from tests.gpu.runner import Outcome
from tests.gpu.section import Row, Section
from tests.gpu.sections import AIMS_FOR, BEFORE


def as_json(card: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """All that was recorded, ready for JSON."""
    return {
        "card": card,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _facts(outcomes),
        "sections": {
            outcome.section.name: {
                "status": outcome.status,
                "seconds": round(outcome.seconds, 1),
                "rows": outcome.values,
                "notes": outcome.notes,
            }
            for outcome in outcomes
        },
    }


def as_markdown(card: str, outcomes: Sequence[Outcome]) -> str:
    """Machine, one table per section, and how each section ended.

    The card's name heads the column of what was measured on it, and that of `BEFORE` its own.
    """
    facts = [f"{name} {value}" for name, value in _facts(outcomes).items()]
    head = ", ".join([f"**{card}**", datetime.now(UTC).date().isoformat(), *facts])
    tables = [table(card, outcome.section, outcome) for outcome in outcomes]
    ends = [
        "| section | how it ended | seconds |",
        "|---|---|---|",
        *(f"| {o.section.title} | {_cell(o.status)} | {o.seconds:.0f} |" for o in outcomes),
    ]
    return "\n\n".join([head, *tables, "### How the sections ended", "\n".join(ends)]) + "\n"


def table(card: str, section: Section, outcome: Outcome | None = None) -> str:
    """The table of one section; without an outcome every figure is missing.

    Args:
        card: whose figures they are; the heading of their column.
        section: which.
        outcome: what it measured.
    """
    values = outcome.values if outcome else {}
    lines = [f"| | {card} | {BEFORE} | aim | |", "|---|---|---|---|---|"]
    for row in section.rows:
        line = values.get(row.key)
        lines.append(
            f"| {row.title} | {_measured(row, line)} | {row.before or '-'} | {_aim(row)} | "
            f"{_judged(card, row, line)} |"
        )
    notes = [f"- {_cell(note)}" for note in (outcome.notes if outcome else ())]
    parts = [f"### {section.title}", "\n".join(lines), *(["\n".join(notes)] if notes else [])]
    return "\n\n".join(parts)


def _measured(row: Row, line: dict[str, Any] | None) -> str:
    if line is None:
        return "not measured"
    return _cell(measured(row, line["value"], line["details"]))


def _aim(row: Row) -> str:
    if row.at_least is not None:
        return f"at least {shown(row.at_least)}"
    return "-" if row.at_most is None else f"at most {shown(row.at_most)}"


def _judged(card: str, row: Row, line: dict[str, Any] | None) -> str:
    """Met, missed, or nothing: an aim in images/s is for the cards that it was set for."""
    reached = None if line is None else row.reached(line["value"])
    if reached is None or not (row.must or any(name in card for name in AIMS_FOR)):
        return "-"
    return "met" if reached else "**missed**"


def _facts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {name: value for outcome in outcomes for name, value in outcome.facts.items()}


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")
