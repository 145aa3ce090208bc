"""Telling a training that has diverged from one that learns, before it overwrites what was good."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.images import to_pixels
from distill.networks import Denoiser
from distill.training.distributed import local
from distill.training.learner import Learner

# So many steps skipped one after the other are no accident.
MAX_CONSECUTIVE_SKIPS = 10


@dataclass(frozen=True)
class Tally:
    """What one network's training left undone since this process began.

    Attributes:
        samples: left out of the steps, because they were not finite.
        skipped: steps not taken at all.
        consecutive_skips: how many of those came last, without a step taken since.
    """

    samples: int
    skipped: int
    consecutive_skips: int


def tallies(learners: Mapping[str, Learner], batch: int) -> dict[str, Tally]:
    """Read every network's tally from the device, which waits for it."""
    rows = torch.stack(
        [
            torch.stack([learner.left_out, learner.skipped, learner.consecutive_skips])
            for learner in learners.values()
        ]
    ).tolist()
    return {
        name: Tally(round(share * batch), round(skipped), round(consecutive_skips))
        for name, (share, skipped, consecutive_skips) in zip(learners, rows, strict=True)
    }


def diagnose_steps(counted: Mapping[str, Tally], steps: int) -> str | None:
    """Say which network cannot learn any more, if one cannot.

    That is after ten steps skipped in a row; in a run of fewer than twenty steps, after half of
    them.

    Args:
        counted: of each network.
        steps: how many there were, skipped or not.
    """
    limit = min(MAX_CONSECUTIVE_SKIPS, -(-steps // 2))
    for name, tally in counted.items():
        if tally.consecutive_skips >= max(1, limit):
            return f"the last {tally.consecutive_skips} steps of the {name} had no finite gradient"
    return None


def diagnose_weights(networks: Iterable[Denoiser]) -> str | None:
    """Say so if a weight, of this process's share, is NaN or infinite."""
    finite = [local(p).isfinite().all() for network in networks for p in network.parameters()]
    return None if torch.stack(finite).all() else "weights are not finite"


def diagnose_images(images: Tensor) -> str | None:
    """Say what is wrong with images of several seeds, if nobody can have learned them.

    Args:
        images: float [N, C, H, W] in [-1, 1].
    """
    if not images.isfinite().all():
        return "its images are not finite"
    pixels = to_pixels(images)
    if (pixels == pixels[:1, :1, :1]).all():
        return "its images are all of one and the same colour"
    if ((pixels == 0) | (pixels == 255)).all():
        return "its images have no value between the darkest and the brightest"
    return None
