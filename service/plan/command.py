"""What `sid plan` and `sid bench --curve` do: read, compute, write."""

import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from service.plan import PlanError
from service.plan.arrivals import SHAPES
from service.plan.curve import Curve, read_curve, write_curve
from service.plan.measure import measure_curve
from service.plan.output import as_json, as_values, table
from service.plan.search import Wish, make_plan
from service.priority import PRIORITIES, PRIORITY_NAMES, Priority
from service.settings import Settings

STDOUT = Path("-")
_IDLE = 0.5  # processes that want to run


def curve(
    settings: Settings, model: str | None, file: Path, *, warmup: float, duration: float
) -> None:
    """Measure a curve and write it.

    Raises:
        PlanError: it cannot be measured or written.
        BundleError, EngineError, UnknownModelError: the model cannot be opened.
    """
    if not file.parent.is_dir():  # before minutes of measuring
        raise PlanError(f"{file.parent}: there is no such folder")
    if not (duration > 0 and warmup >= 0):
        raise PlanError("--duration is above 0 and --warmup at least 0")
    measured = measure_curve(settings, model, warmup=warmup, duration=duration)
    write_curve(measured, file)
    if measured.machine.load > _IDLE:
        print(
            f"{measured.machine.load:g} other processes wanted to run in the minute before: "
            "a busy machine seems slow, so measure again on an idle one",
            file=sys.stderr,
        )


def plan(
    file: Path,
    *,
    rate: float,
    p99_ms: float,
    shape: str,
    mix: str | None,
    price: float | None,
    json_file: Path | None,
    values_file: Path | None,
) -> None:
    """Plan for a wish on a curve; print and write the plan.

    Raises:
        PlanError: the curve is none, the wish cannot be met, or a file cannot be written.
    """
    if shape not in SHAPES:
        raise PlanError(f"--arrivals: {shape} is not one of {', '.join(SHAPES)}")
    measured = read_curve(file)
    wish = Wish(rate, p99_ms / 1000, shape, price)
    if mix is not None:
        wish = replace(wish, mix=_shares(mix))
    fewest = make_plan(measured, wish)
    Console(stderr=STDOUT in (json_file, values_file)).print(table(fewest, wish))
    for text, target in (
        (as_json(fewest, wish, measured) + "\n", json_file),
        (as_values(fewest, wish, measured), values_file),
    ):
        if target is not None:
            _write(text, target)
    if lacking := _lacking(measured):
        print(
            f"{file} does not say {lacking}, so the times are too hopeful: measure it again with "
            "`sid bench --curve`",
            file=sys.stderr,
        )


def _lacking(curve: Curve) -> str:
    """What an older curve says nothing of; "" of one that is complete."""
    if curve.format == 1:
        return "what a pause costs a slot and the event loop (format 1)"
    if curve.course is None:
        return "whether slow batches come together (no course)"
    return "" if curve.served else "what HTTP takes from the engine (no served)"


def _shares(text: str) -> dict[Priority, float]:
    """The shares that `interactive=0.7,bulk=0.3` says, the highest priority first."""
    shares: dict[Priority, float] = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        priority = PRIORITIES.get(name.strip())
        if priority is None:
            raise PlanError(f"--mix: {name.strip()!r} is no priority; {PRIORITY_NAMES} is expected")
        if priority in shares:
            raise PlanError(f"--mix: {priority} is there twice")
        try:
            shares[priority] = float(number)
        except ValueError:
            expected = f"a share is expected, as in {priority}=0.7"
            raise PlanError(f"--mix: {part.strip()!r}: {expected}") from None
    return dict(sorted(shares.items()))


def _write(text: str, file: Path) -> None:
    if file == STDOUT:
        print(text, end="")
        return
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PlanError(f"{file}: {error.strerror}") from error
