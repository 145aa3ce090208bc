"""An image of what `sid bench --json FILE` wrote: latency percentiles of each load, and rates.

.venv/bin/python tests/compare/plot_bench.py bench.json bench.png
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

TICKS = (0, 50, 90, 99, 99.9, 99.99)


def draw(reports: list[dict[str, Any]], file: Path, title: str) -> None:
    """Left the latency of good answers, right how many there were a second."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(title)
    curves, rates = figure.subplots(1, 2, width_ratios=[3, 2])
    for number, report in enumerate(reports):
        colour = colormaps["viridis"](0.9 * number / max(len(reports) - 1, 1))
        percents, seconds = zip(*report["curve"] or [(0, math.nan)], strict=True)
        curves.plot(
            [nines(percent) for percent in percents], [1000 * second for second in seconds],
            "-" if report["mode"] == "closed" else "--", color=colour, label=report["label"],
        )  # fmt: skip
        rates.barh(number, report["requests_per_second"], color=colour)
    curves.set(title="Latency of good answers", xlabel="percentile", ylabel="ms", yscale="log")
    curves.set_xticks([nines(tick) for tick in TICKS], [f"{tick:g}" for tick in TICKS])
    curves.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    curves.yaxis.set_major_formatter("{x:g}")
    curves.yaxis.set_minor_formatter(NullFormatter())
    curves.grid(visible=True, alpha=0.3)
    curves.legend(title="load (dashed: open loop)")
    rates.set(title="Good answers a second", xlabel="requests/s")
    rates.set_yticks(range(len(reports)), [report["label"] for report in reports])
    rates.invert_yaxis()
    figure.savefig(file, dpi=120)


def nines(percent: float) -> float:
    """0 at 0 %, 1 at 90 %, 2 at 99 %: as wide as it is rare."""
    return -math.log10(1 - percent / 100)


if __name__ == "__main__":
    written = json.loads(Path(sys.argv[1]).read_text())
    draw(written["reports"], Path(sys.argv[2]), f"POST {written['target']['url']}")
