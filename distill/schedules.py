"""Noise levels: where the denoisers are trained, compared and sampled. Pure functions.

Sources: EDM (arXiv 2206.00364) and SiD (arXiv 2404.04057).
"""

import torch
from torch import Tensor


def _power_interpolation(fraction: Tensor, start: float, end: float, rho: float) -> Tensor:
    """(start^(1/rho) + fraction (end^(1/rho) - start^(1/rho)))^rho, EDM equation 5."""
    first, last = start ** (1 / rho), end ** (1 / rho)
    sigmas: Tensor = (first + fraction * (last - first)) ** rho
    return sigmas


def training_sigmas(normal: Tensor, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """Noise levels at which a denoiser learns: ln sigma ~ N(mean, std^2), EDM table 1.

    Args:
        normal: standard normal draws of any shape.
        mean: mean of ln sigma.
        std: standard deviation of ln sigma.

    Returns:
        sigma, shaped like `normal`.
    """
    return (normal * std + mean).exp()


def generator_sigmas(
    u: Tensor,
    t_max: float = 800,
    sigma_min: float = 0.002,
    sigma_max: float = 80,
    rho: float = 7,
) -> Tensor:
    """Noise levels at which SiD compares teacher and fake score, SiD section 4.

    Args:
        u: uniform draws in [0, 1], of any shape; larger means more noise.
        t_max: the upper end of the schedule used, in thousandths (800 leaves out sigma > 24.4).
        sigma_min: sigma at t = 0.
        sigma_max: sigma at t = 1000.
        rho: exponent of the schedule.

    Returns:
        sigma, shaped like `u`.
    """
    return _power_interpolation(1 - u * (t_max / 1000), sigma_max, sigma_min, rho)


def step_sigmas(sigma_init: float, steps: int) -> list[float]:
    """Noise levels at which a generator of several steps denoises, the first one first.

    They fall evenly from sigma_init to sigma_init / steps (the SiD authors' multistep sampler for
    EDM2): sigma_k = sigma_init (steps - k) / steps.
    """
    return [sigma_init * (steps - k) / steps for k in range(steps)]


def sampler_sigmas(
    steps: int, sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7
) -> Tensor:
    """Noise levels that a sampler visits: `steps` falling from sigma_max to sigma_min, then 0.

    Returns:
        float64 [steps + 1].
    """
    fraction = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = _power_interpolation(fraction, sigma_max, sigma_min, rho)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def flow_times(steps: int, t_max: float = 0.999) -> Tensor:
    """Times of a rectified flow that a sampler visits: `steps` falling evenly from t_max, then 0.

    t = 1, pure noise, is sigma = t / (1 - t) without an end, so the first is a little less.

    Returns:
        float64 [steps + 1].
    """
    return torch.linspace(t_max, 0, steps + 1, dtype=torch.float64)
