"""Building blocks of the EDM U-Nets (arXiv 2206.00364, appendix F).

Parameter names are those of the released checkpoints, so that a state dict loads unchanged.
Feature maps are NCHW; the memory layout may be channels_last, which is faster on CPUs.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# A projection that starts near zero makes its residual branch start as the identity.
NEAR_ZERO = 1e-5


def _xavier_uniform_(weight: Tensor, fan_in: int, fan_out: int, gain: float) -> None:
    """Fill with U(-b, b), b = gain sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""
    bound = gain * math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(weight, -bound, bound)


class Linear(nn.Linear):
    """A dense layer with Glorot initialisation and zero bias."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        _xavier_uniform_(self.weight, in_features, out_features, gain=1)
        if bias:
            nn.init.zeros_(self.bias)


class Conv2d(nn.Module):
    """A same-size convolution after an optional resampling by two.

    Resampling uses the filter [1, 1]: the mean of 2x2 pixels on the way down, repetition on
    the way up. `kernel` 0 means resampling alone, without a weight.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        gain: float = 1,
    ) -> None:
        super().__init__()
        assert not (up and down)
        assert kernel or in_channels == out_channels
        self.up, self.down, self.kernel = up, down, kernel
        if kernel:
            self.weight = nn.Parameter(torch.empty(out_channels, in_channels, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(out_channels))
            area = kernel * kernel
            _xavier_uniform_(self.weight, in_channels * area, out_channels * area, gain)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in, H, W] to [N, out, H', W'], H' = 2H when up, H/2 when down."""
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.down:
            x = F.avg_pool2d(x, kernel_size=2)
        if self.kernel:
            x = F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2)
        return x


def group_count(channels: int) -> int:
    """Groups of at least four channels, at most 32."""
    return min(32, channels // 4)


def group_count_misfits(channels: int) -> bool:
    """Whether `channels` cannot be divided into `group_count` equal groups."""
    return channels < 4 or channels % group_count(channels) != 0


class GroupNorm(nn.GroupNorm):
    """Group normalisation over `group_count` groups."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(group_count(channels), channels, eps=eps)


def self_attention(qkv: Tensor, heads: int) -> Tensor:
    """Attend over all pixels: [N, 3C, H, W] -> [N, C, H, W].

    The three of q, k, v are interleaved per channel, as in the released checkpoints: channel
    3i + j holds component j of channel i.
    """
    n, c3, height, width = qkv.shape
    dim = c3 // (3 * heads)
    q, k, v = qkv.reshape(n, heads, dim, 3, height * width).transpose(2, 4).unbind(dim=3)
    attended = F.scaled_dot_product_attention(q, k, v)  # [N, heads, HW, dim]
    return attended.transpose(2, 3).reshape(n, heads * dim, height, width)


class UNetBlock(nn.Module):
    """The DDPM++ residual block: two convolutions, the embedding added between, attention.

    h = conv0(silu(norm0(x))); h = conv1(dropout(silu(norm1(h + affine(emb)))));
    x = (h + skip(x)) / sqrt(2), then the same residual form around attention.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        dropout: float,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.dropout = in_channels, dropout
        self.norm0 = GroupNorm(in_channels, eps=1e-6)
        self.conv0 = Conv2d(in_channels, out_channels, kernel=3, up=up, down=down)
        self.affine = Linear(emb_channels, out_channels)
        self.norm1 = GroupNorm(out_channels, eps=1e-6)
        self.conv1 = Conv2d(out_channels, out_channels, kernel=3, gain=NEAR_ZERO)
        self.skip: Conv2d | None = None
        if in_channels != out_channels or up or down:
            self.skip = Conv2d(in_channels, out_channels, kernel=1, up=up, down=down)
        self.attention = attention
        if attention:
            self.norm2 = GroupNorm(out_channels, eps=1e-6)
            self.qkv = Conv2d(out_channels, out_channels * 3, kernel=1, gain=math.sqrt(0.2))
            self.proj = Conv2d(out_channels, out_channels, kernel=1, gain=NEAR_ZERO)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x [N, in, H, W] and emb [N, emb_channels] to [N, out, H', W']."""
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(F.dropout(h, p=self.dropout, training=self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * math.sqrt(0.5)
        if self.attention:
            h = self.proj(self_attention(self.qkv(self.norm2(x)), heads=1))
            x = (h + x) * math.sqrt(0.5)
        return x


class PositionalEmbedding(nn.Module):
    """Sines and cosines of a scalar at geometrically spaced frequencies 1 .. 1/10000."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [N] to [N, channels]: the sines, then the cosines."""
        half = self.channels // 2
        exponent = torch.arange(half, device=x.device, dtype=torch.float32) / (half - 1)
        angles = torch.outer(x, (1 / 10000) ** exponent)
        return torch.cat([angles.sin(), angles.cos()], dim=1)
