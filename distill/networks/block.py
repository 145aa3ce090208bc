"""The residual block that all three U-Nets are made of."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.networks.layers import Conv2d, GroupNorm, Init, Linear, self_attention


@dataclass(frozen=True)
class BlockStyle:
    """In what the blocks of the architectures differ (facts: EDM, table 7 and appendix F).

    Attributes:
        adaptive: the embedding scales and shifts the normalised map; else it is added before.
        skip_scale: factor on the sum of a branch and what it skips.
        eps: of the group normalisations.
        channels_per_head: of the attention; None means one head.
        project_resampled: the skip has a 1x1 convolution wherever it resamples; else only where
            the number of channels changes.
        resample: filter of the resampling.
        init: of the weights.
        init_qkv: of the attention's three inputs.
        init_last: of the layer that ends a residual branch.
    """

    adaptive: bool
    skip_scale: float
    eps: float
    channels_per_head: int | None
    project_resampled: bool
    resample: tuple[int, ...]
    init: Init
    init_qkv: Init
    init_last: Init


class UNetBlock(nn.Module):
    """Two convolutions, the embedding between them, then attention, each as a residual branch.

    h = conv0(silu(norm0(x))); p = affine(emb)
    h = silu(norm1(h + p)), or adaptive: scale, shift = p; h = silu(norm1(h) (scale + 1) + shift)
    x = (conv1(dropout(h)) + skip(x)) skip_scale
    x = (proj(attention(qkv(norm2(x)))) + x) skip_scale
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        dropout: float,
        style: BlockStyle,
        attention: bool = False,
        up: bool = False,
        down: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.dropout, self.style = in_channels, dropout, style

        def conv(cin: int, cout: int, kernel: int, init: Init, **resample: bool) -> Conv2d:
            return Conv2d(cin, cout, kernel, init, resample=style.resample, **resample)

        self.norm0 = GroupNorm(in_channels, style.eps)
        self.conv0 = conv(in_channels, out_channels, 3, style.init, up=up, down=down)
        # An exported network has a table in its place (`UNet.fold`).
        self.affine: nn.Module = Linear(
            emb_channels, out_channels * (1 + style.adaptive), style.init
        )
        self.norm1 = GroupNorm(out_channels, style.eps)
        self.conv1 = conv(out_channels, out_channels, 3, style.init_last)
        self.skip: Conv2d | None = None
        resampled = up or down
        if in_channels != out_channels or resampled:
            projected = in_channels != out_channels or style.project_resampled
            self.skip = conv(
                in_channels, out_channels, int(projected), style.init, up=up, down=down
            )
        self.heads = 0
        if attention:
            per_head = style.channels_per_head
            self.heads = 1 if per_head is None else out_channels // per_head
        self.interleaved = True  # see `self_attention`
        # In which the attention hands its map on; None: as it comes, which is what suits CPUs. Set
        # by `distill.training.network_form`.
        self.memory_format: torch.memory_format | None = None
        if self.heads:
            if out_channels % self.heads:
                raise ValueError(
                    f"{out_channels} channels cannot be split among {self.heads} attention heads"
                )
            self.norm2 = GroupNorm(out_channels, style.eps)
            self.qkv = conv(out_channels, out_channels * 3, 1, style.init_qkv)
            self.proj = conv(out_channels, out_channels, 1, style.init_last)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x [N, in, H, W] and emb [N, emb_channels] to [N, out, H', W']."""
        h = self.conv0(F.silu(self.norm0(x)))
        p = self.affine(emb)[:, :, None, None]
        if self.style.adaptive:
            scale, shift = p[:, : h.shape[1]], p[:, h.shape[1] :]
            h = F.silu(self.norm1(h) * (scale + 1) + shift)
        else:
            h = F.silu(self.norm1(h + p))
        h = self.conv1(F.dropout(h, p=self.dropout, training=self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.style.skip_scale
        if self.heads:
            h = self_attention(self.qkv(self.norm2(x)), self.heads, self.interleaved)
            if self.memory_format is not None:
                h = h.contiguous(memory_format=self.memory_format)
            x = (self.proj(h) + x) * self.style.skip_scale
        return x

    def uninterleave(self) -> None:
        """Compute all of q, then k, then v: one split of the map instead of strides; in place."""
        order = torch.arange(len(self.qkv.weight)).reshape(-1, 3).T.flatten()
        self.qkv.weight = nn.Parameter(self.qkv.weight[order])
        self.qkv.bias = nn.Parameter(self.qkv.bias[order])
        self.interleaved = False
