"""DDPM++ and NCSN++: the U-Nets of Song et al. (arXiv 2011.13456) as EDM configures them."""

import dataclasses
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.networks.block import BlockStyle, UNetBlock
from distill.networks.layers import (
    BINOMIAL,
    BOX,
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    glorot,
)
from distill.networks.layout import EdmLayout
from distill.networks.unet import UNet, build_decoder, build_encoder

# A projection that starts near zero makes its residual branch start as the identity.
NEAR_ZERO = glorot(gain=1e-5)

DDPMPP = BlockStyle(
    adaptive=False,
    skip_scale=math.sqrt(0.5),
    eps=1e-6,
    channels_per_head=None,
    project_resampled=True,
    resample=BOX,
    init=glorot(),
    init_qkv=glorot(gain=math.sqrt(0.2)),
    init_last=NEAR_ZERO,
)
NCSNPP = dataclasses.replace(DDPMPP, resample=BINOMIAL)


class SongUNet(UNet):
    """The raw network F(c_in x, c_noise, labels) inside the preconditioning.

    NCSN++ differs from DDPM++ in three things: random Fourier features embed the noise level, a
    smoother filter resamples, and a reduced image is added at every level on the way down.
    """

    def __init__(self, config: EdmLayout) -> None:
        super().__init__(config)
        ncsnpp = config.architecture == "ncsnpp"
        style = NCSNPP if ncsnpp else DDPMPP
        width = config.model_channels
        emb_channels, noise_channels = 4 * width, 2 * width if ncsnpp else width
        init = style.init
        self.label_dim = config.label_dim
        self.map_noise = (
            FourierEmbedding(noise_channels)
            if ncsnpp
            else PositionalEmbedding(noise_channels, endpoint=True)
        )
        self.map_label = (
            Linear(config.label_dim, noise_channels, init) if config.label_dim else None
        )
        self.map_augment = (
            Linear(config.augment_dim, noise_channels, init, bias=False)
            if config.augment_dim
            else None
        )
        self.map_layer0 = Linear(noise_channels, emb_channels, init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init)

        def block(
            cin: int, cout: int, attention: bool = False, *, up: bool = False, down: bool = False
        ) -> UNetBlock:
            return UNetBlock(cin, cout, emb_channels, config.dropout, style, attention, up, down)

        def aux_residual(cin: int, cout: int) -> Conv2d:
            return Conv2d(cin, cout, 3, init, down=True, resample=BINOMIAL, fused=True)

        first = Conv2d(config.patch_channels, width, 3, init)
        self.enc, skips = build_encoder(
            config, first, width, block, aux_residual if ncsnpp else None
        )
        self.dec, channels = build_decoder(config, skips, block, attention_in_all=False)
        self._end = f"{config.resolutions[0]}x{config.resolutions[0]}_aux"
        self.dec[f"{self._end}_norm"] = GroupNorm(channels, style.eps)
        self.dec[f"{self._end}_conv"] = Conv2d(channels, config.patch_channels, 3, NEAR_ZERO)

    def end(self, x: Tensor) -> Tensor:
        """Map what the last block gives to patches [N, C p^2, H / p, W / p]."""
        return self.dec[f"{self._end}_conv"](F.silu(self.dec[f"{self._end}_norm"](x)))

    def embed(
        self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Embed noise level, class and augmentation: [N, 4 model_channels]."""
        emb = self.map_noise(c_noise)
        half = emb.shape[1] // 2
        emb = torch.cat([emb[:, half:], emb[:, :half]], dim=1)  # the sines first
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(class_labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
