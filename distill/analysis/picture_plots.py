"""Pictures for a report: strips of pairs, sample grids, and the classes' bars."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.analysis.pictures import ClassComparison, Pictures
from distill.analysis.plotting import BLUE, GREY, ORANGE, new_figure
from distill.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]


def pair_strip(pictures: Pictures, chosen: NDArray[np.int64], gap: int = 2) -> Pixels:
    """Teacher's pictures above the generator's, seed by seed: uint8 [H, W, C].

    Args:
        pictures: of both networks.
        chosen: which seeds, in order from left to right.
        gap: pixels between two pictures, mid-grey.
    """
    rows = []
    for side in (pictures.teacher, pictures.generator):
        tiles = np.pad(
            side[chosen].numpy(), ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=128
        )
        rows.append(np.concatenate(list(tiles), axis=1))
    return np.concatenate(rows, axis=0)


def most_different(
    comparison: ClassComparison, labels: NDArray[np.int64], per_class: int = 2
) -> NDArray[np.int64]:
    """The pairs of each class that lie furthest apart, class after class."""
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = np.argsort(-comparison.pair_distances[members], kind="stable")
        chosen.append(members[order[:per_class]])
    return np.concatenate(chosen)


def png_uri(pixels: Pixels, scale: int = 1) -> str:
    """Pixels [H, W, C] as a data: URI of a PNG, each enlarged to scale x scale."""
    large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(large.squeeze()).save(buffer, format="PNG", optimize=True)
    return _uri(buffer.getvalue())


def grid_uri(path: Path, most_pixels: int = 640) -> str:
    """A sample grid's file as a data: URI of a PNG, halved until it is narrow enough to embed.

    Raises:
        UserError: the file is no picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
            factor = max(1, -(-image.width // most_pixels))
            small = image if factor == 1 else image.reduce(factor)
            buffer = io.BytesIO()
            small.save(buffer, format="PNG", optimize=True)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no readable picture ({error}): remove it") from None
    return _uri(buffer.getvalue())


def grid_caption(path: Path) -> str:
    """What a sample grid's file name says: 0000016.1.png is after 16.1 thousand images."""
    try:
        return f"after {float(path.stem):g} thousand images"
    except ValueError:
        return path.stem


def plot_classes(comparison: ClassComparison, classes: list[str]) -> "Figure":
    """Accuracy, distance of the means and variety of each class."""
    told = not np.isnan(comparison.generator_accuracy).all()
    figure = new_figure(7.6, 1.1 + 0.3 * len(classes))
    panels = list(np.atleast_1d(figure.subplots(1, 3 if told else 2, sharey=True)))
    places = np.arange(len(classes))
    if told:
        axes = panels.pop(0)
        teacher, ours = comparison.teacher_accuracy * 100, comparison.generator_accuracy * 100
        axes.hlines(places, teacher, ours, color=GREY, linewidth=1)
        axes.plot(teacher, places, "o", color=ORANGE, label="teacher")
        axes.plot(ours, places, "o", color=BLUE, label="generator")
        axes.set_xlabel("taken for the class asked for, %")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    panels[0].barh(places, comparison.mean_distance, 0.55, color=BLUE)
    panels[0].set_xlabel("means apart,\nof the teacher's spread")
    panels[1].axvline(1, color=ORANGE, linestyle="--", linewidth=1.2)
    panels[1].plot(comparison.variety, places, "o", color=BLUE)
    panels[1].set_xlabel("variety,\ntimes the teacher's")
    first = figure.axes[0]
    first.set_yticks(places, classes, parse_math=False)
    first.invert_yaxis()
    return figure


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
