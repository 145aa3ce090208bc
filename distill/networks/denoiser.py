"""EDM preconditioning around a raw network (arXiv 2206.00364, table 1)."""

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from distill.networks.layers import group_count_misfits
from distill.networks.song import SongUNet


class NetworkConfig(BaseModel):
    """What it takes to build a network anew; stored beside its weights. See `SongUNet`.

    A configuration that cannot be built raises pydantic's ValidationError, saying why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    img_resolution: int = Field(ge=4)
    img_channels: int = Field(ge=1)
    label_dim: int = Field(default=0, ge=0)
    augment_dim: int = Field(default=0, ge=0)
    model_channels: int = Field(default=128, ge=4)
    channel_mult: tuple[int, ...] = Field(default=(2, 2, 2), min_length=1)
    num_blocks: int = Field(default=4, ge=1)
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = Field(default=0.10, ge=0, lt=1)

    @model_validator(mode="after")
    def _buildable(self) -> "NetworkConfig":
        halvings = len(self.channel_mult) - 1
        if self.img_resolution % 2**halvings:
            raise ValueError(
                f"img_resolution {self.img_resolution} cannot be halved {halvings} times: choose "
                f"one divisible by {2**halvings}, or fewer entries in channel_mult"
            )
        levels = [self.img_resolution >> level for level in range(halvings + 1)]
        if foreign := set(self.attn_resolutions) - set(levels):
            raise ValueError(
                f"attn_resolutions {sorted(foreign)} are no level of this network: it has {levels}"
            )
        for mult in (1, *self.channel_mult):
            if mult < 1 or group_count_misfits(self.model_channels * mult):
                raise ValueError(
                    f"{self.model_channels} x {mult} channels cannot be normalised in groups: "
                    "choose a multiple of 4 up to 128, above it a multiple of 32"
                )
        return self


class Denoiser(nn.Module):
    """D(x; sigma, c) = c_skip x + c_out F(c_in x, c_noise, c), sigma_data = 0.5.

    Everything is float32.
    """

    sigma_data = 0.5

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.model = SongUNet(**config.model_dump())

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Denoise.

        Args:
            x: float32 [N, C, H, W], the noisy image, clean pixels in [-1, 1].
            sigma: float32 [N], [N, 1, 1, 1] or [1], the standard deviation of the noise.
            class_labels: float32 one-hot [N, label_dim]; None means the zero vector.
            augment_labels: float32 [N, augment_dim]; None means the zero vector.

        Returns:
            float32 [N, C, H, W], the estimate of E[clean image | x].
        """
        x, sigma = x.float(), sigma.float().reshape(-1, 1, 1, 1)
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data * variance.rsqrt()
        c_in = variance.rsqrt()
        c_noise = (sigma.log() / 4).flatten()
        if class_labels is None and self.config.label_dim:
            class_labels = x.new_zeros(x.shape[0], self.config.label_dim)
        return c_skip * x + c_out * self.model(c_in * x, c_noise, class_labels, augment_labels)
