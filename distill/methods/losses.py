"""The losses of Score identity Distillation (arXiv 2404.04057), its warm start, and DMD. Pure.

Notation: x the generator's image, y = x + sigma eps, a = D_phi(y) the teacher's denoised
image, b = D_psi(y) that of the fake-score network, which learns the generator's own images.
All losses are returned per element; the caller reduces them.
"""

from typing import Literal

from torch import Tensor

Weighting = Literal["sid", "none"]  # see `generator_loss`


def fake_score_loss(
    images: Tensor, denoised: Tensor, sigma: Tensor, sigma_data: float = 0.5
) -> Tensor:
    """lambda(sigma) |D(x + sigma eps) - x|^2: EDM's denoising loss (EDM equation 2, table 1).

    It trains the teacher on real images and the fake-score network on generated ones
    (SiD equation 22). lambda = (sigma^2 + sd^2) / (sigma sd)^2 evens out the noise levels.

    Args:
        images: clean images x [N, C, H, W].
        denoised: D(x + sigma eps; sigma), shaped like `images`.
        sigma: noise levels, broadcastable to `images`.
        sigma_data: standard deviation of the data.

    Returns:
        [N, C, H, W].
    """
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return weight * (denoised - images) ** 2


def regression_loss(drawn: Tensor, images: Tensor, softness: float = 0.05) -> Tensor:
    """sqrt(d^2 + c^2) - c of the difference d: Charbonnier's loss, |d| but smooth near 0.

    Where several images are possible it leads to their median and not to their mean, which is
    sharper in images of flat colours.

    Args:
        drawn: what the generator drew [N, C, H, W].
        images: what the teacher drew from the same noises, shaped like `drawn`.
        softness: c.

    Returns:
        [N, C, H, W].
    """
    return ((drawn - images) ** 2 + softness**2).sqrt() - softness


def generator_loss(
    images: Tensor,
    teacher_denoised: Tensor,
    fake_denoised: Tensor,
    alpha: float,
    weighting: Weighting = "sid",
) -> Tensor:
    """(a - b) ((a - x) - alpha (a - b)) / w: SiD's generator loss (SiD equations 20, 23, 24).

    Its gradient flows through all three of x, a and b. alpha in [0, 1] is the safe range, 1.2
    the paper's choice on CIFAR-10. The value hovers around zero and tells nothing about
    convergence.

    Args:
        images: generated images x [N, C, H, W].
        teacher_denoised: a, shaped like `images`.
        fake_denoised: b, shaped like `images`.
        alpha: weight of the squared score difference that the identity subtracts.
        weighting: "sid" divides by w, the mean over a sample's elements of |x - a|, a constant
            to the gradient, at least 1e-5 (SiD equation 23); "none" does not.

    Returns:
        [N, C, H, W].

    Raises:
        ValueError: `weighting` is neither of the two.
    """
    identity, gap = generator_loss_parts(images, teacher_denoised, fake_denoised, weighting)
    return identity - alpha * gap


def generator_loss_parts(
    images: Tensor,
    teacher_denoised: Tensor,
    fake_denoised: Tensor,
    weighting: Weighting = "sid",
) -> tuple[Tensor, Tensor]:
    """The two parts of the generator's loss, which is the first less alpha times the second.

    Returns:
        (a - b) (a - x) / w, which the score identity gives, and the score gap (a - b)^2 / w, each
        [N, C, H, W]; w = 1 for the weighting "none".

    Raises:
        ValueError: `weighting` is neither of the two.
    """
    difference = teacher_denoised - fake_denoised
    identity, gap = difference * (teacher_denoised - images), difference**2
    if weighting == "none":
        return identity, gap
    if weighting != "sid":
        raise ValueError(f'weighting must be "sid" or "none", not {weighting!r}')
    weight = sample_weight(images, teacher_denoised)
    return identity / weight, gap / weight


def distribution_matching_loss(
    images: Tensor, teacher_denoised: Tensor, fake_denoised: Tensor
) -> Tensor:
    """|x - sg(x - g)|^2 / 2 with g = (b - a) / w: DMD's loss (arXiv 2311.18828, equations 7, 8).

    Its gradient to x is g, which the paper writes as a difference of scores: with the noise's
    factor sigma^2 in its weight, scores become denoised images. Nothing flows through a and b. To
    go along -g is to go towards what the data have more of than the generator. The value is
    |g|^2 / 2 and no measure of convergence, for w changes along.

    Args:
        images: generated images x [N, C, H, W].
        teacher_denoised: a, shaped like `images`.
        fake_denoised: b, shaped like `images`.

    Returns:
        [N, C, H, W].
    """
    weight = sample_weight(images, teacher_denoised)
    gradient = (fake_denoised.detach() - teacher_denoised.detach()) / weight
    # x - sg(x) is 0 to the bit, where x - sg(x - g) would round g away beside x.
    return (images - images.detach() + gradient) ** 2 / 2


def sample_weight(images: Tensor, teacher_denoised: Tensor) -> Tensor:
    """w = mean |x - a| of each sample, detached, float32, at least 1e-5: [N, 1, 1, 1]."""
    distance = (images.detach().float() - teacher_denoised.detach().float()).abs()
    return distance.mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5)
