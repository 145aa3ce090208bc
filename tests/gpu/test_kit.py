"""The kit itself: it runs whole at toy size, and no section harms another."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.gpu.carry import THERE_ALREADY, WANTED, with_requirements
from tests.gpu.report import as_json, as_markdown, table
from tests.gpu.runner import ROOT, Outcome
from tests.gpu.section import Row, Section
from tests.gpu.sections import AIMS_FOR, SECTIONS
from tests.service.waiting import until

# What only a card can show: the toy leaves these rows out, and says so.
CARD_ONLY = {
    "correctness": {"seeds", "losses float16"},
    "training": {"replays", "teacher replays", "waits", "teacher waits"},
    "gateway": {"float16 busy", "float32 busy"},
}
PAGE = ROOT / "docs" / "results" / "gpu.md"


def environment(*paths: Path) -> dict[str, str]:
    """Of a machine without a card, with these folders before the tree on Python's path."""
    path = os.pathsep.join(map(str, (*paths, ROOT)))
    return os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def kit(*arguments: object, paths: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.gpu", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(*paths), capture_output=True, text=True
    )


def reports(folder: Path) -> tuple[dict, str]:
    (written,) = folder.glob("*.json")
    return json.loads(written.read_text()), written.with_suffix(".md").read_text()


@pytest.mark.long
@pytest.mark.slow
def test_every_section_passes_at_toy_size_and_fills_its_rows(tmp_path):
    done = kit("--toy", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report, page = reports(tmp_path)
    assert report["machine"]["torch"]
    assert list(report["sections"]) == [section.name for section in SECTIONS]
    for section in SECTIONS:
        got = report["sections"][section.name]
        assert got["status"] == "passed"
        missing = {row.key for row in section.rows} - set(got["rows"])
        assert missing == CARD_ONLY.get(section.name, set())
        assert not missing or got["notes"]
        assert all(f"| {row.title} |" in page for row in section.rows)
    # Without a card each test that needs one is skipped, and there are some.
    tests = report["sections"]["marked_tests"]["rows"]["failed"]["details"]
    assert tests["skipped"] == tests["tests"] > 0


OWN_SECTIONS = """
from tests.gpu.section import Row, Section

ROWS = (Row("one", "a row", at_most=1, must=True),)
SECTIONS = [
    Section(f"own_{name}", name, seconds, ("json",), ROWS)
    for name, seconds in [
        ("raises", 60), ("hangs", 3), ("dies", 60),
        ("is_out_of_bounds", 60), ("works", 60)
    ]
]
"""
OWN = {
    "own_sections": OWN_SECTIONS,
    "own_raises": "def run(record): record.row('one', 1); raise ValueError('no such kernel')",
    "own_hangs": """
import subprocess, sys, time
from pathlib import Path

def run(record):
    record.row("one", 0.5)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    Path(__file__).with_name("pid").write_text(str(child.pid))
    time.sleep(3600)
""",
    "own_dies": "import os\ndef run(record): record.row('one', 1); os.abort()",
    "own_is_out_of_bounds": "def run(record): record.row('one', float('nan'))",
    "own_works": "def run(record): record.row('one', 1, GiB=2)",
}


@pytest.mark.slow
def test_a_section_that_raises_hangs_or_dies_leaves_the_others_unharmed(tmp_path):
    for name, text in OWN.items():
        (tmp_path / f"{name}.py").write_text(text)
    out = tmp_path / "out"
    done = kit("--toy", "--out", out, "--sections", "own_sections", paths=(tmp_path,))
    assert done.returncode == 1
    sections = reports(out)[0]["sections"]
    assert list(sections) == list(OWN)[1:]
    assert sections["own_raises"]["status"] == "exit status 1: ValueError: no such kernel"
    assert sections["own_hangs"]["status"] == "killed at its limit of 15 s"
    assert sections["own_dies"]["status"].startswith("ended by SIGABRT")
    assert sections["own_is_out_of_bounds"]["status"] == "out of bounds: a row"
    assert sections["own_works"]["status"] == "passed"
    # What was measured before the end is kept.
    values = [sections[name]["rows"]["one"]["value"] for name in list(OWN)[1:4]]
    assert values == [1, 0.5, 1]
    # What a section had started is gone with it.
    pid = int((tmp_path / "pid").read_text())
    until(lambda: is_gone(pid))


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"  # dead, and nobody has asked for its status


# Loaded by Python itself as it starts, so that the sections' own processes lack them too.
BARE = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.mark.long
def test_on_a_bare_machine_each_section_says_in_one_line_what_it_lacks(tmp_path):
    there = {"torch", "numpy"}
    missing = {name for section in SECTIONS for name in section.needs} - there
    missing |= {"onnxruntime", "onnxscript", "packaging"}
    (tmp_path / "sitecustomize.py").write_text(BARE.format(names=missing))
    done = kit("--toy", "--out", tmp_path / "out", paths=(tmp_path,))
    assert done.returncode == 0, done.stdout + done.stderr
    report, page = reports(tmp_path / "out")
    assert report["sections"]["ceilings"]["status"] == "passed"
    for section in SECTIONS:
        lacks = [name for name in section.needs if name in missing]
        status = report["sections"][section.name]["status"]
        if lacks:
            assert status.startswith(f"skipped: needs {', '.join(lacks)}: carry it"), status
            assert status in page
        else:
            assert status == "passed"


def test_without_a_card_it_says_so_in_one_line_and_fails(tmp_path):
    done = kit("--out", tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"no NVIDIA card .*--toy.*\n", done.stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ended_from_outside_it_ends_the_section_that_runs(tmp_path):
    (tmp_path / "own_sections.py").write_text(OWN_SECTIONS.replace('("raises", 60), ', ""))
    (tmp_path / "own_hangs.py").write_text(OWN["own_hangs"])
    command = [sys.executable, "-m", "tests.gpu", "--toy", "--sections", "own_sections"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)], cwd=ROOT, env=environment(tmp_path)
    )
    pid = tmp_path / "pid"
    until(lambda: pid.exists() and pid.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait() != 0
    until(lambda: is_gone(int(pid.read_text())))


def test_the_limits_add_up_to_less_than_eight_minutes():
    assert sum(section.seconds for section in SECTIONS if not section.apart) < 8 * 60


def outcome(value: float, **details) -> Outcome:
    rows = (Row("speed", "the speed", before="246", at_least=650), Row("other", "never measured"))
    line = {"row": "speed", "value": value, "details": details}
    return Outcome(Section("x.y", "Part", 1, (), rows), [line], 1.0, None, skipped=False)


@pytest.mark.parametrize(
    ("card", "value", "judged"),
    [
        ("NVIDIA H200", 700, "met"),
        ("NVIDIA H100 80GB HBM3", 600, "**missed**"),
        ("NVIDIA L4", 700, "-"),  # the aims were not set for it
    ],
)
def test_an_aim_is_judged_on_the_cards_that_it_is_for_and_missing_it_is_no_failure(
    card, value, judged
):
    measured = outcome(value, GiB=38.25)
    assert f"| the speed | {value} images/s, GiB 38.2 | 246 | at least 650 | {judged} |" in (
        as_markdown(card, [measured])
    )
    assert not measured.failed


def test_figures_stand_below_the_name_of_the_card_that_they_are_of():
    text = table("NVIDIA H100", outcome(700).section, outcome(700))
    assert "| | NVIDIA H100 | NVIDIA H200, " in text
    assert "| never measured | not measured | - | - | - |" in text
    assert as_json("NVIDIA H100", [outcome(700)])["card"] == "NVIDIA H100"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_the_page_of_the_results_has_every_row(section):
    text = PAGE.read_text()
    for row in section.rows:
        assert f"| {row.title} |" in text
    assert all(card in text for card in AIMS_FOR)


def test_what_is_carried_has_all_that_the_sections_need():
    carried = {*with_requirements(WANTED), *THERE_ALREADY}
    distributions = packages_distributions()
    for name in {name for section in SECTIONS for name in section.needs}:
        assert carried & {canonicalize_name(one) for one in distributions[name]}, name
