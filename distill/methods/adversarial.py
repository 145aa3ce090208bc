"""The adversarial losses of SiDA (arXiv 2410.14919): a discriminator without weights of its own.

It is the encoder of the fake score: a logit stands at each place of its last map, above 0 where it
takes the image for a real one. So it judges noisy images, and knows noise level and class. All
losses are returned per sample; the caller reduces them.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from distill.training.nonfinite import zero_masked

# Over what a cross-entropy is averaged: the paper's micro-batch of one process, or each sample.
MeanOver = Literal["microbatch", "sample"]


def discriminator_loss(
    logits_real: Tensor,
    logits_fake: Tensor,
    weight: Tensor,
    left_out: Tensor,
    mean_over: MeanOver = "microbatch",
) -> Tensor:
    """weight / 2 (BCE(l_real, 1) + BCE(l_fake, 0)): what the discriminator descends.

    Args:
        logits_real: of noisy real images [N, 1, H, W].
        logits_fake: of noisy generated images, at the same noise levels and of the same classes.
        weight: lambda of these noise levels [N, 1, 1, 1], by which the fake score's own loss is
            weighted too.
        left_out: samples that count for nothing, bool [N, 1, 1, 1].
        mean_over: "microbatch" gives all samples one cross-entropy, the paper's form, which depends
            on how many images a micro-batch has; "sample" each its own.

    Returns:
        [N, 1, 1, 1], 0 for what is left out.
    """
    real = cross_entropy(logits_real, True, left_out, mean_over)
    fake = cross_entropy(logits_fake, False, left_out, mean_over)
    return zero_masked(left_out, weight / 2 * (real + fake))


def adversarial_loss(
    logits: Tensor,
    sample_weight: Tensor,
    clip: float,
    left_out: Tensor,
    mean_over: MeanOver = "microbatch",
) -> Tensor:
    """BCE(clip(l), 1) / w: what the generator descends, so that its images pass for real ones.

    Args:
        logits: of the generator's noisy images [N, 1, H, W].
        sample_weight: w [N, 1, 1, 1], by which SiD's loss is divided too.
        clip: logits beyond it, either way, have no gradient.
        left_out: samples whose loss is 0, bool [N, 1, 1, 1]. Their logits are in the mean over a
            micro-batch all the same, as in the paper's code, unless they are not finite.
        mean_over: see `discriminator_loss`.

    Returns:
        [N, 1, 1, 1], 0 for what is left out.
    """
    unknown = logits.detach().isfinite().all(dim=(1, 2, 3), keepdim=True).logical_not()
    clipped = logits.clamp(-clip, clip)
    entropy = cross_entropy(clipped, True, unknown, mean_over)
    # A weight that is not finite would reach every sample's gradient: 0 / NaN is NaN.
    weight = sample_weight.where(left_out.logical_not(), sample_weight.new_ones(()))
    return zero_masked(left_out | unknown, entropy / weight)


def cross_entropy(
    logits: Tensor, real: bool, left_out: Tensor, mean_over: MeanOver = "microbatch"
) -> Tensor:
    """How far logits are from saying "real", or "not real", in nats: [N, 1, 1, 1], or [1, 1, 1, 1].

    Args:
        logits: [N, 1, H, W].
        real: what they should say.
        left_out: samples that count for nothing and get no gradient, bool [N, 1, 1, 1].
        mean_over: of a micro-batch there is one number, the mean over what is not left out.
    """
    kept = zero_masked(left_out, logits)
    entropy = F.softplus(-kept if real else kept).mean(dim=(1, 2, 3), keepdim=True)
    if mean_over == "sample":
        return entropy
    count = left_out.logical_not().sum().clamp(min=1)
    return zero_masked(left_out, entropy).sum(dim=0, keepdim=True) / count


def right_sign(logits: Tensor, real: bool) -> Tensor:
    """1 where a logit [N, 1, H, W] says what it should, else 0: its mean is D's accuracy."""
    return ((logits > 0) if real else (logits < 0)).float()
