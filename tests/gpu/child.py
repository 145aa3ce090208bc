"""The process of one section."""

import importlib
import sys
from pathlib import Path

from tests.gpu.record import Record, Skipped
from tests.gpu.runner import SKIPPED
from tests.gpu.section import Section


def work(section: Section, results: Path, *, toy: bool) -> None:
    """Run a section in this process; end it with SKIPPED where the section cannot run."""
    record = Record(section, results, toy=toy)
    if missing := [name for name in section.needs if not _importable(name)]:
        record.note(
            f"needs {', '.join(missing)}: carry it on PYTHONPATH (python -m tests.gpu --carry)"
        )
        sys.exit(SKIPPED)
    try:
        importlib.import_module(section.module).run(record)
    except Skipped as reason:
        record.note(str(reason))
        sys.exit(SKIPPED)


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True
