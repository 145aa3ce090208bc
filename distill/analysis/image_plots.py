"""Images for a report: strips of pairs, sample grids, and the classes' bars."""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.analysis.paired_images import ClassComparison, PairedImages
from distill.analysis.plotting import BLUE, GREY, ORANGE, new_figure
from distill.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]


def pair_strip(images: PairedImages, chosen: NDArray[np.int64], gap: int = 2) -> Pixels:
    """Teacher's images above the generator's, seed by seed: uint8 [H, W, C].

    Args:
        images: of both networks.
        chosen: which seeds, in order from left to right.
        gap: pixels between two images, mid-grey.
    """
    rows = []
    for side in (images.teacher, images.generator):
        tiles = np.pad(
            side[chosen].numpy(), ((0, 0), (gap, 0), (gap, 0), (0, 0)), constant_values=128
        )
        rows.append(np.concatenate(list(tiles), axis=1))
    return np.concatenate(rows, axis=0)


def png_uri(pixels: Pixels, scale: int = 1) -> str:
    """Pixels [H, W, C] as a data: URI of a PNG, each enlarged to scale x scale."""
    large = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(large.squeeze()).save(buffer, format="PNG", optimize=True)
    return _uri(buffer.getvalue())


def grid_uri(path: Path, most_pixels: int = 640) -> str:
    """A sample grid's file as a data: URI of a PNG, halved until it is narrow enough to embed.

    Raises:
        UserError: the file is no image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            factor = max(1, -(-image.width // most_pixels))
            small = image if factor == 1 else image.reduce(factor)
            buffer = io.BytesIO()
            small.save(buffer, format="PNG", optimize=True)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no readable image ({error}): remove it") from None
    return _uri(buffer.getvalue())


def grid_caption(path: Path) -> str:
    """What a sample grid's file name says: 0000016.1.png is after 16.1 thousand images."""
    try:
        return f"after {float(path.stem):g} thousand images"
    except ValueError:
        return path.stem


def plot_classes(comparison: ClassComparison, classes: list[str]) -> "Figure":
    """Accuracy and variety of each class."""
    has_accuracy = not np.isnan(comparison.generator_accuracy).all()
    figure = new_figure(7.6, 1.1 + 0.3 * len(classes))
    panels = list(figure.subplots(1, 1 + has_accuracy, sharey=True, squeeze=False)[0])
    places = np.arange(len(classes))
    if has_accuracy:
        axes = panels[0]
        teacher, ours = comparison.teacher_accuracy * 100, comparison.generator_accuracy * 100
        axes.hlines(places, teacher, ours, color=GREY, linewidth=1)
        axes.plot(teacher, places, "o", color=ORANGE, label="teacher")
        axes.plot(ours, places, "o", color=BLUE, label="generator")
        axes.set_xlabel("taken for the class asked for, %")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    axes = panels[-1]
    axes.axvline(1, color=ORANGE, linestyle="--", linewidth=1.2)
    axes.plot(comparison.variety, places, "o", color=BLUE)
    axes.set_xlabel("variety, times the teacher's")
    panels[0].set_yticks(places, classes, parse_math=False)
    panels[0].invert_yaxis()
    return figure


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
