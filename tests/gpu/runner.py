"""Runs the sections one after the other, each in a process group of its own.

A crash of CUDA, a hang or memory that runs out ends one section; the others never see it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gpu.record import read_record
from tests.gpu.section import Section

ROOT = Path(__file__).parents[2]
SKIPPED = 77  # a section's exit status when it left itself out; the reason is its last note


@dataclass(frozen=True)
class Outcome:
    """What became of a section.

    Attributes:
        section: which.
        lines: what it recorded.
        seconds: how long it took.
        problem: why it did not come to its end; None: it did.
        skipped: whether it left itself out.
    """

    section: Section
    lines: Sequence[dict[str, Any]]
    seconds: float
    problem: str | None
    skipped: bool

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """The recorded rows, by key."""
        return {line["row"]: line for line in self.lines if "row" in line}

    @property
    def notes(self) -> list[str]:
        """What it says to its reader."""
        return [line["note"] for line in self.lines if "note" in line]

    @property
    def facts(self) -> dict[str, Any]:
        """What it says of the machine."""
        return {name: it for line in self.lines for name, it in line.get("facts", {}).items()}

    @property
    def broken(self) -> list[str]:
        """The rows that had to be within their bounds and are not."""
        values = self.values
        return [
            row.title
            for row in self.section.rows
            if row.must and row.key in values and not row.reached(values[row.key]["value"])
        ]

    @property
    def status(self) -> str:
        """In a word or a line: passed, skipped, or what went wrong."""
        if self.skipped:
            return f"skipped: {self.notes[-1]}"
        wrong = [f"out of bounds: {title}" for title in self.broken]
        return "; ".join([*wrong, *([self.problem] if self.problem else [])]) or "passed"

    @property
    def failed(self) -> bool:
        """Whether something is wrong: a bound that is broken, a crash, a hang."""
        return bool(self.broken or self.problem)


def run_section(section: Section, command: Sequence[str], limit: float) -> Outcome:
    """Run one section to its end or its limit.

    Args:
        section: which.
        command: starts its process, but for the file to record in, which comes last.
        limit: seconds after which it is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        log = Path(folder) / "errors.log"
        began = time.monotonic()
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*command, str(results)], cwd=ROOT, stderr=errors, start_new_session=True
            )
            try:
                status = process.wait(timeout=limit)
                problem = _reason(status, log)
            except subprocess.TimeoutExpired:
                status, problem = None, f"killed at its limit of {limit:g} s"
            finally:
                # What it started goes with it, whether it ended or not: nothing may use the card
                # while the next section measures.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if problem:
            print(log.read_text(errors="replace"), file=sys.stderr)
        lines = read_record(results)
        return Outcome(section, lines, time.monotonic() - began, problem, skipped=status == SKIPPED)


def _reason(status: int, log: Path) -> str | None:
    if status in (0, SKIPPED):
        return None
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    last = said[-1][:300] if said else "no message"
    how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return f"{how}: {last}"
