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
TOO_MANY_IN_A_ROW = 10


@dataclass(frozen=True)
class Tally:
    """What one network's training left undone since this process began.

    Attributes:
        samples: left out of the steps, because they were not finite.
        skipped: steps not taken at all.
        in_a_row: how many of those came last, without a step taken since.
    """

    samples: int
    skipped: int
    in_a_row: int


def tallies(learners: Mapping[str, Learner], batch: int) -> dict[str, Tally]:
    """Read every network's tally from the device, which waits for it."""
    rows = torch.stack(
        [torch.stack([one.left_out, one.skipped, one.in_a_row]) for one in learners.values()]
    ).tolist()
    return {
        name: Tally(round(share * batch), round(skipped), round(in_a_row))
        for name, (share, skipped, in_a_row) in zip(learners, rows, strict=True)
    }


def fault_of_steps(counted: Mapping[str, Tally], steps: int) -> str | None:
    """Say which network cannot learn any more, if one cannot.

    That is after ten steps skipped in a row; in a run of fewer than twenty steps, after half of
    them.

    Args:
        counted: of each network.
        steps: how many there were, skipped or not.
    """
    limit = min(TOO_MANY_IN_A_ROW, -(-steps // 2))
    for name, tally in counted.items():
        if tally.in_a_row >= max(1, limit):
            return f"the last {tally.in_a_row} steps of the {name} had no finite gradient"
    return None


def fault_of_weights(networks: Iterable[Denoiser]) -> str | None:
    """Say so if a weight, of this process's share, is NaN or infinite."""
    finite = [local(p).isfinite().all() for network in networks for p in network.parameters()]
    return None if torch.stack(finite).all() else "weights are not finite"


def fault_of_pictures(images: Tensor) -> str | None:
    """Say what is wrong with pictures of several seeds, if nobody can have learned them.

    Args:
        images: float [N, C, H, W] in [-1, 1].
    """
    if not images.isfinite().all():
        return "its pictures are not finite"
    pixels = to_pixels(images)
    if (pixels == pixels[:1, :1, :1]).all():
        return "its pictures are all of one and the same colour"
    if ((pixels == 0) | (pixels == 255)).all():
        return "its pictures have no value between the darkest and the brightest"
    return None
