"""Plots of an adversarial run: what its discriminator tells, and what the generator follows."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from distill.analysis.plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, new_figure
from distill.analysis.scalars import ACCURACIES, PARTS, Series

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_discriminator(scalars: Mapping[str, Series]) -> "Figure":
    """Its accuracy on real and on generated images, and the parts of the generator's loss."""
    figure = new_figure(7.6, 3.6)
    left, right = figure.subplots(1, 2)
    for (which, name), color in zip(ACCURACIES.items(), (BLUE, ORANGE), strict=True):
        left.plot(scalars[name].images, scalars[name].values, color=color, label=f"on {which}")
    left.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
    left.set(ylim=(0, 1), xlabel="images seen", title="the discriminator's accuracy")
    left.legend()
    for (label, name), color in zip(PARTS.items(), (BLUE, PURPLE, GREEN), strict=True):
        if name in scalars:  # not while the generator rests
            right.plot(scalars[name].images, scalars[name].values, color=color, label=label)
    right.set(xlabel="images seen", title="parts of the generator's loss")
    if right.lines:
        right.legend()
    return figure
