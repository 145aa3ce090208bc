"""Probing a finished or running distillation: score gap and denoising losses by noise level.

The generator's images, from fixed seeds, are noised at a row of noise levels; teacher and fake
score denoise them; what training would compute there is kept a sample each.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from distill.methods.losses import fake_score_loss, sample_weight
from distill.networks.preconditioning import Preconditioning
from distill.schedules import generator_sigmas
from distill.training.precision import full_float32

Array = NDArray[np.float64]
Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
BEYOND = 3  # levels above t_max that are looked at, to see what training leaves out


@dataclass(frozen=True)
class Levels:
    """Noise levels, rising, evenly spaced in the u from which training draws them uniformly.

    Attributes:
        sigmas: [L].
        trained: [L], whether training with this t_max draws there.
    """

    sigmas: Array
    trained: NDArray[np.bool_]


@dataclass(frozen=True)
class Probe:
    """What was found, a value for each noise level and image [L, M]: means over its elements.

    With x the generator's image, a and b what teacher and fake score make of it after noise, and
    w and lambda the losses' weights (`distill.methods.losses`).

    Attributes:
        levels: the noise levels.
        gap: (a - b)^2 / w.
        fake_loss: lambda (b - x)^2.
        teacher_loss: lambda (a - x)^2.
    """

    levels: Levels
    gap: Array
    fake_loss: Array
    teacher_loss: Array


def noise_levels(t_max: float, count: int = 12) -> Levels:
    """`count` levels at the middles of equal steps of u in [0, t_max / 1000], and some beyond.

    Means over the trained ones are therefore means over training's own draws. Beyond t_max the
    steps go on, three at most.
    """
    u = (np.arange(count + BEYOND) + 0.5) / count
    u = u[u * t_max < 1000]
    sigmas = generator_sigmas(torch.from_numpy(u), t_max)
    return Levels(sigmas.numpy(), u < 1)


@full_float32()
@torch.no_grad()
def probe(
    teacher: Denoise,
    fake_score: Denoise,
    images: Tensor,
    one_hot: Tensor | None,
    levels: Levels,
    preconditioning: Preconditioning,
    batch: int = 64,
    progress: bool = False,
) -> Probe:
    """Look at the losses of given images at given noise levels.

    Args:
        teacher: phi, a function (noisy, sigma [1], one-hot labels) -> denoised.
        fake_score: psi, the same.
        images: the generator's images x [M, C, H, W].
        one_hot: their classes for the networks [M, K]; None without classes.
        levels: where to look.
        preconditioning: of both networks; it decides lambda.
        batch: images at a time.
        progress: show a progress bar.

    Noise is drawn on the CPU from a fixed seed: the same images are probed alike everywhere.
    """
    noise = torch.Generator().manual_seed(0)
    rows: list[Tensor] = []
    with tqdm(total=len(levels.sigmas) * len(images), unit="img", disable=not progress) as bar:
        bar.set_description("loss by noise level")
        for sigma in levels.sigmas.tolist():
            parts = []
            for start in range(0, len(images), batch):
                x = images[start : start + batch]
                c = None if one_hot is None else one_hot[start : start + batch]
                level = torch.full((1,), sigma, device=x.device)
                noisy = x + sigma * torch.randn(x.shape, generator=noise).to(x.device)
                a, b = teacher(noisy, level, c), fake_score(noisy, level, c)
                parts.append(_probe_level(x, a, b, level, preconditioning))
                bar.update(len(x))
            rows.append(torch.cat(parts, dim=1))
    return Probe(levels, *torch.stack(rows, dim=1).double().cpu().numpy())


def _probe_level(
    x: Tensor, a: Tensor, b: Tensor, level: Tensor, preconditioning: Preconditioning
) -> Tensor:
    """Gap, fake loss and teacher loss of images x and their denoised a and b: [3, N]."""
    scale = level.reshape(1, 1, 1, 1)
    gap = (a - b) ** 2 / sample_weight(x, a)
    losses = (gap, *(fake_score_loss(x, d, scale, preconditioning) for d in (b, a)))
    return torch.stack([part.flatten(1).mean(dim=1) for part in losses])
