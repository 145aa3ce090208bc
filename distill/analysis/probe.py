"""Probing a finished or running distillation: both losses by noise level and by class.

The generator's pictures, from fixed seeds, are noised at a row of noise levels; teacher and fake
score denoise them; what training would compute there is kept a sample each.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from distill.analysis.terms import Gram, gram, image_gradients
from distill.methods.losses import (
    Weighting,
    fake_score_loss,
    generator_loss_parts,
    sample_weight,
)
from distill.schedules import generator_sigmas

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
    """What was found, a value for each noise level and picture: arrays [L, M] by name.

    Means over a picture's elements: `identity` and `squared` (`distill.analysis.terms`), `gap`
    (a - b)^2 / w, `difference` (a - b)^2, `weight` w, `fake_loss` lambda (b - x)^2 and
    `teacher_loss` lambda (a - x)^2. Products of the gradients that the two terms send to the
    picture: `gradient` at one draw of noise, `signal` between two independent draws.

    Attributes:
        levels: the noise levels.
        labels: the pictures' classes [M]; all 0 without classes.
        values: see above.
        gradient: `Gram` of arrays [L, M].
        signal: the same.
    """

    levels: Levels
    labels: NDArray[np.int64]
    values: dict[str, Array]
    gradient: tuple[Array, Array, Array]
    signal: tuple[Array, Array, Array]

    def mean(self, name: str) -> Array:
        """Mean over the pictures [L]."""
        mean: Array = self.values[name].mean(axis=1)
        return mean

    def by_class(self, name: str, classes: int) -> Array:
        """Mean over the pictures of each class [K, L]; NaN for a class without pictures."""
        none = np.full(len(self.levels.sigmas), np.nan)
        parts = [self.values[name][:, self.labels == k] for k in range(classes)]
        return np.stack([part.mean(axis=1) if part.size else none for part in parts])


def noise_levels(t_max: float, count: int = 12) -> Levels:
    """`count` levels at the middles of equal steps of u in [0, t_max / 1000], and some beyond.

    Means over the trained ones are therefore means over training's own draws. Beyond t_max the
    steps go on, three at most.
    """
    u = (np.arange(count + BEYOND) + 0.5) / count
    u = u[u * t_max < 1000]
    sigmas = generator_sigmas(torch.from_numpy(u), t_max)
    return Levels(sigmas.numpy(), u < 1)


def probe(
    teacher: Denoise,
    fake_score: Denoise,
    images: Tensor,
    labels: Tensor,
    one_hot: Tensor | None,
    levels: Levels,
    weighting: Weighting,
    batch: int = 64,
    progress: bool = False,
) -> Probe:
    """Look at the losses of given pictures at given noise levels.

    Args:
        teacher: phi, a function (noisy, sigma [1], one-hot labels) -> denoised.
        fake_score: psi, the same.
        images: the generator's pictures x [M, C, H, W].
        labels: their classes, int64 [M].
        one_hot: the same for the networks [M, K]; None without classes.
        levels: where to look.
        weighting: the run's.
        batch: pictures at a time.
        progress: show a progress bar.

    Noise is drawn on the CPU from a fixed seed: the same pictures are probed alike everywhere.
    """
    noise = torch.Generator().manual_seed(0)
    rows: list[dict[str, Tensor]] = []
    starts = range(0, len(images), batch)
    work: Iterable[float] = levels.sigmas.tolist()
    with tqdm(total=len(levels.sigmas) * len(images), unit="img", disable=not progress) as bar:
        bar.set_description("loss by noise level")
        for sigma in work:
            parts = []
            for start in starts:
                x = images[start : start + batch]
                c = None if one_hot is None else one_hot[start : start + batch]
                draws = [torch.randn(x.shape, generator=noise).to(x.device) for _ in range(2)]
                parts.append(_look(teacher, fake_score, x, c, sigma, draws, weighting))
                bar.update(len(x))
            rows.append({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    arrays = {
        name: torch.stack([row[name] for row in rows]).double().cpu().numpy() for name in rows[0]
    }
    products = {
        kind: tuple(arrays.pop(f"{kind} {name}") for name in Gram._fields)
        for kind in ("gradient", "signal")
    }
    return Probe(
        levels,
        labels.cpu().numpy(),
        arrays,
        products["gradient"],  # type: ignore[arg-type]
        products["signal"],  # type: ignore[arg-type]
    )


def _look(
    teacher: Denoise,
    fake_score: Denoise,
    images: Tensor,
    labels: Tensor | None,
    sigma: float,
    draws: list[Tensor],
    weighting: Weighting,
) -> dict[str, Tensor]:
    """Everything about some pictures at one noise level: each [N], means over the draws."""
    level = torch.full((1,), sigma, device=images.device)
    seen: list[dict[str, Tensor]] = []
    gradients: list[tuple[Tensor, Tensor]] = []
    for noise in draws:
        x = images.detach().requires_grad_(True)
        noisy = x + sigma * noise
        a, b = teacher(noisy, level, labels), fake_score(noisy, level, labels)
        identity, squared = generator_loss_parts(x, a, b, weighting)
        gradients.append(image_gradients(identity, squared, x))
        x, a, b = x.detach(), a.detach(), b.detach()
        weight = sample_weight(x, a)
        scale = level.reshape(1, 1, 1, 1)
        per_element = {
            "identity": identity.detach(),
            "squared": squared.detach(),
            "gap": (a - b) ** 2 / weight,
            "difference": (a - b) ** 2,
            "weight": weight,
            "fake_loss": fake_score_loss(x, b, scale),
            "teacher_loss": fake_score_loss(x, a, scale),
        }
        found = {name: part.flatten(1).mean(dim=1) for name, part in per_element.items()}
        found |= _named("gradient", gram(*gradients[-1], *gradients[-1]))
        seen.append(found)
    mean = {name: torch.stack([found[name] for found in seen]).mean(dim=0) for name in seen[0]}
    return mean | _named("signal", gram(*gradients[0], *gradients[1]))


def _named(kind: str, products: Gram) -> dict[str, Tensor]:
    return {f"{kind} {name}": value for name, value in products._asdict().items()}
