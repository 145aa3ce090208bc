"""Drawing images: a teacher's deterministic samplers, Heun's and Euler's, and the generator."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from distill.data.datasets import one_hot
from distill.networks import Denoiser, NetworkLayout
from distill.schedules import flow_times, sampler_sigmas


@torch.no_grad()
def heun(
    denoiser: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None,
    steps: int = 18,
    sigma_max: float = 80,
) -> Tensor:
    """Integrate the probability-flow ODE with Heun's second-order method (EDM, algorithm 1).

    Takes 2 steps - 1 network evaluations (18 steps: 35).

    Args:
        denoiser: the teacher.
        latents: standard normal [N, C, H, W].
        class_labels: one-hot [N, classes], or None.
        steps: noise levels visited before 0.
        sigma_max: the first of them.

    Returns:
        float32 images [N, C, H, W], pixels in [-1, 1]; the state is kept in float64.
    """
    sigmas = sampler_sigmas(steps, sigma_max=sigma_max).to(latents.device).tolist()

    def slope(x: Tensor, sigma: float) -> Tensor:
        level = torch.full((1,), sigma, device=x.device)  # one for all: it broadcasts
        return (x - denoiser(x.float(), level, class_labels).double()) / sigma

    x = latents.double() * sigmas[0]
    for current, following in itertools.pairwise(sigmas):
        d = slope(x, current)
        predicted = x + (following - current) * d
        if following > 0:
            d = (d + slope(predicted, following)) / 2
        x = x + (following - current) * d
    return x.float()


@torch.no_grad()
def euler(
    denoiser: Denoiser, latents: Tensor, class_labels: Tensor | None, steps: int = 35
) -> Tensor:
    """Integrate the probability-flow ODE with Euler's method, on the teacher's own path.

    On EDM's path, x0 + s eps with s = sigma, the steps are those of `sampler_sigmas`; on the
    rectified flow's, (1 - s) x0 + s eps with s = t, those of `flow_times`. On both
    dx/ds = (x - D) / s, which on the latter is the velocity. Takes `steps` network evaluations.

    Args:
        denoiser: the teacher; its `config.preconditioning` says on which path it learned.
        latents: standard normal [N, C, H, W].
        class_labels: one-hot [N, classes], or None.
        steps: how many.

    Returns:
        float32 images [N, C, H, W], pixels in [-1, 1]; the state is kept in float64.
    """
    flow = denoiser.config.preconditioning == "flow"
    times = (flow_times(steps) if flow else sampler_sigmas(steps)).tolist()
    x = latents.double() * times[0]
    for current, following in itertools.pairwise(times):
        data_share = 1 - current if flow else 1.0  # of x0 in x
        level = torch.full((1,), current / data_share, device=x.device)  # one for all
        denoised = denoiser((x / data_share).float(), level, class_labels).double()
        x = x + (following - current) * (x - denoised) / current
    return x.float()


def one_step(
    generator: Callable[..., Tensor],
    latents: Tensor,
    class_labels: Tensor | None,
    sigma_init: float,
    augment_labels: Tensor | None = None,
) -> Tensor:
    """G(z, c) = D_theta(sigma_init z; sigma_init, c), SiD equation 8.

    Args:
        generator: the distilled network, called as a `Denoiser`.
        latents: standard normal z [N, C, H, W].
        class_labels: one-hot [N, classes], or None.
        sigma_init: the one noise level it knows.
        augment_labels: [N, augment_dim], all zero; None means the same and computes nothing.

    Returns:
        float32 images [N, C, H, W], pixels in [-1, 1].
    """
    level = torch.full((1,), sigma_init, device=latents.device)  # one for all: it broadcasts
    return generator(latents * sigma_init, level, class_labels, augment_labels)


def sample_inputs(
    network: NetworkLayout, device: torch.device, count: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Latents and one-hot labels of a fixed sheet of images: ten columns, a class a row.

    Args:
        network: its shape and classes.
        device: where to put them.
        count: so many of the sheet, from its beginning; None means all of it.
    """
    classes = network.label_dim
    whole = 10 * classes if classes else 100
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(whole, *network.latent_shape, generator=generator)[:count].to(device)
    if not classes:
        return latents, None
    labels = torch.arange(classes).repeat_interleave(10)[:count]
    return latents, one_hot(labels, classes).to(device)
