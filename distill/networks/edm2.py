"""EDM2's U-Net, whose layers all preserve magnitudes (Karras et al., arXiv 2312.02696).

Module names are those of the released checkpoints.
"""

import math
from collections.abc import Iterable
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from distill.networks.family import NetworkLayout, RawNetwork, Table
from distill.networks.magnitude import (
    SILU,
    MPConv,
    MPFourier,
    cosine_attention,
    mp_cat,
    mp_silu,
    mp_sum,
    normalise,
)

LABEL_BALANCE, CONCAT_BALANCE = 0.5, 0.5
RESIDUAL_BALANCE, ATTENTION_BALANCE = 0.3, 0.3
CLIP = 256  # what leaves a block is cut to this, far below the largest float16


class Edm2Config(NetworkLayout):
    """What it takes to build EDM2's U-Net anew; the defaults are those of all released sizes.

    Attributes:
        architecture: of this family there is one.
        img_resolution: divisible by 2^(levels - 1).
        augment_dim: 0, for the network has no augmentation labels.
        model_channels: channels at the highest resolution, before `channel_mult`: 64 (xxs), 128
            (xs), 192 (s), 256 (m), 320 (l), 384 (xl), 448 (xxl).
        channel_mult: one factor per level, from the highest resolution down.
        num_blocks: residual blocks per level on the way down (one more on the way up).
        attn_resolutions: resolutions whose blocks attend over all pixels.
        channels_per_head: of the attention: so many channels make a head, fewer none.
        logvar_channels: width of the uncertainty head, by which a denoiser says how far it may be
            off at a noise level, and which only its training reads; 0 for none.
    """

    architecture: Literal["edm2"] = "edm2"
    augment_dim: Literal[0] = 0
    model_channels: int = Field(default=128, ge=4, le=4096)
    channel_mult: tuple[int, ...] = Field(default=(1, 2, 3, 4), min_length=1)
    num_blocks: int = Field(default=3, ge=1)
    attn_resolutions: tuple[int, ...] = (16, 8)
    channels_per_head: int = Field(default=64, ge=1)
    logvar_channels: int = Field(default=128, ge=0)

    @property
    def resolutions(self) -> list[int]:
        """The resolution of every level's feature maps, from the highest down."""
        return [self.img_resolution >> level for level in range(len(self.channel_mult))]

    @property
    def widths(self) -> list[int]:
        """The channels of every level's feature maps, from the highest resolution down."""
        return [self.model_channels * mult for mult in self.channel_mult]

    @property
    def is_uncertain(self) -> bool:
        """See `distill.networks.family.NetworkLayout`."""
        return self.logvar_channels > 0

    def build(self) -> "Edm2UNet":
        """See `distill.networks.family.NetworkLayout`."""
        return Edm2UNet(self)

    def for_drawing(self) -> Self:
        """See `distill.networks.family.NetworkLayout`: without the uncertainty head."""
        return self.model_copy(update={"logvar_channels": 0})

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        halvings = len(self.channel_mult) - 1
        if self.img_resolution % 2**halvings:
            raise ValueError(
                f"img_resolution {self.img_resolution} cannot be halved {halvings} times: choose "
                f"one divisible by {2**halvings}, or fewer entries in channel_mult"
            )
        if not all(1 <= mult <= 64 for mult in self.channel_mult):
            raise ValueError(f"channel_mult {list(self.channel_mult)} must hold factors of 1 to 64")
        if foreign := set(self.attn_resolutions) - set(self.resolutions):
            raise ValueError(
                f"attn_resolutions {sorted(foreign)} are no level of this network: "
                f"it has {self.resolutions}"
            )
        for width in self.widths:
            heads = width // self.channels_per_head
            if heads and width % heads:
                raise ValueError(
                    f"{width} channels cannot be split among {heads} attention heads: choose a "
                    f"model_channels that is a multiple of channels_per_head "
                    f"({self.channels_per_head})"
                )
        return self


class Edm2Block(nn.Module):
    """Two convolutions, scaled by the embedding in between, then attention (figure 21).

    Args:
        in_channels: of the map that comes in, skips included.
        out_channels: of the map that goes out.
        emb_channels: width of the embedding.
        config: dropout, and how wide heads are.
        encoder: on the way down what comes in is brought to the level's width first and
            normalised; on the way up it is brought to that width beside the two convolutions.
        attention: whether it attends, if it is wide enough for a head.
        resample: halve the map before, or double it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        config: Edm2Config,
        *,
        encoder: bool,
        attention: bool = False,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.encoder, self.resample = in_channels, encoder, resample
        self.dropout = config.dropout
        # [1] where the released files have a number: FSDP spreads no parameter without an axis.
        self.emb_gain = nn.Parameter(torch.zeros(1))
        self.conv_res0 = MPConv(out_channels if encoder else in_channels, out_channels, 3)
        self.emb_linear = MPConv(emb_channels, out_channels, 0)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        self.conv_skip: MPConv | None = None
        if in_channels != out_channels:
            self.conv_skip = MPConv(in_channels, out_channels, 1)
        self.heads = out_channels // config.channels_per_head if attention else 0
        if self.heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1)
            self.attn_proj = MPConv(out_channels, out_channels, 1)
        self.folded = False
        self.table: nn.Module | None = None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map x [N, in, H, W] and emb [N, emb_channels] to [N, out, H', W']."""
        if self.resample == "down":
            x = F.avg_pool2d(x, kernel_size=2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.encoder:
            x = self._at_width(x)
            x = normalise(x, dim=[1])
        silu = F.silu if self.folded else mp_silu
        y = self.conv_res0(silu(x))
        y = silu(y * self.modulation(emb)[:, :, None, None].to(y.dtype))
        y = self.conv_res1(F.dropout(y, p=self.dropout, training=self.training))
        if not self.encoder:
            x = self._at_width(x)
        x = mp_sum(x, y, RESIDUAL_BALANCE)
        if self.heads:
            y = cosine_attention(self.attn_qkv(x), self.heads, interleaved=not self.folded)
            x = mp_sum(x, self.attn_proj(y), ATTENTION_BALANCE)
        return x.clamp(-CLIP, CLIP)

    def modulation(self, emb: Tensor) -> Tensor:
        """What the embedding scales the channels by: [N, out]."""
        if self.table is not None:
            scales: Tensor = self.table(emb)
            return scales
        scales = self.emb_linear(emb, self.emb_gain)
        return scales + 1

    def _at_width(self, x: Tensor) -> Tensor:
        return x if self.conv_skip is None else self.conv_skip(x)

    def fold(self) -> None:
        """Compute weights beforehand, in place, with all that is constant at inference."""
        for module in (self.conv_res0, self.conv_res1, self.conv_skip):
            if module is not None:
                module.fold()
        self.emb_linear.fold(self.emb_gain)
        for after_silu in (self.conv_res0, self.conv_res1):
            after_silu.weight.data /= SILU
        if self.heads:  # all of q, then k, then v: one split of the map instead of strides
            self.attn_proj.fold()
            self.attn_qkv.fold()
            order = torch.arange(len(self.attn_qkv.weight)).reshape(-1, 3).T.flatten()
            self.attn_qkv.weight.data = self.attn_qkv.weight.data[order]
        self.folded = True


class Edm2UNet(RawNetwork):
    """The raw network F(c_in x, c_noise, labels) inside the preconditioning."""

    def __init__(self, config: Edm2Config) -> None:
        super().__init__()
        width, emb_channels = config.widths[0], max(config.widths)
        self.label_dim = config.label_dim
        self.emb_fourier = MPFourier(width)
        self.emb_noise = MPConv(width, emb_channels, 0)
        self.emb_label = MPConv(config.label_dim, emb_channels, 0) if config.label_dim else None
        # A channel of ones stands for the biases that no layer has.
        first = MPConv(config.img_channels + 1, width, 3)
        self.enc, skips = _encoder(config, first, emb_channels)
        self.dec = _decoder(config, skips, emb_channels)
        self.out_conv = MPConv(width, config.img_channels, 3)
        self.out_gain = nn.Parameter(torch.zeros(1))
        self.logvar_fourier: MPFourier | None = None
        self.logvar_linear: MPConv | None = None
        if config.logvar_channels:
            self.logvar_fourier = MPFourier(config.logvar_channels)
            self.logvar_linear = MPConv(config.logvar_channels, 1, 0)

    def embed(
        self,
        c_noise: Tensor,
        class_labels: Tensor | None,
        augment_labels: Tensor | None,  # noqa: ARG002
    ) -> Tensor:
        """Embed noise level and class: [N, max(channel_mult) model_channels]."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            labelled = torch.zeros_like(emb)
            if class_labels is not None:
                labelled = self.emb_label(class_labels * math.sqrt(self.label_dim))
            emb = mp_sum(emb, labelled, LABEL_BALANCE)
        return mp_silu(emb)

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Walk the way down; return every skip, the last one the lowest."""
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, Edm2Block) else layer(x)
            skips.append(x)
        return skips

    def decode(self, features: list[Tensor], emb: Tensor) -> Tensor:
        """Walk the way up, taking the skips (which it uses up) in all blocks named so."""
        x = features[-1]
        for name, layer in self.dec.items():
            if "block" in name:
                x = mp_cat(x, features.pop(), CONCAT_BALANCE)
            x = layer(x, emb)
        drawn: Tensor = self.out_conv(x, self.out_gain)
        return drawn

    def uncertainty(self, c_noise: Tensor) -> Tensor | None:
        """See `RawNetwork.uncertainty`."""
        if self.logvar_fourier is None or self.logvar_linear is None:
            return None
        log_variance: Tensor = self.logvar_linear(self.logvar_fourier(c_noise))
        return log_variance.reshape(-1, 1, 1, 1).clone()  # FSDP warns of views that are returned

    def strip(self) -> None:
        """See `RawNetwork.strip`: without the uncertainty head."""
        self.logvar_fourier = self.logvar_linear = None

    def unit_weights(self) -> list[nn.Parameter]:
        """See `RawNetwork.unit_weights`: those of every layer."""
        return [module.weight for module in self.modules() if isinstance(module, MPConv)]

    def blocks(self) -> Iterable[nn.Module]:
        """Every block, and the convolutions at both ends."""
        return (*self.enc.values(), *self.dec.values(), self.out_conv)

    def fold(self, emb: Tensor) -> nn.Module:
        """Normalise the weights; make tables with a row a class of what scales the channels.

        Where there are more classes than the embedding is wide, only the embedding becomes one: a
        block's table would be larger than the layer that it replaces.
        """
        blocks = [module for module in self.modules() if isinstance(module, Edm2Block)]
        first = next(iter(self.enc.values()))
        assert isinstance(first, MPConv)
        first.fold()
        self.out_conv.fold(self.out_gain)
        for block in blocks:
            block.fold()
        if len(emb) > emb.shape[1]:
            return Table(emb)
        for block in blocks:
            block.table = Table(block.modulation(emb))
        return nn.Identity()


def _encoder(
    config: Edm2Config, first: MPConv, emb_channels: int
) -> tuple[nn.ModuleDict, list[int]]:
    """The way down by released names, and the channels of every skip, in order."""
    modules = nn.ModuleDict()
    channels = config.widths[0]
    skips = [channels]
    for level, (res, width) in enumerate(zip(config.resolutions, config.widths, strict=True)):
        if level == 0:
            modules[f"{res}x{res}_conv"] = first
        else:
            modules[f"{res}x{res}_down"] = Edm2Block(
                channels, channels, emb_channels, config, encoder=True, resample="down"
            )
            skips.append(channels)
        for i in range(config.num_blocks):
            modules[f"{res}x{res}_block{i}"] = Edm2Block(
                channels, width, emb_channels, config,
                encoder=True, attention=res in config.attn_resolutions,
            )  # fmt: skip
            channels = width
            skips.append(channels)
    return modules, skips


def _decoder(config: Edm2Config, skips: list[int], emb_channels: int) -> nn.ModuleDict:
    """The way up by released names."""
    modules = nn.ModuleDict()
    channels = skips[-1]
    levels = list(zip(config.resolutions, config.widths, strict=True))
    for level, (res, width) in reversed(list(enumerate(levels))):

        def block(
            cin: int, cout: int, attention: bool, resample: Literal["up"] | None = None
        ) -> Edm2Block:
            return Edm2Block(
                cin, cout, emb_channels, config,
                encoder=False, attention=attention, resample=resample,
            )  # fmt: skip

        if level == len(levels) - 1:
            modules[f"{res}x{res}_in0"] = block(channels, channels, attention=True)
            modules[f"{res}x{res}_in1"] = block(channels, channels, attention=False)
        else:
            modules[f"{res}x{res}_up"] = block(channels, channels, attention=False, resample="up")
        for i in range(config.num_blocks + 1):
            attention = res in config.attn_resolutions
            modules[f"{res}x{res}_block{i}"] = block(channels + skips.pop(), width, attention)
            channels = width
    return modules
