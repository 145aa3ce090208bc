"""Which latents a network draws, and the decoder that makes pixels of them."""

import copy
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator
from torch import Tensor, nn

from distill.networks.autoencoder import Decoder, LatentScale
from distill.networks.family import NetworkLayout
from distill.networks.light_decoder import LightDecoder

_PIXELS_PER_CALL = 2**20  # the decoder's widest maps have so many, times a hundred channels


AnyDecoder = Decoder | LightDecoder


class LatentSpace(BaseModel):
    """Whose latents a network draws: it stands in the network's header as `latents`.

    Attributes:
        autoencoder: its name, for people.
        scale, bias: how the network's latents stand to the autoencoder's own, see `LatentScale`.
        sha256: of the autoencoder's latent space (`distill.autoencoders.latent_space_of`); None of
            a released network, whose file does not say.
        file: where the autoencoder lay when the network was trained; None: not known.
    """

    model_config = ConfigDict(frozen=True)

    autoencoder: str
    scale: tuple[FiniteFloat, ...] = Field(min_length=1)
    bias: tuple[FiniteFloat, ...] = Field(min_length=1)
    sha256: str | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _of_one_number_per_channel(self) -> Self:
        if len(self.scale) != len(self.bias) or 0 in self.scale:
            raise ValueError("scale and bias need a number a channel each, the scale none of 0")
        return self

    @property
    def latent_scale(self) -> LatentScale:
        """The scale and bias together."""
        return LatentScale(self.scale, self.bias)


class LatentDecoder(nn.Module):
    """From a network's latents to pixels.

    Args:
        decoder: of the autoencoder, or a light one that imitates it.
        space: how the network's latents stand to the decoder's.
    """

    def __init__(self, decoder: AnyDecoder, space: LatentSpace) -> None:
        super().__init__()
        self.decoder, self.space = decoder, space

    def levels(self, latents: Tensor) -> Tensor:
        """Map float32 [N, c, h, w] to float32 [N, C, H, W], of which 0 to 255 can be shown."""
        images: Tensor = self.decoder(self.space.latent_scale.to_raw(latents)) * 255
        return images

    def folded(self) -> AnyDecoder:
        """A copy of the decoder that takes the network's own latents: float32 on the CPU."""
        decoder = copy.deepcopy(self.decoder).cpu().float().eval()
        decoder.take_scaled(self.space.latent_scale)
        return decoder

    @torch.no_grad()
    def levels_in_parts(self, latents: Tensor) -> Tensor:
        """`levels`, of a few images at a time: the decoder's maps are large."""
        return torch.cat([self.levels(part) for part in self._parts(latents)])

    @torch.no_grad()
    def forward(self, latents: Tensor) -> Tensor:
        """Map float32 [N, c, h, w] to uint8 [N, H, W, C], truncating as EDM2 does."""
        levels = (self.levels(part).clamp(0, 255) for part in self._parts(latents))
        return torch.cat([part.to(torch.uint8).permute(0, 2, 3, 1) for part in levels])

    def _parts(self, latents: Tensor) -> tuple[Tensor, ...]:
        pixels = latents[0, 0].numel() * self.decoder.layout.factor**2
        return latents.split(max(1, _PIXELS_PER_CALL // pixels))


def image_shape(network: NetworkLayout, decoder: LatentDecoder | None) -> tuple[int, int, int]:
    """[C, H, W] of the images that a network draws, or a decoder makes of what it draws."""
    channels, height, width = network.latent_shape
    if decoder is None:
        return channels, height, width
    layout = decoder.decoder.layout
    return layout.img_channels, height * layout.factor, width * layout.factor
