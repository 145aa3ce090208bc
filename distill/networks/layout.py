"""What EDM's U-Nets are built from: numbers that nobody has tried to build from yet."""

from typing import ClassVar, Literal

from pydantic import Field

from distill.networks.family import NetworkLayout

Architecture = Literal["ddpmpp", "ncsnpp", "adm"]

# ADM's blocks have one attention head for so many channels, and none below that.
ADM_CHANNELS_PER_HEAD = 64


class EdmLayout(NetworkLayout):
    """What it takes to build a U-Net anew; the defaults are DDPM++'s for CIFAR-10.

    Whether it can be built is for `distill.networks.edm.EdmConfig` to say, which is a layout too.

    Attributes:
        architecture: DDPM++ or NCSN++ of Song et al. (arXiv 2011.13456), or ADM of Dhariwal and
            Nichol (arXiv 2105.05233), each as EDM configures it (arXiv 2206.00364, table 7).
        img_resolution: divisible by patch_size 2^(levels - 1).
        patch_size: side of the square patches of pixels that the U-Net sees as channels: with 2 a
            64x64x3 image is a 32x32x12 feature map. 1 means that it sees the pixels themselves.
        model_channels: channels at the highest resolution, before `channel_mult`.
        channel_mult: one factor per level, from the highest resolution down.
        num_blocks: residual blocks per level on the way down (one more on the way up).
        attn_resolutions: resolutions whose blocks attend over all pixels.
        dropout: probability of dropping an activation inside the blocks.
    """

    added_later: ClassVar[tuple[str, ...]] = ("patch_size", *NetworkLayout.added_later)

    architecture: Architecture = "ddpmpp"
    patch_size: int = Field(default=1, ge=1)
    model_channels: int = Field(default=128, ge=4)
    channel_mult: tuple[int, ...] = Field(default=(2, 2, 2), min_length=1)
    num_blocks: int = Field(default=4, ge=1)
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = Field(default=0.10, ge=0, lt=1)

    @property
    def resolutions(self) -> list[int]:
        """The resolution of every level's feature maps, from the highest down."""
        highest = self.img_resolution // self.patch_size
        return [highest >> level for level in range(len(self.channel_mult))]

    @property
    def patch_channels(self) -> int:
        """Channels of the U-Net's input and output: all values of one patch."""
        return self.img_channels * self.patch_size**2


def group_count(channels: int) -> int:
    """Groups of at least four channels, at most 32."""
    return min(32, channels // 4)
