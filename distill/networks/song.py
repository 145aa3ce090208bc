"""DDPM++: the U-Net of Song et al. (arXiv 2011.13456) as EDM configures it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.networks.layers import (
    NEAR_ZERO,
    Conv2d,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    UNetBlock,
)


class SongUNet(nn.Module):
    """The raw network F(c_in x, c_noise, labels) inside the EDM preconditioning.

    Args:
        img_resolution: height and width in pixels, divisible by 2^(levels - 1).
        img_channels: colour channels of input and output.
        label_dim: number of classes, 0 for an unconditional network.
        augment_dim: width of the augmentation labels, 0 for none.
        model_channels: channels at the highest resolution, before `channel_mult`.
        channel_mult: one factor per level, from the highest resolution down.
        num_blocks: residual blocks per level on the way down (one more on the way up).
        attn_resolutions: resolutions whose blocks attend over all pixels.
        dropout: probability of dropping an activation inside the blocks.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (2, 2, 2),
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.10,
    ) -> None:
        super().__init__()
        emb_channels = 4 * model_channels
        self.label_dim = label_dim
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_label = Linear(label_dim, model_channels) if label_dim else None
        self.map_augment = Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels)
        self.map_layer1 = Linear(emb_channels, emb_channels)

        def block(cin: int, cout: int, attention: bool, **resample: bool) -> UNetBlock:
            return UNetBlock(cin, cout, emb_channels, dropout, attention=attention, **resample)

        self.enc = nn.ModuleDict()
        channels, skips = img_channels, []
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(channels, model_channels, kernel=3)
                channels = model_channels
            else:
                self.enc[f"{res}x{res}_down"] = block(channels, channels, False, down=True)
            skips.append(channels)
            for i in range(num_blocks):
                width = model_channels * mult
                self.enc[f"{res}x{res}_block{i}"] = block(channels, width, res in attn_resolutions)
                channels = width
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = block(channels, channels, True)
                self.dec[f"{res}x{res}_in1"] = block(channels, channels, False)
            else:
                self.dec[f"{res}x{res}_up"] = block(channels, channels, False, up=True)
            for i in range(num_blocks + 1):
                attention = i == num_blocks and res in attn_resolutions
                width = model_channels * mult
                self.dec[f"{res}x{res}_block{i}"] = block(channels + skips.pop(), width, attention)
                channels = width
        res = img_resolution
        self.dec[f"{res}x{res}_aux_norm"] = GroupNorm(channels, eps=1e-6)
        self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, img_channels, kernel=3, gain=NEAR_ZERO)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Map x [N, C, H, W], c_noise [N] or [1], one-hot labels [N, label_dim] to [N, C, H, W]."""
        emb = self.embed(c_noise, class_labels, augment_labels)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if name.endswith("aux_norm"):
                x = F.silu(layer(x))
            elif name.endswith("aux_conv"):
                x = layer(x)
            else:
                if x.shape[1] != layer.in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, emb)
        return x

    def embed(
        self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Embed noise level, class and augmentation: [N, 4 model_channels]."""
        emb = self.map_noise(c_noise)
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(class_labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
