"""What a network is built from: the record that is stored beside its weights."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from distill.networks.buildable import why_not_buildable

Architecture = Literal["ddpmpp", "ncsnpp", "adm"]

# ADM's blocks have one attention head for so many channels, and none below that.
ADM_CHANNELS_PER_HEAD = 64


class NetworkConfig(BaseModel):
    """What it takes to build a network anew; the defaults are DDPM++'s for CIFAR-10.

    A configuration that cannot be built raises pydantic's ValidationError, saying why.

    Attributes:
        architecture: DDPM++ or NCSN++ of Song et al. (arXiv 2011.13456), or ADM of Dhariwal and
            Nichol (arXiv 2105.05233), each as EDM configures it (arXiv 2206.00364, table 7).
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

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture = "ddpmpp"
    img_resolution: int = Field(ge=4)
    img_channels: int = Field(ge=1)
    label_dim: int = Field(default=0, ge=0)
    augment_dim: int = Field(default=0, ge=0)
    model_channels: int = Field(default=128, ge=4)
    channel_mult: tuple[int, ...] = Field(default=(2, 2, 2), min_length=1)
    num_blocks: int = Field(default=4, ge=1)
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = Field(default=0.10, ge=0, lt=1)

    @property
    def resolutions(self) -> list[int]:
        """The resolution of every level, from the highest down."""
        return [self.img_resolution >> level for level in range(len(self.channel_mult))]

    @model_validator(mode="after")
    def _buildable(self) -> "NetworkConfig":
        halvings = len(self.channel_mult) - 1
        if self.img_resolution % 2**halvings:
            raise ValueError(
                f"img_resolution {self.img_resolution} cannot be halved {halvings} times: choose "
                f"one divisible by {2**halvings}, or fewer entries in channel_mult"
            )
        if foreign := set(self.attn_resolutions) - set(self.resolutions):
            raise ValueError(
                f"attn_resolutions {sorted(foreign)} are no level of this network: "
                f"it has {self.resolutions}"
            )
        if min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult {list(self.channel_mult)} must hold factors from 1 on")
        if reason := why_not_buildable(self):
            raise ValueError(reason)
        return self


def group_count(channels: int) -> int:
    """Groups of at least four channels, at most 32."""
    return min(32, channels // 4)
