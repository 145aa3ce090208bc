"""Encoder, decoder and the skips between them: the wiring that all three U-Nets share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.networks.block import UNetBlock
from distill.networks.layout import NetworkLayout


class UNet(nn.Module, ABC):
    """The raw network F(c_in x, c_noise, labels) inside the EDM preconditioning.

    Whatever the architecture, pixels become patches here and nowhere else: a subclass sees
    feature maps of `config.resolutions[0]` pixels a side and `config.patch_channels` channels.

    Attributes:
        patch_size: see `NetworkLayout`.
    """

    def __init__(self, config: NetworkLayout) -> None:
        super().__init__()
        self.patch_size = config.patch_size

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Map x [N, C, H, W], c_noise [N] or [1], one-hot labels [N, label_dim] to [N, C, H, W]."""
        return self.draw(x, self.embed(c_noise, class_labels, augment_labels))

    def draw(self, x: Tensor, emb: Tensor) -> Tensor:
        """What is left of `forward` when the embedding [N, 4 model_channels] is known."""
        if self.patch_size == 1:
            return self.draw_patches(x, emb)
        patches = F.pixel_unshuffle(x, self.patch_size)  # space to depth
        return F.pixel_shuffle(self.draw_patches(patches, emb), self.patch_size)

    @abstractmethod
    def draw_patches(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map patches [N, C p^2, H / p, W / p] to patches, given the embedding."""

    @abstractmethod
    def embed(
        self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Embed noise level, class and augmentation: [N, 4 model_channels]."""


class MakeBlock(Protocol):
    """Builds one block of an architecture's style."""

    def __call__(
        self, cin: int, cout: int, attention: bool = False, *, up: bool = False, down: bool = False
    ) -> UNetBlock:
        """Return a block from `cin` to `cout` channels."""


def build_encoder(
    config: NetworkLayout,
    first: nn.Module,
    width: int,
    block: MakeBlock,
    aux_residual: Callable[[int, int], nn.Module] | None = None,
) -> tuple[nn.ModuleDict, list[int]]:
    """Build the way down.

    Args:
        config: sizes.
        first: the convolution from patches to `width` channels.
        width: channels that `first` gives.
        block: builds a block.
        aux_residual: builds the convolution that adds the reduced image to a level, given the
            channels of the level above (the patches' at first) and of this one; None for none.

    Returns:
        The modules by their released names, and the channels of every skip, in order.
    """
    modules = nn.ModuleDict()
    channels, skips = width, [width]
    aux_channels = config.patch_channels
    for level, (res, mult) in enumerate(zip(config.resolutions, config.channel_mult, strict=True)):
        if level == 0:
            modules[f"{res}x{res}_conv"] = first
        else:
            modules[f"{res}x{res}_down"] = block(channels, channels, down=True)
            skips.append(channels)
            if aux_residual is not None:
                modules[f"{res}x{res}_aux_residual"] = aux_residual(aux_channels, channels)
                aux_channels = channels
        for i in range(config.num_blocks):
            attention = res in config.attn_resolutions
            modules[f"{res}x{res}_block{i}"] = block(
                channels, config.model_channels * mult, attention
            )
            channels = config.model_channels * mult
            skips.append(channels)
    return modules, skips


def build_decoder(
    config: NetworkLayout, skips: list[int], block: MakeBlock, attention_in_all: bool
) -> tuple[nn.ModuleDict, int]:
    """Build the way up.

    Args:
        config: sizes.
        skips: channels of every skip, as `build_encoder` returns them.
        block: builds a block.
        attention_in_all: whether every block at an attention resolution attends, or the last.

    Returns:
        The modules by their released names, and the channels of the last one.
    """
    modules = nn.ModuleDict()
    channels, skips = skips[-1], list(skips)
    for level in reversed(range(len(config.channel_mult))):
        res, width = config.resolutions[level], config.model_channels * config.channel_mult[level]
        if level == len(config.channel_mult) - 1:
            modules[f"{res}x{res}_in0"] = block(channels, channels, True)
            modules[f"{res}x{res}_in1"] = block(channels, channels)
        else:
            modules[f"{res}x{res}_up"] = block(channels, channels, up=True)
        for i in range(config.num_blocks + 1):
            attention = res in config.attn_resolutions and (
                attention_in_all or i == config.num_blocks
            )
            modules[f"{res}x{res}_block{i}"] = block(channels + skips.pop(), width, attention)
            channels = width
    return modules, channels


def encode(modules: nn.ModuleDict, x: Tensor, emb: Tensor) -> list[Tensor]:
    """Walk the way down from patches [N, C, H, W]; return every skip, the last one the lowest."""
    aux = x
    skips: list[Tensor] = []
    for name, layer in modules.items():
        if name.endswith("aux_residual"):
            aux = skips[-1] = (skips[-1] + layer(aux)) * math.sqrt(0.5)
        elif isinstance(layer, UNetBlock):
            skips.append(layer(skips[-1], emb))
        else:
            skips.append(layer(x))
    return skips


def decode(modules: nn.ModuleDict, skips: list[Tensor], emb: Tensor) -> Tensor:
    """Walk the way up, taking the skips (which it uses up) where a block is wide enough."""
    x = skips[-1]
    for layer in modules.values():
        if isinstance(layer, UNetBlock):
            if x.shape[1] != layer.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, emb)
    return x
