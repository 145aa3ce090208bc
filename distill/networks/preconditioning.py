"""What stands around a raw network F, so that it denoises: D = c_skip x + c_out F(c_in x, c_noise).

A teacher learns on a path from images x0 to noise eps. Whatever the path, x0 + sigma eps is what
D is given and an estimate of x0 what it gives, so distillation, sampling and export see no path.

- "edm": F is scaled for data of one standard deviation (arXiv 2206.00364, table 1).
- "flow", the rectified flow (arXiv 2209.03003, 2210.02747): F is given x_t = (1 - t) x0 + t eps and
  gives the velocity v = E[eps - x0 | x_t]. Then x_t = x / (1 + sigma) with t = sigma / (1 + sigma),
  and D = x_t - t v.
"""

from typing import Literal

from torch import Tensor

Preconditioning = Literal["edm", "flow"]

SIGMA_DATA = 0.5  # of "edm": standard deviation of images with pixels in [-1, 1]
# The U-Nets embed c_noise by sines of frequencies from 1 down, which suit ln(sigma) / 4 and its
# range of three: t's is made about as wide. The network of recipes/fashion-flow.toml had a loss of
# 0.346 by images 5,000 to 7,700 with it, 0.353 with t itself and 0.349 with 1000 t (one seed).
TIME_SCALE = 4


def coefficients(kind: Preconditioning, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in and c_noise of noise levels, each of sigma's shape."""
    if kind == "flow":
        c_in = 1 / (1 + sigma)
        t = sigma * c_in
        return c_in, -t, c_in, TIME_SCALE * t
    variance = sigma**2 + SIGMA_DATA**2
    c_skip = SIGMA_DATA**2 / variance
    c_out = sigma * SIGMA_DATA * variance.rsqrt()
    return c_skip, c_out, variance.rsqrt(), sigma.log() / 4


def denoising_weight(kind: Preconditioning, sigma: Tensor) -> Tensor:
    """lambda(sigma), the weight of |D - x0|^2 by which a denoiser learns; of sigma's shape.

    It is 1 / c_out^2, so that F's own error counts alike at all levels: "edm" has
    (sigma^2 + sd^2) / (sigma sd)^2 (EDM, table 1), and "flow" ((1 + sigma) / sigma)^2, which makes
    the loss |v - (eps - x0)|^2.
    """
    if kind == "flow":
        return ((1 + sigma) / sigma) ** 2
    return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
