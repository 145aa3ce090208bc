"""Non-leaking augmentation: images bent at random, and labels that tell a denoiser how.

EDM (arXiv 2206.00364, appendix F.2, table 6): a denoiser that is told what was done to an image
learns both, and draws images that are not augmented when the labels are zero.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

AUGMENT_DIM = 9
STRETCH = 0.2  # standard deviation of a scaling's binary logarithm
SHIFT = 0.125  # standard deviation of a translation, in image widths


def augment(images: Tensor, probability: float) -> tuple[Tensor, Tensor]:
    """Bend each image by each of EDM's augmentations with a probability.

    Half of all images are mirrored whatever the probability. What an image is spared leaves its
    labels zero; an image that is spared all but mirroring keeps its pixels exactly.

    Args:
        images: float32 [N, C, H, W], H = W.
        probability: of flipping vertically (half of those do), scaling, rotating, stretching
            along a random axis, and shifting, each on its own.

    Returns:
        The images, seen through a mirror beyond their borders, and float32 labels [N, 9]: mirror,
        vertical flip, scale, cos - 1 and sin of the rotation, stretch along x and y, shift x, y.
        Angles are counter-clockwise as seen, shifts to the right and down.
    """
    n, device = len(images), images.device

    def chosen() -> Tensor:
        return (torch.rand(n, device=device) < probability).float()

    def normal() -> Tensor:
        return torch.randn(n, device=device) * chosen()

    def angle() -> Tensor:
        return (torch.rand(n, device=device) * 2 - 1) * math.pi

    mirror = torch.randint(2, (n,), device=device).float()
    flip = torch.randint(2, (n,), device=device) * chosen()
    scale = normal()
    rotation = angle() * chosen()
    stretch, axis = normal(), angle()
    shift_x, shift_y = normal(), normal()

    ones = torch.ones(n, device=device)
    # From places in the bent image to places in the original, in units of half a width.
    inverse = (
        _scaling(torch.exp2(-STRETCH * scale), torch.exp2(-STRETCH * scale))
        @ _rotation(rotation)
        @ _rotation(-axis)
        @ _scaling(torch.exp2(-STRETCH * stretch), torch.exp2(STRETCH * stretch))
        @ _rotation(axis)
        @ _translation(-2 * SHIFT * shift_x, -2 * SHIFT * shift_y)
    )
    flipped = torch.where(mirror.bool().view(n, 1, 1, 1), images.flip(3), images)
    flipped = torch.where(flip.bool().view(n, 1, 1, 1), flipped.flip(2), flipped)
    bent = (torch.stack([scale, rotation, stretch, shift_x, shift_y]) != 0).any(dim=0)
    images = torch.where(bent.view(n, 1, 1, 1), _transform(flipped, inverse), flipped)
    labels = [
        mirror, flip, scale, rotation.cos() - ones, rotation.sin(),
        stretch * axis.cos(), stretch * axis.sin(), shift_x, shift_y,
    ]  # fmt: skip
    return images, torch.stack(labels, dim=1)


def _transform(images: Tensor, inverse: Tensor) -> Tensor:
    """Look up each pixel where `inverse` [N, 3, 3] says, at twice the resolution."""
    n, channels, height, width = images.shape
    fine = F.interpolate(images, scale_factor=2, mode="bicubic", align_corners=False)
    grid = F.affine_grid(inverse[:, :2], [n, channels, 2 * height, 2 * width], align_corners=False)
    looked_up = F.grid_sample(fine, grid, padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(looked_up, kernel_size=2)


def _matrix(like: Tensor, *entries: Tensor | float) -> Tensor:
    """Stack nine numbers or tensors [N], row by row, to [N, 3, 3]."""
    # Filled on the device: a number copied from the host would have to wait for a CUDA card.
    columns = [e if isinstance(e, Tensor) else torch.full_like(like, e) for e in entries]
    return torch.stack(columns, dim=-1).view(-1, 3, 3)


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    return _matrix(x, x, 0.0, 0.0, 0.0, y, 0.0, 0.0, 0.0, 1.0)


def _rotation(angle: Tensor) -> Tensor:
    """By `angle` from the x axis to the y axis, which points down."""
    cos, sin = angle.cos(), angle.sin()
    return _matrix(angle, cos, -sin, 0.0, sin, cos, 0.0, 0.0, 0.0, 1.0)


def _translation(x: Tensor, y: Tensor) -> Tensor:
    return _matrix(x, 1.0, 0.0, x, 0.0, 1.0, y, 0.0, 0.0, 1.0)
