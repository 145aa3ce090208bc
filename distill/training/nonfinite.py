"""Samples whose numbers are not finite: they are left out of a step, and are counted.

A NaN poisons every weight of a network even where its loss is dropped, because the backward pass
multiplies it by a gradient of 0, and 0 x NaN is NaN. So a sample is left out twice: its loss
becomes 0, and its gradient is set to 0 where it enters the network that learns. Nothing here
waits for the device: masks, no selection of rows.
"""

import torch
from torch import Tensor


def nonfinite_samples(values: Tensor) -> Tensor:
    """Which samples of [N, C, H, W] hold a NaN or an infinity: bool [N, 1, 1, 1]."""
    return values.detach().isfinite().all(dim=(1, 2, 3), keepdim=True).logical_not()


def zero_masked(left_out: Tensor, values: Tensor) -> Tensor:
    """Values [N, C, H, W] with 0 in the samples that are left out, laid out as they were."""
    # Not masked_fill, which forgets channels_last; and a drawing of noise follows the layout.
    return torch.where(left_out, values.new_zeros(()), values)


def masked_sum(left_out: Tensor, loss: Tensor, output: Tensor) -> Tensor:
    """Sum a loss over the samples that are not left out.

    Whatever lies between `output` and `loss` may be NaN in a sample that is left out: its
    gradient at `output` is 0 all the same, and every other sample's is what it would be without.
    (If the learning network holds NaN inside, before its `output`, then its weights have no finite
    gradient and `distill.training.learner` skips the step.)

    Args:
        left_out: bool [N, 1, 1, 1].
        loss: [N, C, H, W].
        output: [N, C, H, W], what the network that learns made, of which `loss` is a function.

    Returns:
        A scalar.
    """
    output.register_hook(lambda gradient: zero_masked(left_out, gradient))
    return zero_masked(left_out, loss).sum()


def masked_mean(left_out: Tensor, values: Tensor) -> Tensor:
    """The mean of [N, C, H, W] over the samples that are not left out, detached; NaN of none."""
    kept = zero_masked(left_out, values.detach())
    return kept.sum() / (left_out.logical_not().sum() * values[0].numel())


def share(left_out: Tensor) -> Tensor:
    """The share of samples left out, a scalar."""
    return torch.mean(left_out, dtype=torch.float32)
