"""Building blocks of the EDM U-Nets (arXiv 2206.00364, appendix F).

Parameter names are those of the released checkpoints, so that a state dict loads unchanged.
Feature maps are NCHW; the memory layout may be channels_last, which is faster on CPUs.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.networks.layout import group_count

BOX = (1, 1)  # mean of 2x2 pixels, repetition
BINOMIAL = (1, 3, 3, 1)


class Init(Protocol):
    """Fills a fresh layer's weight, and its bias where it has one, in place."""

    def __call__(self, weight: Tensor, bias: Tensor | None, fan_in: int, fan_out: int) -> None:
        """Draw the weight of a layer with so many inputs and outputs an element."""


def glorot(gain: float = 1) -> Init:
    """U(-b, b), b = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010), bias 0."""

    def fill(weight: Tensor, bias: Tensor | None, fan_in: int, fan_out: int) -> None:
        bound = gain * math.sqrt(6 / (fan_in + fan_out))
        nn.init.uniform_(weight, -bound, bound)
        if bias is not None:
            nn.init.zeros_(bias)

    return fill


def kaiming(weight: Tensor, bias: Tensor | None, fan_in: int, fan_out: int) -> None:  # noqa: ARG001
    """He et al.'s U(-b, b), b = sqrt(3 / fan_in), with gain sqrt(1/3); the bias alike."""
    bound = math.sqrt(1 / fan_in)
    nn.init.uniform_(weight, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


def zeros(weight: Tensor, bias: Tensor | None, fan_in: int, fan_out: int) -> None:  # noqa: ARG001
    """0: a residual branch that ends in it starts as the identity."""
    nn.init.zeros_(weight)
    if bias is not None:
        nn.init.zeros_(bias)


def filter_of(taps: tuple[int, ...]) -> Tensor:
    """The outer product of `taps` with themselves, its sum 1: float32 [len, len]."""
    row = torch.tensor(taps, dtype=torch.float32) / sum(taps)
    return torch.outer(row, row)


class Linear(nn.Linear):
    """A dense layer."""

    def __init__(self, in_features: int, out_features: int, init: Init, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        init(self.weight, self.bias, in_features, out_features)


class Conv2d(nn.Module):
    """A same-size convolution after a resampling by two, if any.

    `kernel` 0 means resampling alone, without a weight. `resample` is the filter along one axis;
    it is part of the architecture, so its buffer is not in the state dict. On the way down the
    convolution may come first (`fused`), and then also fills the margin that the filter reads.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        init: Init,
        up: bool = False,
        down: bool = False,
        resample: tuple[int, ...] = BOX,
        fused: bool = False,
    ) -> None:
        super().__init__()
        assert not (up and down)
        assert kernel or in_channels == out_channels
        assert not fused or (down and resample != BOX)
        self.up, self.down, self.kernel, self.fused = up, down, kernel, fused
        self.resample = resample if up or down else ()
        if self.resample and resample != BOX:  # torch has the box as an operation of its own
            self.register_buffer("resample_filter", filter_of(resample), persistent=False)
        if kernel:
            self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
            self.bias = nn.Parameter(torch.empty(out_channels))
            area = kernel * kernel
            init(self.weight, self.bias, in_channels * area, out_channels * area)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, out, H', W'], H' = 2H when up, H/2 when down."""
        margin = (len(self.resample) - 1) // 2
        if self.fused:
            x = F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2 + margin)
            return self._filtered(x, padding=0)
        if self.resample not in ((), BOX):
            x = self._filtered(x, padding=margin)
        elif self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        elif self.down:
            x = F.avg_pool2d(x, kernel_size=2)
        if self.kernel:
            x = F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2)
        return x

    def _filtered(self, x: Tensor, padding: int) -> Tensor:
        """Resample every channel by two; each tap counts four times on the way up."""
        channels = x.shape[1]
        taps = self.resample_filter.expand(channels, 1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4 * taps, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, taps, stride=2, padding=padding, groups=channels)


class GroupNorm(nn.GroupNorm):
    """Group normalisation over `group_count` groups.

    Attributes:
        keeps_layout: compute by `group_norm_nhwc`, for a network in channels_last on CUDA or one
            that is compiled: torch's kernel for CUDA answers in NCHW, and the next convolution
            has to transpose (pytorch#111824). Set by `distill.training.network_form`; a graph is
            exported from a network that nobody has set it in.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(group_count(channels), channels, eps=eps)
        self.keeps_layout = False

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N, C, H, W] over pixels and the channels of a group."""
        if self.keeps_layout:
            return group_norm_nhwc(input, self.num_groups, self.weight, self.bias, self.eps)
        if input.is_cuda and input.dtype in (torch.bfloat16, torch.float16):
            return group_norm_half(input, self.num_groups, self.weight, self.bias, self.eps)
        return super().forward(input)


def group_norm_half(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalisation of a map in half precision by torch's kernel for that type.

    Its sums, and so the statistics, are float32. torch's autocast would have the kernel read and
    write float32 instead, which is more than twice the memory's traffic for what the next
    convolution rounds anyway (docs/results/gpu.md).

    Args:
        x: bfloat16 or float16 [N, C, H, W].
        groups: into how many the channels are divided.
        weight: float32 [C], the scale; the kernel takes it rounded to x's type.
        bias: float32 [C], the shift; likewise.
        eps: added to the variance.

    Returns:
        [N, C, H, W] of x's type.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)


def group_norm_nhwc(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalisation of a map in channels_last, whose layout it keeps.

    All is computed in float32 and rounded once, to the input's type: torch's autocast would hand
    on float32, twice the memory for what the next convolution rounds anyway.

    Args:
        x: [N, C, H, W] in channels_last (any other layout costs a copy).
        groups: into how many the channels are divided.
        weight: float32 [C], the scale.
        bias: float32 [C], the shift.
        eps: added to the variance.

    Returns:
        [N, C, H, W] in channels_last, of x's type.
    """
    count, channels, height, width = x.shape
    shape = (count, height * width, groups, channels // groups)
    rows = x.permute(0, 2, 3, 1).reshape(shape)
    rows = rows.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(rows, dim=(1, 3), correction=0, keepdim=True)
    scale = (variance + eps).rsqrt() * weight.view(groups, -1)  # [N, 1, groups, C / groups]
    normed = torch.addcmul(bias.view(groups, -1) - mean * scale, rows, scale)
    return normed.to(x.dtype).view(count, height, width, channels).permute(0, 3, 1, 2)


def self_attention(qkv: Tensor, heads: int, interleaved: bool = True) -> Tensor:
    """Attend over all pixels: [N, 3C, H, W] -> [N, C, H, W].

    The three of q, k, v are interleaved per channel, as in the released checkpoints: channel
    3i + j holds component j of channel i. Or they follow one another, as exported graphs have it.
    torch takes the softmax of half-precision inputs in float32, in every kernel it chooses from.
    """
    channels, (height, width) = qkv.shape[1] // 3, qkv.shape[2:]
    if interleaved:
        q, k, v = qkv.reshape(-1, channels, 3, height, width).unbind(dim=2)
    else:
        q, k, v = qkv.chunk(3, dim=1)
    shape = (-1, heads, channels // heads, height * width)
    q, k, v = (part.reshape(shape).transpose(2, 3) for part in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v)  # [N, heads, HW, dim]
    return attended.transpose(2, 3).reshape(-1, channels, height, width)


class PositionalEmbedding(nn.Module):
    """Cosines and sines of a scalar at geometrically spaced frequencies 1 .. 1/10000.

    With `endpoint` the last frequency is 1/10000 itself, else it would be the next.
    """

    def __init__(self, channels: int, endpoint: bool) -> None:
        super().__init__()
        if channels % 2:
            raise ValueError(f"{channels} channels cannot be halved into cosines and sines")
        self.channels, self.endpoint = channels, endpoint

    def forward(self, x: Tensor) -> Tensor:
        """Map [N] to [N, channels]: the cosines, then the sines."""
        half = self.channels // 2
        exponent = torch.arange(half, device=x.device, dtype=torch.float32)
        exponent = exponent / (half - int(self.endpoint))
        angles = torch.outer(x, (1 / 10000) ** exponent)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines and sines of a scalar at random frequencies, drawn once: N(0, scale^2)."""

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(channels // 2).normal_(std=scale))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N] to [N, channels]: the cosines, then the sines."""
        angles = torch.outer(x, 2 * math.pi * self.freqs)
        return torch.cat([angles.cos(), angles.sin()], dim=1)
