"""How every plot of a report looks, and how it becomes SVG or PNG."""

# The letters are the paper's: ruff: noqa: RUF001

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.analysis.curve import Array
from distill.analysis.probe import Levels
from service.bundle import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Ink stands for the page's own text colour, so that a plot reads on a light and a dark page.
INK = "#0a0b0c"
# Legible on white and on near-black alike.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#3a7bd5", "#d9722e", "#2e9e74", "#9166cc", "#8a8f98"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, "#c9477a", "#8c7a2b", "#3aa6b9", GREY)


@contextmanager
def style() -> Iterator[None]:
    """Inside, figures are made and saved in the report's style."""
    import matplotlib as mpl

    settings: Any = {  # matplotlib types each key: too much for a merged dict
        "font.size": 9.5,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.22,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.8,
        "lines.markersize": 4.5,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "svg.fonttype": "path",
        "svg.hashsalt": "sid",  # the same numbers give the same file
    }
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "grid.color")
    settings |= dict.fromkeys((*inked, "xtick.color", "ytick.color"), INK)
    with mpl.rc_context(settings):
        yield


def new_figure(width: float = 7.6, height: float = 3.6) -> "Figure":
    """An empty figure, in inches of 72 points."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def to_svg(figure: "Figure") -> str:
    """A figure as an <svg> element for a page, in the page's own text colour."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # The page gives the width; the height follows from the viewBox.
    return re.sub(r'<svg ([^>]*?)height="[^"]*"([^>]*?)width="[^"]*"', r"<svg \1\2", svg, count=1)


def save_png(path: Path, figure: "Figure") -> None:
    """Save a figure as a PNG on white."""
    write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=130, facecolor="white")
    )


def noise_axis(axes: "Axes", levels: Levels) -> None:
    """Make the x axis noise levels, the ones that training leaves out shaded."""
    import numpy as np

    sigmas = levels.sigmas
    axes.set_xscale("log")
    axes.set_xlabel("noise level σ")
    axes.set_xlim(sigmas[0] / 1.3, sigmas[-1] * 1.3)
    if not levels.trained.all():
        first = int(np.argmin(levels.trained))
        edge = float(np.sqrt(sigmas[first - 1] * sigmas[first]))
        axes.axvspan(edge, sigmas[-1] * 1.3, color=GREY, alpha=0.16, linewidth=0)


def line(axes: "Axes", levels: Levels, values: Array, label: str, color: str) -> None:
    """Draw values [L] over the noise levels."""
    axes.plot(levels.sigmas, values, "o-", color=color, label=label)


def plain(text: str) -> str:
    """A name for a legend as it stands: matplotlib reads $ as a formula, _ as hidden."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
