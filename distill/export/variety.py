"""Whether a generator's pictures depend on what they are asked by: the seed and the class."""

import numpy as np
import torch
from numpy.typing import NDArray

from distill.errors import UserError
from distill.export.one_step import PixelGenerator
from service.bundle import latents

_CLASSES = 64  # at most, evenly over all: a thousand would take minutes
_SAME = 0.5  # levels of mean absolute difference between two pictures that are taken for one


@torch.no_grad()
def check_variety(module: PixelGenerator, classes: list[str]) -> None:
    """Draw two seeds of every class, and refuse pictures that are all alike.

    A network that diverged or collapsed draws the same whatever it is asked for, and every graph
    of it agrees with torch.

    Args:
        module: the generator with its pixels.
        classes: their names; empty without classes.

    Raises:
        UserError: another seed gives the same picture in some class, or another class the same
            in all.
    """
    config = module.generator.config
    shape = (config.img_channels, config.img_resolution, config.img_resolution)
    z = torch.from_numpy(latents(range(2), shape))
    count = config.label_dim
    asked = np.unique(np.linspace(0, count - 1, min(count, _CLASSES)).round().astype(np.int64))
    if not count:
        drawn = [module(z).numpy()]
    else:
        drawn = [module(z, torch.full((2,), int(label))).numpy() for label in asked]
    for number, (first, second) in enumerate(drawn):
        if _difference(first, second) < _SAME:
            of_class = f" of class {classes[asked[number]]!r}" if count else ""
            raise UserError(
                f"the generator draws the same picture{of_class} for every seed: its training "
                "diverged or collapsed; publish an earlier one of its snapshots, or train again"
            )
    if len(drawn) > 1 and all(_difference(drawn[0], other) < _SAME for other in drawn[1:]):
        raise UserError(
            f"the generator draws the same picture for all of its {count} classes: its training "
            "diverged or collapsed; publish an earlier one of its snapshots, or train again"
        )


def _difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean absolute difference in levels."""
    return float(np.abs(a.astype(np.int16) - b.astype(np.int16)).mean())
