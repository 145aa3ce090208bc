"""Whether a generator's images depend on what they are asked by: the seed and the class."""

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.export.one_step import PixelGenerator
from service.bundle import latents

_CLASSES = 64  # at most, evenly over all: a thousand would take minutes
# Levels of mean absolute difference, before rounding, below which two images are taken for one.
# Seeds give other images wherever anything was learnt. What a class adds may be far less than
# shows after a short training, so only what float32 cannot tell from nothing counts as nothing.
_SAME_SEEDS = 0.5
_SAME_CLASSES = 1e-4


@torch.no_grad()
def check_variety(module: PixelGenerator, classes: list[str]) -> None:
    """Draw two seeds of every class, and refuse images that are all alike.

    A network that diverged or collapsed draws the same whatever it is asked for, and every graph
    of it agrees with torch.

    Args:
        module: the generator with its pixels.
        classes: their names; empty without classes.

    Of a generator of latents these are compared, which takes a fraction of the time; its decoder
    decodes two of them.

    Raises:
        UserError: another seed gives the same image in some class, or another class the same
            in all; or the decoder makes the same image of other latents.
    """
    config = module.generator.config
    z = torch.from_numpy(latents(range(2), config.latent_shape))
    count = config.label_dim
    class_indices = np.unique(
        np.linspace(0, count - 1, min(count, _CLASSES)).round().astype(np.int64)
    )
    if not count:
        drawn = [_levels(module, z, None)]
    else:
        drawn = [_levels(module, z, torch.full((2,), int(label))) for label in class_indices]
    for number, (first, second) in enumerate(drawn):
        if _difference(first, second) < _SAME_SEEDS:
            of_class = f" of class {classes[class_indices[number]]!r}" if count else ""
            raise UserError(
                f"the generator draws the same image{of_class} for every seed: its training "
                "diverged or collapsed; publish an earlier one of its snapshots, or train again"
            )
    if len(drawn) > 1 and all(_difference(drawn[0], x) < _SAME_CLASSES for x in drawn[1:]):
        raise UserError(
            f"the generator draws the same image for all of its {count} classes: its training "
            "diverged or collapsed; publish an earlier one of its snapshots, or train again"
        )
    if module.decoder is not None:
        labels = torch.zeros(2, dtype=torch.int64) if count else None
        one, other = module.decoder.levels(module.images(z, labels)).clamp(0, 255).nan_to_num(0)
        if _difference(one, other) < _SAME_SEEDS:
            raise UserError(
                f"the autoencoder {module.decoder.space.autoencoder} makes the same image of "
                "other latents: it is broken, or another one than the generator learned from"
            )


def _levels(module: PixelGenerator, z: Tensor, labels: Tensor | None) -> Tensor:
    """Images float32 [N, C, H, W] in 0 to 255, as `to_pixels` has them before it rounds."""
    return (127.5 * module.images(z, labels) + 128).clamp(0, 255).nan_to_num(0)


def _difference(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference in levels."""
    return float((a - b).abs().mean())
