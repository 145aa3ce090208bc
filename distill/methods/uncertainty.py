"""Losses of denoisers that say how far they may be off (EDM2, arXiv 2312.02696).

Notation: u = ln of the variance that a network expects of its error at a noise level, as
`RawNetwork.uncertainty` gives it: [N, 1, 1, 1], or None of a family that says nothing, whose losses
stay as they are.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from distill.networks import NetworkLayout
from distill.networks.denoiser import Parts


def denoised_with_uncertainty(
    denoiser: Callable[..., Any],
    layout: NetworkLayout,
    *inputs: Tensor | None,
    parts: Parts = "denoised",
) -> tuple[Any, Tensor | None]:
    """What a denoiser makes of its inputs, and u.

    Args:
        denoiser: called as a `Denoiser` is.
        layout: of the network in it.
        inputs: noisy images, noise levels, and what else it is given.
        parts: what to compute, see `Denoiser.forward`.
    """
    options = {} if parts == "denoised" else {"parts": parts}
    if not layout.is_uncertain:
        return denoiser(*inputs, **options), None
    computed, u = denoiser(*inputs, **options, uncertainty=True)
    return computed, u


def weighed_denoising_loss(loss: Tensor, u: Tensor | None) -> Tensor:
    """loss / e^u + u: what a denoiser with an uncertainty descends (EDM2, equation 21).

    It is least where e^u is the loss that a noise level has on average, so that each level ends up
    with the same weight. Both the denoiser and u learn by it.

    Args:
        loss: the denoising loss [N, C, H, W].
        u: the denoiser's uncertainty.

    Returns:
        [N, C, H, W].
    """
    return loss if u is None else loss / u.exp() + u


def weighed_loss(loss: Tensor, u: Tensor | None) -> Tensor:
    """loss / e^u: any other loss, each noise level with the weight that psi gives it.

    So have SiD and SiDA on EDM2 (facts: SiDA, section 5), for the generator's losses and the
    discriminator's: where psi cannot know the image, it teaches less.

    Args:
        loss: [N, ...] of four axes.
        u: the fake score's uncertainty, which is frozen in the generator's half of a step.

    Returns:
        Shaped like the loss.
    """
    return loss if u is None else loss / u.exp()
