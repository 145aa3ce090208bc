"""A light decoder: from an autoencoder's latents to images, for a fraction of its decoder's work.

It is of the kind of TAESD (github.com/madebyollin/taesd): 3x3 convolutions of one width in residual
blocks with ReLU, nearest upsampling, nothing that normalises. It has learned to make the images
that another decoder makes (`distill.methods.light_decoder`), so it belongs to that one's latents.
"""

from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from distill.networks.autoencoder import LatentScale

_BLOCKS, _LAST_BLOCKS = 3, 1  # of a level; at the images' resolution, where each costs most
_REACH = 3.0  # deviations, to which latents are bent softly: nobody taught it what lies beyond
_MOST_LEVELS, _MOST_BLOCKS, _WIDEST = 8, 16, 1024


class LightDecoderLayout(BaseModel):
    """What it takes to build a light decoder anew.

    Attributes:
        img_channels: channels of an image.
        latent_channels: channels of a latent.
        width: channels of every map in between.
        blocks: residual blocks per level, from the latents' resolution up; each level after the
            first doubles it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    img_channels: int = Field(default=3, ge=1, le=16)
    latent_channels: int = Field(default=4, ge=1, le=_WIDEST)
    width: int = Field(default=64, ge=8, le=_WIDEST)
    blocks: tuple[int, ...] = Field(default=(3, 3, 3, 1), min_length=1, max_length=_MOST_LEVELS)

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        if self.width % 8:
            raise ValueError(f"a width of {self.width} is no multiple of 8")
        if not all(1 <= count <= _MOST_BLOCKS for count in self.blocks):
            raise ValueError(f"each level needs 1 to {_MOST_BLOCKS} blocks, not {self.blocks}")
        return self

    @property
    def factor(self) -> int:
        """Pixels of an image's side to one of the latent's."""
        return int(2 ** (len(self.blocks) - 1))


def usual_blocks(factor: int) -> tuple[int, ...]:
    """The blocks of each level, for images of `factor` times the latents' size."""
    return (*[_BLOCKS] * (factor.bit_length() - 1), _LAST_BLOCKS)


class LightDecoder(nn.Module):
    """From latents to images, as `distill.networks.autoencoder.Decoder`.

    Args:
        layout: what to build.
        latents: how latents of mean 0 and deviation 0.5 come from those that it takes; None: they
            are so already.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, layout: LightDecoderLayout, latents: LatentScale | None = None) -> None:
        super().__init__()
        self.layout = layout
        channels, width = layout.latent_channels, layout.width
        known = latents or LatentScale((1.0,) * channels, (0.0,) * channels)
        # To a deviation of 1. They are the file's, and no training moves them.
        self.register_buffer("scale", 2 * torch.tensor(known.scale))
        self.register_buffer("shift", 2 * torch.tensor(known.bias))
        self.conv_in = _conv(channels, width)
        self.levels = nn.ModuleList(
            _Level(width, count, doubles=number > 0) for number, count in enumerate(layout.blocks)
        )
        self.conv_out = _conv(width, layout.img_channels)

    def forward(self, raw: Tensor) -> Tensor:
        """Map [N, latent_channels, h, w] to [N, img_channels, factor h, factor w].

        The images lie in [0, 1] as those that it learned from; nothing cuts them to it.
        """
        x = raw * self.scale.view(-1, 1, 1) + self.shift.view(-1, 1, 1)
        x = F.relu(self.conv_in((x / _REACH).tanh() * _REACH))
        for level in self.levels:
            x = level(x)
        images: Tensor = self.conv_out(x)
        return images

    @torch.no_grad()
    def take_scaled(self, latents: LatentScale) -> None:
        """Take a network's latents from now on, in the place of the autoencoder's own."""
        scale, bias = (torch.tensor(numbers).to(self.scale) for numbers in latents)
        self.scale /= scale
        self.shift -= self.scale * bias


class _Level(nn.Module):
    def __init__(self, width: int, blocks: int, doubles: bool) -> None:
        super().__init__()
        self.doubled = _conv(width, width) if doubles else None
        self.blocks = nn.Sequential(*[_Block(width) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        if self.doubled is not None:
            x = self.doubled(F.interpolate(x, scale_factor=2, mode="nearest"))
        y: Tensor = self.blocks(x)
        return y


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (_conv(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(x + y)


def _conv(cin: int, cout: int) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, padding=1)
