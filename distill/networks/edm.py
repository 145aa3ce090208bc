"""The family of EDM's U-Nets: DDPM++, NCSN++ and ADM (arXiv 2206.00364, table 7)."""

from pydantic import model_validator

from distill.networks.buildable import explain_not_buildable
from distill.networks.dhariwal import DhariwalUNet
from distill.networks.layout import EdmLayout
from distill.networks.song import SongUNet
from distill.networks.unet import UNet


class EdmConfig(EdmLayout):
    """A layout that was tried: one that cannot be built raises pydantic's ValidationError.

    The attributes are those of `EdmLayout`.
    """

    def build(self) -> UNet:
        """See `distill.networks.family.NetworkLayout`."""
        return (DhariwalUNet if self.architecture == "adm" else SongUNet)(self)

    @model_validator(mode="after")
    def _buildable(self) -> "EdmConfig":
        if self.img_resolution % self.patch_size:
            raise ValueError(
                f"img_resolution {self.img_resolution} cannot be cut into patches of "
                f"{self.patch_size}x{self.patch_size}: choose a patch_size that divides it"
            )
        halvings = len(self.channel_mult) - 1
        if (self.img_resolution // self.patch_size) % 2**halvings:
            patches = f" in patches of {self.patch_size}" if self.patch_size > 1 else ""
            raise ValueError(
                f"img_resolution {self.img_resolution}{patches} cannot be halved {halvings} times: "
                f"choose one divisible by {self.patch_size * 2**halvings}, or fewer entries in "
                "channel_mult"
            )
        if foreign := set(self.attn_resolutions) - set(self.resolutions):
            raise ValueError(
                f"attn_resolutions {sorted(foreign)} are no level of this network: "
                f"it has {self.resolutions}"
            )
        if min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult {list(self.channel_mult)} must hold factors from 1 on")
        if reason := explain_not_buildable(self):
            raise ValueError(reason)
        return self
