"""ADM: the U-Net of Dhariwal and Nichol (arXiv 2105.05233) as EDM configures it."""

from torch import Tensor, nn
from torch.nn import functional as F

from distill.networks.block import BlockStyle, UNetBlock
from distill.networks.layers import (
    BOX,
    Conv2d,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    kaiming,
    zeros,
)
from distill.networks.layout import ADM_CHANNELS_PER_HEAD, EdmLayout
from distill.networks.unet import UNet, build_decoder, build_encoder

ADM = BlockStyle(
    adaptive=True,
    skip_scale=1,
    eps=1e-5,
    channels_per_head=ADM_CHANNELS_PER_HEAD,
    project_resampled=False,
    resample=BOX,
    init=kaiming,
    init_qkv=kaiming,
    init_last=zeros,
)


class DhariwalUNet(UNet):
    """The raw network F(c_in x, c_noise, labels) inside the preconditioning."""

    def __init__(self, config: EdmLayout) -> None:
        super().__init__(config)
        channels = config.model_channels
        emb_channels = 4 * channels
        self.map_noise = PositionalEmbedding(channels, endpoint=False)
        self.map_augment = (
            Linear(config.augment_dim, channels, zeros, bias=False) if config.augment_dim else None
        )
        self.map_layer0 = Linear(channels, emb_channels, kaiming)
        self.map_layer1 = Linear(emb_channels, emb_channels, kaiming)
        self.map_label: Linear | None = None
        if config.label_dim:
            self.map_label = Linear(config.label_dim, emb_channels, kaiming, bias=False)
            # One column counts at a time, so each is drawn as if it were the only one.
            nn.init.normal_(self.map_label.weight)

        def block(
            cin: int, cout: int, attention: bool = False, *, up: bool = False, down: bool = False
        ) -> UNetBlock:
            return UNetBlock(cin, cout, emb_channels, config.dropout, ADM, attention, up, down)

        width = channels * config.channel_mult[0]
        first = Conv2d(config.patch_channels, width, 3, kaiming)
        self.enc, skips = build_encoder(config, first, width, block)
        self.dec, width = build_decoder(config, skips, block, attention_in_all=True)
        self.out_norm = GroupNorm(width, ADM.eps)
        self.out_conv = Conv2d(width, config.patch_channels, 3, zeros)

    def end(self, x: Tensor) -> Tensor:
        """Map what the last block gives to patches [N, C p^2, H / p, W / p]."""
        return self.out_conv(F.silu(self.out_norm(x)))

    def embed(
        self, c_noise: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        """Embed noise level, class and augmentation: [N, 4 model_channels]."""
        emb = self.map_noise(c_noise)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(class_labels)
        return F.silu(emb)
