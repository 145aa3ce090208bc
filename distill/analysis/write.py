"""Writing a report: the page, and its numbers as JSON beside it."""

import json
from pathlib import Path

from distill.analysis.page import Section, page
from distill.analysis.report import Report
from service.bundle import write_atomically


def write_report(file: Path, title: str, subtitle: str, report: Report) -> Path:
    """Write the page to `file` and the numbers beside it, under the same name with .json.

    Returns:
        The numbers' file.
    """
    sections = report.sections
    if report.left_out:
        last = Section("Left out, and why")
        for reason in report.left_out:
            last.text(reason.replace("..", "."), soft=True)
        sections = [*sections, last]
    text = page(title, subtitle, sections)
    write_atomically(file, lambda path: path.write_text(text, encoding="utf-8"))
    numbers = file.with_suffix(".json")
    content = json.dumps(report.numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(numbers, lambda path: path.write_text(content, encoding="utf-8"))
    return numbers
