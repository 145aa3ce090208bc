"""The tests that are marked `gpu`, run by pytest on the card."""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from tests.gpu.record import Record
from tests.gpu.runner import ROOT

_MARK = "pytest.mark.gpu"


def run(record: Record) -> None:
    """Fill the table; where there is no card, as at toy size, pytest skips them and says why."""
    files = marked_files(ROOT / "tests")
    if not files:
        record.note("no test is marked gpu")
        return
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Only the files that have such a test: to collect all would load all that all need.
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *map(str, files)], cwd=ROOT, stdout=sys.stderr
        )
        if not report.exists():
            raise RuntimeError(f"pytest ended with exit status {done.returncode}")
        (suite,) = ElementTree.parse(report).getroot()
    count = {name: int(suite.get(name, 0)) for name in ("tests", "skipped", "failures", "errors")}
    wrong = [one.get("name") for one in suite if one.find("failure") is not None]
    failed = count["failures"] + count["errors"]
    first = {"first": wrong[0]} if wrong else {}
    record.row("failed", failed, tests=count["tests"], skipped=count["skipped"], **first)


def marked_files(folder: Path) -> list[Path]:
    """The test files that have a test with the mark."""
    files = sorted(folder.rglob("test_*.py"))
    return [file for file in files if _MARK in file.read_text(encoding="utf-8")]
