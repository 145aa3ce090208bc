"""Plots of a probe: each part of the loss, its gradient and the score gap by noise level."""

# The letters are the paper's: ruff: noqa: RUF001

from typing import TYPE_CHECKING

import numpy as np

from distill.analysis.curve import Array
from distill.analysis.decomposition import Products
from distill.analysis.plotting import (
    BLUE,
    COLORS,
    GREY,
    INK,
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

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.2, 1.5)
IDENTITY, SQUARED = "score identity", "− α · squared gap"


def plot_terms(probe: Probe, alpha: float) -> "Figure":
    """Both parts of the generator's loss and their sum: means an element."""
    figure = new_figure()
    axes = figure.add_subplot()
    identity, squared = probe.mean("identity"), -alpha * probe.mean("squared")
    axes.axhline(0, color=GREY, linewidth=0.8)
    line(axes, probe.levels, identity, IDENTITY, BLUE)
    line(axes, probe.levels, squared, SQUARED, ORANGE)
    line(axes, probe.levels, identity + squared, "loss", INK)
    noise_axis(axes, probe.levels)
    axes.set_ylabel("mean an element")
    axes.legend()
    return figure


def plot_gradients(levels: Levels, gradient: Products, signal: Products, alpha: float) -> "Figure":
    """What each part sends to the picture: its size at one draw of noise, and averaged over it."""
    figure = new_figure(7.6, 3.8)
    both = figure.subplots(1, 2, sharey=True)
    for axes, products, title in (
        (both[0], gradient, "at one draw of noise"),
        (both[1], signal, "what noise does not average away"),
    ):
        parts = (
            (np.sqrt(np.maximum(products.identity, 0)), IDENTITY, BLUE),
            (abs(alpha) * np.sqrt(np.maximum(products.squared, 0)), SQUARED, ORANGE),
            (products.norm(alpha), "whole loss", INK),
        )
        for values, label, color in parts:
            if (values > 0).any():
                line(axes, levels, np.where(values > 0, values, np.nan), label, color)
        axes.set_yscale("log")
        noise_axis(axes, levels)
        axes.set_title(title)
    both[0].set_ylabel("gradient to a pixel, rms")
    both[0].legend()
    return figure


def plot_gap(probe: Probe) -> "Figure":
    """The score gap, and how well each denoiser knows the generator's pictures."""
    figure = new_figure(7.6, 3.6)
    left, right = figure.subplots(1, 2)
    line(left, probe.levels, probe.mean("gap"), "", PURPLE)
    left.set_ylabel("E[(a − b)² / w]")
    left.set_title("score gap")
    line(right, probe.levels, probe.mean("teacher_loss"), "teacher φ", ORANGE)
    line(right, probe.levels, probe.mean("fake_loss"), "fake score ψ", BLUE)
    right.set_ylabel("λ(σ) (D(x + σε) − x)², mean")
    right.set_title("denoising the generator's pictures")
    right.legend()
    for axes in (left, right):
        axes.set_yscale("log")
        noise_axis(axes, probe.levels)
    return figure


def plot_class_gap(levels: Levels, gaps: Array, classes: list[str]) -> "Figure":
    """Heat map of the score gap [K, L] by class and noise level, relative to the level's mean."""
    from matplotlib.colors import TwoSlopeNorm

    relative = gaps / np.nanmean(gaps, axis=0)
    top = float(np.nanmax(relative))
    figure = new_figure(7.6, 1.3 + 0.24 * len(classes))
    axes = figure.add_subplot()
    norm = TwoSlopeNorm(1.0, vmin=min(0.0, float(np.nanmin(relative))), vmax=max(top, 1.01))
    image = axes.imshow(relative, aspect="auto", cmap="PuOr_r", norm=norm)
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    axes.set_xticks(range(len(levels.sigmas)), [f"{sigma:.2g}" for sigma in levels.sigmas])
    axes.tick_params(axis="x", labelrotation=45)
    axes.set_xlabel("noise level σ")
    axes.grid(visible=False)
    if not levels.trained.all():
        axes.axvline(float(levels.trained.sum()) - 0.5, color=INK, linestyle=":", linewidth=1.2)
    figure.colorbar(image, ax=axes, label="times the level's mean", shrink=0.9)
    return figure


def plot_alphas(levels: Levels, products: Products, alpha: float) -> "Figure":
    """How the gradient's size and direction would change with alpha, at these networks."""
    import matplotlib as mpl

    figure = new_figure(7.6, 3.8)
    left, right = figure.subplots(1, 2)
    colors = mpl.colormaps["cool"]
    base = products.norm(0.0)
    for i, other in enumerate(ALPHAS):
        color = mpl.colors.to_hex(colors(i / (len(ALPHAS) - 1)))
        ratio = np.divide(
            products.norm(other), base, out=np.full_like(base, np.nan), where=base > 0
        )
        label = f"α = {other:g}" + (" (this run)" if other == alpha else "")
        line(left, levels, ratio, label, color)
        line(right, levels, products.cosine(other, alpha), label, color)
    left.set_ylabel("size, times that of α = 0")
    left.set_title("size of the gradient")
    right.set_ylabel(f"cosine with α = {alpha:g}")
    right.set_title("its direction")
    left.legend(ncols=2)
    for axes in (left, right):
        noise_axis(axes, levels)
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
