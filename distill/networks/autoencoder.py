"""The autoencoder of Stable Diffusion's kind (arXiv 2112.10752): from images to latents and back.

A network that draws latents [4, 64, 64] needs the decoder to show an image [3, 512, 512]. Module
names are those of diffusers' AutoencoderKL, the kind that released files have.
"""

from itertools import pairwise
from typing import NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6  # of every normalisation


class AutoencoderLayout(BaseModel):
    """What it takes to build an autoencoder anew; the defaults are Stable Diffusion's.

    Attributes:
        img_channels: channels of an image.
        latent_channels: channels of a latent.
        widths: channels of each level's maps, from the images' resolution down; each level below
            the first halves it.
        blocks: residual blocks per level of the encoder (one more in the decoder).
        groups: in which every normalisation divides its channels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    img_channels: int = Field(default=3, ge=1)
    latent_channels: int = Field(default=4, ge=1)
    widths: tuple[int, ...] = Field(default=(128, 256, 512, 512), min_length=1)
    blocks: int = Field(default=2, ge=1)
    groups: int = Field(default=32, ge=1)

    @property
    def factor(self) -> int:
        """Pixels of an image's side to one of the latent's."""
        return int(2 ** (len(self.widths) - 1))

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        for width in self.widths:
            if width < 1 or width % self.groups:
                raise ValueError(
                    f"{width} channels cannot be normalised in {self.groups} groups: groups has to "
                    f"divide each of the widths {list(self.widths)}"
                )
        return self


class LatentScale(NamedTuple):
    """How a network's latents stand to those of its autoencoder: latent = raw scale + bias.

    The network's have a mean of 0 and a standard deviation of 0.5 a channel, as all of EDM's data.

    Attributes:
        scale: a factor a channel.
        bias: what is added to a channel.
    """

    scale: tuple[float, ...]
    bias: tuple[float, ...]

    def to_raw(self, latents: Tensor) -> Tensor:
        """What the decoder takes, of a network's latents [N, C, h, w]."""
        return (latents - _per_channel(self.bias, latents)) / _per_channel(self.scale, latents)

    def to_latents(self, raw: Tensor) -> Tensor:
        """A network's latents, of an encoder's [N, C, h, w]."""
        return raw * _per_channel(self.scale, raw) + _per_channel(self.bias, raw)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    # Filled on the device: numbers copied from the host would have to wait for a CUDA card.
    return torch.cat([like.new_full((1, 1, 1), value) for value in values])


# Of all released latent networks of EDM2: raw latents of sd-vae-ft-mse have means of 5.81, 3.25,
# 0.12 and -2.15 and deviations of 4.17, 4.62, 3.71 and 3.28, for it is given pixels in [0, 1].
EDM2_SCALE = LatentScale(
    scale=(0.5 / 4.17, 0.5 / 4.62, 0.5 / 3.71, 0.5 / 3.28),
    bias=(-5.81 * 0.5 / 4.17, -3.25 * 0.5 / 4.62, -0.12 * 0.5 / 3.71, 2.15 * 0.5 / 3.28),
)


class Decoder(nn.Module):
    """From latents to images."""

    def __init__(self, layout: AutoencoderLayout) -> None:
        super().__init__()
        self.layout = layout
        channels = layout.latent_channels
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.decoder = _Decoder(layout)

    def forward(self, raw: Tensor) -> Tensor:
        """Map [N, latent_channels, h, w] to [N, img_channels, factor h, factor w].

        The images lie in [0, 1] for an encoder that was given such, as EDM2 uses it, and in
        [-1, 1] otherwise; nothing cuts them to it.
        """
        images: Tensor = self.decoder(self.post_quant_conv(raw))
        return images

    @torch.no_grad()
    def take_scaled(self, latents: LatentScale) -> None:
        """Take a network's latents from now on, in the place of the autoencoder's own."""
        first = self.post_quant_conv
        assert first.bias is not None
        scale, bias = (torch.tensor(numbers).to(first.weight) for numbers in latents)
        weight = first.weight / scale.view(1, -1, 1, 1)
        first.bias -= weight[:, :, 0, 0] @ bias
        first.weight.copy_(weight)


class Encoder(nn.Module):
    """From images to latents, each the mean and deviation of a normal distribution."""

    def __init__(self, layout: AutoencoderLayout) -> None:
        super().__init__()
        self.layout = layout
        channels = 2 * layout.latent_channels
        self.encoder = _Encoder(layout)
        self.quant_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, img_channels, H, W] to means and deviations [N, 2 latent_channels, h, w]."""
        mean, log_variance = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return torch.cat([mean, (0.5 * log_variance.clamp(-30, 20)).exp()], dim=1)


def draw_latents(moments: Tensor, noise: Tensor, scale: LatentScale) -> Tensor:
    """A network's latents, of means and deviations [N, 2 C, h, w] and noise [N, C, h, w]."""
    mean, deviation = moments.chunk(2, dim=1)
    return scale.to_latents(mean + deviation * noise)


def decoded_pixels(images: Tensor) -> Tensor:
    """Quantise a decoder's images in [0, 1] to uint8, truncating as EDM2 does."""
    return (images.clamp(0, 1) * 255).to(torch.uint8)


class _Decoder(nn.Module):
    def __init__(self, layout: AutoencoderLayout) -> None:
        super().__init__()
        widths = layout.widths[::-1]
        self.conv_in = _conv(layout.latent_channels, widths[0])
        self.mid_block = _Middle(widths[0], layout.groups)
        self.up_blocks = nn.ModuleList(
            _Level(above, width, layout.blocks + 1, layout.groups, ups=index < len(widths) - 1)
            for index, (above, width) in enumerate(pairwise(widths[:1] + widths))
        )
        self.conv_norm_out = nn.GroupNorm(layout.groups, widths[-1], EPS)
        self.conv_out = _conv(widths[-1], layout.img_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        images: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return images


class _Encoder(nn.Module):
    def __init__(self, layout: AutoencoderLayout) -> None:
        super().__init__()
        widths = layout.widths
        self.conv_in = _conv(layout.img_channels, widths[0])
        self.down_blocks = nn.ModuleList(
            _Level(above, width, layout.blocks, layout.groups, downs=index < len(widths) - 1)
            for index, (above, width) in enumerate(pairwise(widths[:1] + widths))
        )
        self.mid_block = _Middle(widths[-1], layout.groups)
        self.conv_norm_out = nn.GroupNorm(layout.groups, widths[-1], EPS)
        self.conv_out = _conv(widths[-1], 2 * layout.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        moments: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return moments


class _Level(nn.Module):
    """Residual blocks at one resolution, and a resampling to the next one."""

    def __init__(
        self, cin: int, cout: int, blocks: int, groups: int, ups: bool = False, downs: bool = False
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            _Residual(cout if i else cin, cout, groups) for i in range(blocks)
        )
        if ups:
            self.upsamplers = nn.ModuleList([_Upsampler(cout)])
        if downs:
            self.downsamplers = nn.ModuleList([_Downsampler(cout)])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            for layer in part.children():
                x = layer(x)
        return x


class _Middle(nn.Module):
    """Attention between two residual blocks, at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Residual(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([_Attention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.resnets
        attended: Tensor = last(self.attentions[0](first(x)))
        return attended


class _Residual(nn.Module):
    def __init__(self, cin: int, cout: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, cin, EPS)
        self.conv1 = _conv(cin, cout)
        self.norm2 = nn.GroupNorm(groups, cout, EPS)
        self.conv2 = _conv(cout, cout)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut: Tensor = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return shortcut + h


class _Attention(nn.Module):
    """One head over all pixels, as a residual branch."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # [N, pixels, C]
        q, k, v = (layer(h).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v))
        h = self.to_out[0](F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + h.transpose(1, 2).reshape(x.shape)


class _Upsampler(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return doubled


class _Downsampler(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))  # right and below alone
        return halved


def _conv(cin: int, cout: int) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, padding=1)
