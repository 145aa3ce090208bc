"""What `make` prints of itself: short lines, that nobody takes for an error."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
LONGEST = 80  # of a terminal's line


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_prints_no_long_command(tmp_path, target):
    """Every recipe runs, with programs in the environment's place that do nothing."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    programs = ["python", "pip", "pytest", "sid", "ruff", "mypy", "lint-imports"]
    for environment in (".venv", ".venv-newest"):
        (tmp_path / environment / "bin").mkdir(parents=True)
        for name in programs:
            (tmp_path / environment / "bin" / name).symlink_to(shutil.which("true"))
    made = subprocess.run(
        ["make", "--no-print-directory", "PYTHON=true", target],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (made.returncode, made.stderr) == (0, "")
    for line in made.stdout.splitlines():  # of `make help` they are its text
        assert target == "help" or len(line) <= LONGEST, line
        assert not re.search(r"\b(touch|sys\.exit|OMP_NUM_THREADS)\b", line), line


@pytest.mark.parametrize("target", ["run", "run-triton"])
def test_a_port_is_named_only_where_it_is_given(target, monkeypatch):
    """`make run` would take the place of SID_PORT otherwise."""
    monkeypatch.delenv("PORT", raising=False)

    def commands(*words):
        made = ["make", "--dry-run", "--always-make", target, *words]
        return subprocess.check_output(made, cwd=ROOT, text=True)

    assert "--port" not in commands()
    assert "--port 9000" in commands("PORT=9000")
