"""Plots of a probe: the score gap and the denoising losses by noise level."""

# The letters are the paper's: ruff: noqa: RUF001

from typing import TYPE_CHECKING

from distill.analysis.curve import Array
from distill.analysis.plotting import (
    BLUE,
    COLORS,
    ORANGE,
    PURPLE,
    line,
    new_figure,
    noise_axis,
    plain,
)
from distill.analysis.probe import Levels, Probe

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_gap(probe: Probe) -> "Figure":
    """The score gap, and how well each denoiser knows the generator's images."""
    figure = new_figure(7.6, 3.6)
    left, right = figure.subplots(1, 2)
    line(left, probe.levels, probe.gap.mean(axis=1), "", PURPLE)
    left.set_ylabel("E[(a − b)² / w]")
    left.set_title("score gap")
    line(right, probe.levels, probe.teacher_loss.mean(axis=1), "teacher φ", ORANGE)
    line(right, probe.levels, probe.fake_loss.mean(axis=1), "fake score ψ", BLUE)
    right.set_ylabel("λ(σ) (D(x + σε) − x)², mean")
    right.set_title("denoising the generator's images")
    right.legend()
    for axes in (left, right):
        axes.set_yscale("log")
        noise_axis(axes, probe.levels)
    return figure


def plot_gaps(gaps: dict[str, tuple[Levels, Array]]) -> "Figure":
    """Several runs' score gaps by noise level."""
    figure = new_figure(7.6, 3.8)
    axes = figure.add_subplot(yscale="log")
    for i, (name, (levels, values)) in enumerate(gaps.items()):
        axes.plot(levels.sigmas, values, "o-", color=COLORS[i % len(COLORS)], label=plain(name))
    noise_axis(axes, next(iter(gaps.values()))[0])
    axes.set_ylabel("E[(a − b)² / w]")
    axes.legend()
    return figure
