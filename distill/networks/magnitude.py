"""Layers that keep the magnitude of what goes through them (EDM2, arXiv 2312.02696).

Activations of variance 1 stay such, so that nothing has to be normalised in groups and no layer
has a bias. Equation numbers are that paper's.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-4  # added to the root mean square that a vector is divided by
SILU = 0.596  # the root mean square of silu(x) for standard normal x (81)


def normalise(x: Tensor, dim: Sequence[int]) -> Tensor:
    """Give every vector along `dim` a root mean square of one, measured in float32.

    Doing so twice is not quite the same as once: a vector of length r becomes one of r / (r + EPS).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=dtype)
    count = math.prod(x.shape[axis] for axis in dim)
    return x / (EPS + length * count**-0.5).to(x.dtype)


def unit_rows(weight: Tensor) -> Tensor:
    """A weight [out, ...] with each output's row of root mean square one."""
    return normalise(weight, dim=tuple(range(1, weight.ndim)))


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596 (81)."""
    return F.silu(x) / SILU


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """((1 - t) a + t b) / sqrt((1 - t)^2 + t^2) (88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The channels of a and then b, their shares of the magnitude 1 - t and t (103)."""
    first, second = a.shape[1], b.shape[1]
    scale = math.sqrt((first + second) / ((1 - t) ** 2 + t**2))
    scaled = [a * (scale * (1 - t) / math.sqrt(first)), b * (scale * t / math.sqrt(second))]
    return torch.cat(scaled, dim=1)


def cosine_attention(qkv: Tensor, heads: int, interleaved: bool = True) -> Tensor:
    """Attend over all pixels with normalised q, k and v: [N, 3C, H, W] -> [N, C, H, W].

    The three are interleaved per channel as in the released checkpoints, or follow one another;
    see `distill.networks.layers.self_attention`.
    """
    channels, (height, width) = qkv.shape[1] // 3, qkv.shape[2:]
    if interleaved:
        parts = qkv.reshape(-1, channels, 3, height, width).unbind(dim=2)
    else:
        parts = qkv.chunk(3, dim=1)
    shape = (-1, heads, channels // heads, height * width)
    q, k, v = (normalise(part.reshape(shape), dim=[2]).transpose(2, 3) for part in parts)
    attended = F.scaled_dot_product_attention(q, k, v)  # [N, heads, HW, C / heads]
    return attended.transpose(2, 3).reshape(-1, channels, height, width)


class MPFourier(nn.Module):
    """sqrt(2) cos(x f + p) of a scalar, at frequencies and phases that are drawn once (75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N] to [N, channels]."""
        return math.sqrt(2) * (torch.outer(x, self.freqs) + self.phases).cos()


class MPConv(nn.Module):
    """A convolution, or with `kernel` 0 a dense layer, that preserves magnitudes; no bias (47).

    The weight is normalised wherever it is used. While the network learns it is held at that
    length besides, or its growth would slow learning down (66): see `RawNetwork.unit_weights`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        area = (kernel, kernel) if kernel else ()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *area))
        self.folded = False

    def forward(self, x: Tensor, gain: float | Tensor = 1) -> Tensor:
        """Map [N, in, H, W] to [N, out, H, W], or [N, in] to [N, out], times a gain."""
        weight = self.weight if self.folded else self.used_weight(gain)
        weight = weight.to(x.dtype)
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def used_weight(self, gain: float | Tensor = 1) -> Tensor:
        """What x is multiplied by: unit rows times gain / sqrt(inputs of an output)."""
        return unit_rows(self.weight) * (gain / math.sqrt(self.weight[0].numel()))

    @torch.no_grad()
    def fold(self, gain: float | Tensor = 1) -> None:
        """Keep from now on, in place, what the weight is used as with this gain."""
        self.weight = nn.Parameter(self.used_weight(gain))
        self.folded = True
