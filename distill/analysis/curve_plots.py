"""Plots of distance against images seen: of one run, and of several side by side."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from distill.analysis.curve import Curve, PowerLaw
from distill.analysis.plotting import BLUE, COLORS, INK, ORANGE, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_curve(
    curve: Curve, law: PowerLaw | None, from_images: float, teacher: float | None
) -> "Figure":
    """The points, the line fitted from `from_images` on, and the teacher's distance, log-log."""
    figure = new_figure(7.6, 4.2)
    axes = _log_log(figure, curve.features)
    axes.plot(curve.images, curve.distances, "o", color=BLUE, label="generator")
    if law is not None:
        ends = np.array([max(from_images, curve.images[0]), curve.images[-1]])
        label = f"slope {law.slope:.2f} (95 %: {law.low:.2f} to {law.high:.2f})"
        axes.plot(ends, law.factor * ends**law.slope, color=BLUE, label=label)
    if teacher is not None:
        axes.axhline(teacher, color=ORANGE, linestyle="--", label=f"teacher: {teacher:.2f}")
    axes.legend()
    return figure


def plot_variety(curve: Curve) -> "Figure":
    """Precision and recall against images seen, where they were measured."""
    figure = new_figure(7.6, 3.2)
    axes = figure.add_subplot(xscale="log")
    axes.set(xlabel="images seen in distillation", ylim=(0, 1))
    for name, values, color in (
        ("precision", curve.precisions, BLUE),
        ("recall", curve.recalls, ORANGE),
    ):
        measured = np.isfinite(values)
        axes.plot(curve.images[measured], values[measured], "o-", color=color, label=name)
    axes.legend()
    return figure


def plot_curves(
    curves: Mapping[str, Curve], laws: Mapping[str, PowerLaw], teacher: float | None
) -> "Figure":
    """Several runs' curves in one log-log plot, each with its fitted line where it has one."""
    figure = new_figure(7.6, 4.4)
    features = {curve.features for curve in curves.values()}
    axes = _log_log(figure, features.pop() if len(features) == 1 else None)
    for (name, curve), color in zip(curves.items(), _cycle(len(curves)), strict=True):
        label = plain(name)
        if name in laws:
            law = laws[name]
            ends = curve.images[[0, -1]]
            axes.plot(ends, law.factor * ends**law.slope, color=color, alpha=0.5, linewidth=1)
            label += f" (slope {law.slope:.2f})"
        axes.plot(curve.images, curve.distances, "o-", color=color, label=label, linewidth=1.2)
    if teacher is not None:
        axes.axhline(teacher, color=INK, linestyle="--", label=f"teacher: {teacher:.2f}")
    axes.legend()
    return figure


def _log_log(figure: "Figure", features: str | None) -> "Axes":
    from matplotlib.ticker import LogFormatter

    axes = figure.add_subplot(xscale="log", yscale="log")
    over = f" over {plain(features)}" if features else ""
    axes.set(xlabel="images seen in distillation", ylabel=f"Fréchet distance{over}")
    axes.grid(which="both", alpha=0.18)
    # 4, 6, 10, 20 rather than 4 x 10^0: within a decade or two the plain numbers read better.
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter())
    return axes


def _cycle(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)]
