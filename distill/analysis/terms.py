"""What each part of the generator's loss asks of a picture. Pure functions.

The loss is linear in alpha (`distill.methods.losses.generator_loss_parts`): identity - alpha
squared, with

    identity = (a - b) (a - x) / w      what the score identity gives
    squared  = (a - b)^2 / w            the squared score gap

so that one look at both parts tells the loss, and its gradient, for every alpha.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Gram(NamedTuple):
    """Inner products of the two parts' gradients, a sample each: means over its elements [N].

    Attributes:
        identity: <d identity/dx, d identity/dx'>.
        squared: <d squared/dx, d squared/dx'>.
        product: <d identity/dx, d squared/dx'>, made symmetric.
    """

    identity: Tensor
    squared: Tensor
    product: Tensor


def gram(identity: Tensor, squared: Tensor, other_identity: Tensor, other_squared: Tensor) -> Gram:
    """Inner products between the parts' gradients [N, C, H, W] at one draw of noise and at another.

    With both draws the same: squared norms. With independent draws: an unbiased estimate of the
    squared norm of what is left when the noise is averaged out, E<g, g'> = |E g|^2.
    """

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).mean(dim=1)

    product = (inner(identity, other_squared) + inner(squared, other_identity)) / 2
    return Gram(inner(identity, other_identity), inner(squared, other_squared), product)


def image_gradients(identity: Tensor, squared: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """d sum(identity) / dx and d sum(squared) / dx, through x, a and b as in training.

    Args:
        identity, squared: of `generator_loss_parts`, for `images` that require a gradient.
        images: x.
    """
    (of_identity,) = torch.autograd.grad(identity.sum(), images, retain_graph=True)
    (of_squared,) = torch.autograd.grad(squared.sum(), images)
    return of_identity, of_squared
