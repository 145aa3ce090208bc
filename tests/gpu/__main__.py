"""Checks and measures the product on one NVIDIA card, in at most eight minutes.

    python -m tests.gpu                # from a checkout; writes runs/gpu/<card>.json and .md
    python -m tests.gpu --toy          # the same code on the CPU at toy size: it works, no figures
    python -m tests.gpu --only compiled    # apart, for compiling takes minutes

A bare machine (torch, numpy, onnx; no pip, no network) lacks pydantic and others. Collect them on
a machine that has pip, take the folder along, and name it:

    python -m tests.gpu --carry runs/carried --python 3.12
    PYTHONPATH=runs/carried python -m tests.gpu

onnxruntime-gpu, which is large, is not among them: `pip install --target` takes it there too.

Sections that still lack something say so in one line and are left out. The exit status is 0 unless
a check failed, a section broke or all were left out; an aim that is missed is shown in the table
and is no failure.
"""

import argparse
import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.gpu.child import work
from tests.gpu.report import as_json, as_markdown
from tests.gpu.runner import Outcome, run_section

# A process of its own looks for the card: in this one CUDA is never started.
_LOOK = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"

_TOY_PATIENCE = 5  # times the limits: nothing is measured, and the machine may be busy


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--toy", action="store_true", help="on the CPU, at toy size")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for the report")
    parser.add_argument("--only", action="append", metavar="SECTION", help="may be repeated")
    parser.add_argument("--carry", type=Path, metavar="FOLDER", help="collect what is missing")
    parser.add_argument("--python", default="3.12", help="for --carry: the other machine's")
    parser.add_argument("--sections", default="tests.gpu.sections", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("results", nargs="?", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.carry:
        from tests.gpu.carry import carry  # here: a bare machine lacks what it needs

        carry(given.carry, given.python)
        return
    sections = {one.name: one for one in importlib.import_module(given.sections).SECTIONS}
    if given.child:
        work(sections[given.child], given.results, toy=given.toy)
        return
    if unknown := set(given.only or ()) - set(sections):
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {', '.join(sections)}")
    card = "toy size on the CPU" if given.toy else find_card()
    given.out.mkdir(parents=True, exist_ok=True)
    # As an exception, so that the section that runs is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    outcomes: list[Outcome] = []
    command = [sys.executable, "-m", "tests.gpu", "--sections", given.sections]
    command += ["--toy"] if given.toy else []
    usual = [name for name, one in sections.items() if given.toy or not one.apart]
    for name in given.only or usual:
        limit = sections[name].seconds * (_TOY_PATIENCE if given.toy else 1)
        outcomes.append(run_section(sections[name], [*command, "--child", name], limit))
        # After each, so that whoever ends the kit early has what was measured so far.
        write(given.out, card, outcomes)
    for outcome in outcomes:
        print(f"{outcome.section.name}: {outcome.status} ({outcome.seconds:.0f} s)")
    failed = any(outcome.failed for outcome in outcomes)
    sys.exit(failed or all(outcome.skipped for outcome in outcomes))


def find_card() -> str:
    """The name of the card; ends the program with one line where there is none."""
    found = subprocess.run(
        [sys.executable, "-c", _LOOK], capture_output=True, text=True, timeout=120
    )
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["no message"])[-1]
        sys.exit(f"torch cannot be asked for a card: {reason}")
    return found.stdout.strip() or sys.exit(
        "no NVIDIA card that torch can use is here: nothing was checked. `python -m tests.gpu "
        "--toy` (make gpu TOY=1) runs the same code on the CPU at toy size, which shows that it "
        "works and measures nothing"
    )


def write(folder: Path, card: str, outcomes: list[Outcome]) -> None:
    """Write the report, in files of the card's own: figures of two cards never mix."""
    stem = "-".join("".join(c if c.isalnum() else " " for c in card.lower()).split())
    (folder / f"{stem}.json").write_text(json.dumps(as_json(card, outcomes), indent=1) + "\n")
    (folder / f"{stem}.md").write_text(as_markdown(card, outcomes))


if __name__ == "__main__":
    main()
