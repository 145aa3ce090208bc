"""EDM preconditioning around a raw network (arXiv 2206.00364, table 1)."""

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from distill.networks.song import SongUNet


class NetworkConfig(BaseModel):
    """What it takes to build a network anew; stored beside its weights. See `SongUNet`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    img_resolution: int
    img_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (2, 2, 2)
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.10


class Denoiser(nn.Module):
    """D(x; sigma, c) = c_skip x + c_out F(c_in x, c_noise, c), sigma_data = 0.5.

    The weights stay float32. `autocast_dtype` (an attribute, None = off) runs F, and F alone,
    in a lower precision; the preconditioning is always float32.
    """

    sigma_data = 0.5

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.model = SongUNet(**config.model_dump())
        self.autocast_dtype: torch.dtype | None = None

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
        with torch.autocast(
            x.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None
        ):
            raw = self.model(c_in * x, c_noise, class_labels, augment_labels)
        return c_skip * x + c_out * raw.float()
