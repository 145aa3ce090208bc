"""Encoder, decoder and the skips between them: the wiring that all three U-Nets share."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.networks.block import UNetBlock
from distill.networks.family import RawNetwork, Table
from distill.networks.layout import EdmLayout


class UNet(RawNetwork):
    """A U-Net whose encoder and decoder a subclass fills with blocks.

    Whatever the architecture, pixels become patches here and nowhere else: a subclass builds
    layers for feature maps of `config.resolutions[0]` pixels a side and `config.patch_channels`
    channels.

    Attributes:
        patch_size: see `EdmLayout`.
        enc: the way down, see `build_encoder`.
        dec: the way up, see `build_decoder`.
    """

    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def __init__(self, config: EdmLayout) -> None:
        super().__init__()
        self.patch_size = config.patch_size

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Walk the way down; return every skip, the last one the lowest."""
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)  # space to depth
        aux = x
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                aux = skips[-1] = (skips[-1] + layer(aux)) * math.sqrt(0.5)
            elif isinstance(layer, UNetBlock):
                skips.append(layer(skips[-1], emb))
            else:
                skips.append(layer(x))
        return skips

    def decode(self, features: list[Tensor], emb: Tensor) -> Tensor:
        """Walk the way up, taking the skips (which it uses up) where a block is wide enough."""
        x = features[-1]
        for layer in self.dec.values():
            if isinstance(layer, UNetBlock):
                if x.shape[1] != layer.in_channels:
                    x = torch.cat([x, features.pop()], dim=1)
                x = layer(x, emb)
        x = self.end(x)
        return x if self.patch_size == 1 else F.pixel_shuffle(x, self.patch_size)

    @abstractmethod
    def end(self, x: Tensor) -> Tensor:
        """Map what the last block gives to patches [N, C p^2, H / p, W / p]."""

    def blocks(self) -> Iterable[nn.Module]:
        """Every block, and every layer beside them, on the way down and up."""
        return (*self.enc.values(), *self.dec.values())

    def fold(self, emb: Tensor) -> nn.Module:
        """Make tables, a row for each row of the embedding, of what each block makes of it.

        Where there are more rows than the embedding is wide, only the embedding becomes one: a
        block's table would be larger than the layer that it replaces.
        """
        blocks = [module for module in self.modules() if isinstance(module, UNetBlock)]
        for block in blocks:
            if block.heads:
                block.uninterleave()
        if len(emb) > emb.shape[1]:
            return Table(emb)
        for block in blocks:
            block.affine = Table(block.affine(emb))
        return nn.Identity()


class MakeBlock(Protocol):
    """Builds one block of an architecture's style."""

    def __call__(
        self, cin: int, cout: int, attention: bool = False, *, up: bool = False, down: bool = False
    ) -> UNetBlock:
        """Return a block from `cin` to `cout` channels."""


def build_encoder(
    config: EdmLayout,
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
    config: EdmLayout, skips: list[int], block: MakeBlock, attention_in_all: bool
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
