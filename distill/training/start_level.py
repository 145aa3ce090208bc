"""The noise level at which a generator starts, fitted to what its teacher draws.

At a noise level s the mean colour of an image of R pixels a side is known to s / R. Where that is
far below the spread of real mean colours, the teacher takes all noise for one colour:
D(s z; s) starts without variety, and SiD, which seeks modes, keeps it so for long
(docs/results/avatars.md). A level of the spread times the side leaves the colour open.
"""

import torch
from torch import Tensor

from distill.data.datasets import one_hot
from distill.errors import UserError
from distill.networks import Denoiser
from distill.sampling import heun
from distill.training.precision import full_float32

CLASSES = 16  # at most so many are looked at
PER_CLASS = 8
STEPS = 12  # of Heun's method: 23 evaluations; colours need no more


def mean_colour_spread(images: Tensor, labels: Tensor) -> float:
    """How far mean colours lie apart within a class.

    Args:
        images: float [N, C, H, W] in [-1, 1].
        labels: int64 [N]; each class needs two images or more.

    Returns:
        The root of the variance of an image's mean, pooled over channels and classes.
    """
    means = images.double().mean(dim=(2, 3))
    groups = [means[labels == label] for label in labels.unique()]
    squares = sum((group - group.mean(dim=0)).square().sum() for group in groups)
    degrees = (len(means) - len(groups)) * means.shape[1]
    return float((squares / degrees) ** 0.5)


@full_float32()
@torch.no_grad()
def fitting_sigma_init(teacher: Denoiser) -> tuple[float, float]:
    """Look at some images of a teacher's: as many evaluations as 270 images of distillation.

    Args:
        teacher: in eval mode, on its device.

    Returns:
        The noise level, to two digits, and the spread of mean colours that it comes from.

    Raises:
        UserError: the images are not finite.
    """
    config = teacher.config
    device = next(teacher.parameters()).device
    classes = min(CLASSES, config.label_dim)
    count = PER_CLASS * (classes or CLASSES)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, *config.latent_shape, generator=generator).to(device)
    labels, classed = torch.zeros(count, dtype=torch.int64), None
    if classes:
        looked_at = torch.linspace(0, config.label_dim - 1, classes).long()
        labels = looked_at.repeat_interleave(PER_CLASS)
        classed = one_hot(labels, config.label_dim).to(device)
    images = [
        heun(teacher, latents[i : i + 32], None if classed is None else classed[i : i + 32], STEPS)
        for i in range(0, count, 32)
    ]
    drawn = torch.cat(images).cpu()
    if not drawn.isfinite().all():
        raise UserError(
            "the teacher draws images that are not finite: its training diverged, or its file is "
            "damaged; take another"
        )
    spread = mean_colour_spread(drawn.clamp(-1, 1), labels)
    return float(f"{max(spread * config.img_resolution, 0.1):.2g}"), spread
