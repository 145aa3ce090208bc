"""Reports as a picture: each load's latency percentiles, and what became of its requests."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from service.bench.report import Report
from service.bench.target import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
_TICKS = (0, 50, 90, 99, 99.9, 99.99, 99.999)
_STEPS = (1, 2, 5)  # of a decade, where the axis of time has its numbers
_REFUSED, _FAILED = "#b8b8b8", "#c8102e"


def check(file: Path) -> None:
    """Raise BenchError when no picture of that name can be drawn here."""
    if file.suffix not in SUFFIXES:
        raise BenchError(f"{file}: a plot is a file {' or '.join(SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BenchError("--plot needs matplotlib, which `make setup-dev` installs") from error


def draw(loads: Sequence[tuple[str, Report]], file: Path, title: str) -> None:
    """Draw labelled reports into a .png or .svg file.

    Left, the latency of good answers: the further right, the rarer; a line ends where it has no
    more answers to speak for it. Right, the rates of good, refused and failed requests.
    """
    check(file)
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    curves, rates = figure.subplots(1, 2, width_ratios=[3, 2])
    colours = [colormaps["viridis"](0.9 * i / max(len(loads) - 1, 1)) for i in range(len(loads))]
    for (label, report), colour in zip(loads, colours, strict=True):
        _draw_curve(curves, label, report, colour)
    _label_curves(curves, [report for _, report in loads])
    _draw_rates(rates, loads, colours)
    figure.savefig(file, dpi=120)


def _draw_curve(axes: "Axes", label: str, report: Report, colour: tuple[float, ...]) -> None:
    nines = [_nines(percent) for percent, _ in report.curve]
    milliseconds = [seconds * 1000 for _, seconds in report.curve]
    style = "-" if report.mode == "closed" else "--"
    axes.plot(
        nines,
        milliseconds,
        style,
        color=colour,
        label=label,
        linewidth=2,
        marker="o",
        markevery=[-1],
    )


def _label_curves(axes: "Axes", reports: Sequence[Report]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_title("Latency of good answers")
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds (log scale)")
    axes.set_xlabel("percentile")
    last = max((report.curve[-1][0] for report in reports if report.curve), default=99.0)
    ticks = [tick for tick in _TICKS if tick <= max(last, 99)]
    axes.set_xticks([_nines(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    times = [seconds * 1000 for report in reports for _, seconds in report.curve]
    axes.set_ylim(_step_below(min(times, default=1)), _step_above(max(times, default=1)))
    axes.yaxis.set_major_locator(LogLocator(subs=_STEPS))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="major", alpha=0.4)
    axes.grid(visible=True, which="minor", axis="y", alpha=0.15)
    if any(report.curve for report in reports):
        axes.legend(title="load (dashed: open loop)")


def _draw_rates(
    axes: "Axes", loads: Sequence[tuple[str, Report]], colours: Sequence[tuple[float, ...]]
) -> None:
    rows = range(len(loads))
    reports = [report for _, report in loads]
    good = [r.requests_per_second for r in reports]
    refused = [_refused(r) / r.duration for r in reports]
    failed = [(sum(r.errors.values()) + r.not_sent) / r.duration for r in reports]
    axes.barh(rows, good, color=colours)
    axes.barh(rows, refused, left=good, color=_REFUSED, label="refused")
    offsets = [a + b for a, b in zip(good, refused, strict=True)]
    axes.barh(rows, failed, left=offsets, color=_FAILED, label="no answer, or not sent")
    widest = max((a + b for a, b in zip(offsets, failed, strict=True)), default=0.0)
    for row, report in enumerate(reports):
        end = offsets[row] + failed[row]
        text = f"{report.requests_per_second:.0f} requests/s"
        if report.images_per_request > 1:
            text += f"\n{report.images_per_second:.0f} images/s"
        axes.annotate(text, (end, row), (4, 0), textcoords="offset points", va="center")
    axes.set_title("Good answers a second")
    axes.set_xlabel("requests/s")
    axes.set_xlim(0, max(widest * 1.5, 1))  # room for the numbers at the bars' ends
    axes.set_yticks(rows, [label for label, _ in loads])
    axes.invert_yaxis()
    if any(refused) or any(failed):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)


def _refused(report: Report) -> int:
    return sum(count for status, count in report.statuses.items() if not 200 <= status < 300)


def _step_below(value: float) -> float:
    decade = math.pow(10, math.floor(math.log10(value)))
    return max((step * decade for step in _STEPS if step * decade <= value), default=decade)


def _step_above(value: float) -> float:
    decade = math.pow(10, math.floor(math.log10(value)))
    return min(step * decade for step in (*_STEPS, 10) if step * decade > value)


def _nines(percent: float) -> float:
    """0 at 0 %, 1 at 90 %, 2 at 99 %: as wide as it is rare."""
    return -math.log10(1 - percent / 100)
