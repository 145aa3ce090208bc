"""Drawing images: a teacher's deterministic samplers, and generators of one step or of a few."""

import hashlib
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from distill.data.datasets import one_hot
from distill.networks import Denoiser, NetworkLayout
from distill.schedules import flow_times, sampler_sigmas, step_sigmas
from distill.training_config import Renoise


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
    return generator(
        latents * sigma_init, _level(sigma_init, latents), class_labels, augment_labels
    )


def few_step(
    generator: Callable[..., Tensor],
    latents: Tensor,
    class_labels: Tensor | None,
    sigma_init: float,
    steps: int = 1,
    renoise: Renoise = "same",
) -> Tensor:
    """The image after all of a generator's steps; in one step it is `one_step`'s to the bit.

    x_0 = D(sigma_0 z; sigma_0, c), x_k = D(x_{k-1} + sigma_k n_k; sigma_k, c), at the levels of
    `distill.schedules.step_sigmas`. An image is a function of its latents and its class, whatever
    it is drawn with.

    Args:
        generator, latents, class_labels, sigma_init: see `one_step`.
        steps: calls of the network.
        renoise: "same": each n_k is z again; "fresh": it is new, see `fresh_noise`.

    Returns:
        float32 images [N, C, H, W], pixels in [-1, 1].
    """
    images = one_step(generator, latents, class_labels, sigma_init)
    for number, sigma in enumerate(step_sigmas(sigma_init, steps)[1:], start=1):
        noise = latents if renoise == "same" else fresh_noise(latents, number)
        images = generator(images + sigma * noise, _level(sigma, latents), class_labels)
    return images


def fresh_noise(latents: Tensor, step: int) -> Tensor:
    """Further noise of images, a function of each one's own latents and of the step's number.

    Each image's comes from torch's generator for the CPU, seeded by the first eight bytes of the
    SHA-256 of its latents (float32, in order) and the step's number (a byte), so that neither the
    batch nor the device changes it.

    Args:
        latents: standard normal [N, C, H, W].
        step: of the generator, from 1 on.

    Returns:
        Standard normal [N, C, H, W], where the latents are.
    """
    rows = []
    for row in latents.detach().cpu().contiguous():
        digest = hashlib.sha256(row.numpy().tobytes() + bytes([step])).digest()
        seed = int.from_bytes(digest[:8], "little") >> 1
        rows.append(torch.randn(row.shape, generator=torch.Generator().manual_seed(seed)))
    return torch.stack(rows).to(latents.device)


def step_mixture(
    generator: Callable[..., Tensor],
    latents: Tensor,
    class_labels: Tensor | None,
    sigma_init: float,
    steps: int = 1,
    renoise: Renoise = "same",
    augment_labels: Tensor | None = None,
) -> Tensor:
    """Images to learn from: image i is the one after i mod steps + 1 steps of `few_step`.

    So each number of steps has an equal share of the images. Those that have further steps before
    them are drawn without gradient, and the last step of all of them in one call with gradient. In
    one step this is `one_step`, and nothing else is computed or drawn.

    Args:
        generator, latents, class_labels, sigma_init, augment_labels: see `one_step`; their number
            is a multiple of `steps`.
        steps: as in `few_step`.
        renoise: as in `few_step`, but that fresh noise comes from torch's own random stream.

    Returns:
        float32 images [N, C, H, W].
    """
    if steps == 1:
        return one_step(generator, latents, class_labels, sigma_init, augment_labels)
    sigmas = step_sigmas(sigma_init, steps)
    # Part k holds the images k, k + steps, ...: no size depends on data, as in a captured step none
    # may.
    noisy = [latents[k::steps] * sigma_init for k in range(steps)]
    with torch.no_grad():
        for k in range(1, steps):
            level = _level(sigmas[k - 1], latents)
            labels, augmented = _rest(class_labels, k, steps), _rest(augment_labels, k, steps)
            images = generator(torch.cat(noisy[k:]), level, labels, augmented)
            same = torch.cat([latents[j::steps] for j in range(k, steps)])
            added = same if renoise == "same" else torch.randn_like(same)
            noisy[k:] = (images + sigmas[k] * added).chunk(steps - k)
    whole = torch.stack(noisy, dim=1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    levels = torch.cat([_level(sigma, latents) for sigma in sigmas]).repeat(len(noisy[0]))
    return generator(whole, levels, class_labels, augment_labels)


def _level(sigma: float, latents: Tensor) -> Tensor:
    """A noise level for all images, [1]: it broadcasts, and no number is sent to the device."""
    return torch.full((1,), sigma, device=latents.device)


def _rest(rows: Tensor | None, k: int, steps: int) -> Tensor | None:
    """The rows of the parts from k on, one part after the other."""
    return None if rows is None else torch.cat([rows[j::steps] for j in range(k, steps)])


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
