"""A virtual environment of a program that has nothing of the server: pip, httpx, what that needs.

httpx is taken from the tests' own environment, so that pip finds it there already and asks no
index for it. By itself: `python -m tests.fresh_venv FOLDER`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


def fresh_venv(folder: Path) -> Path:
    """Make it; returns its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    for one in {one.name: one for one in _with_needs("httpx")}.values():
        for top in {file.parts[0] for file in one.files} - {"..", "__pycache__"}:
            (packages / top).symlink_to(one.locate_file(top))
    return folder / "bin" / "python"


def run_in(python: Path, *arguments: str | Path, cwd: Path) -> str:
    """Run its interpreter, without our sources in its path and an index for pip; returns stdout."""
    kept = {name: it for name, it in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, *arguments],
        cwd=cwd,
        env=kept | {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _with_needs(name: str) -> Iterator[Distribution]:
    found = distribution(name)
    yield found
    for needed in map(Requirement, found.requires or ()):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            yield from _with_needs(needed.name)


if __name__ == "__main__":
    fresh_venv(Path(sys.argv[1]))
