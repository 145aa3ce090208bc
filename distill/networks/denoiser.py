"""A raw network of any family as a denoiser."""

import torch
from torch import Tensor, nn

from distill.networks.family import NetworkLayout
from distill.networks.preconditioning import coefficients


class Denoiser(nn.Module):
    """D(x; sigma, c) = c_skip x + c_out F(c_in x, c_noise, c).

    The coefficients are those of `config.preconditioning`, see `distill.networks.preconditioning`.

    Attributes:
        config: what it was built from.
        model: the raw network F.
        compute_dtype: precision in which F computes (float16, bfloat16) by torch's autocast;
            None means that of its weights. The weights themselves and all outside F are float32,
            or float64 where x is.
        memory_format: layout in which F is given its images; None means as they come. They come
            back as they came, so that it decides no drawing of noise, which follows the layout.
    """

    def __init__(self, config: NetworkLayout) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype: torch.dtype | None = None
        self.memory_format: torch.memory_format | None = None
        self.model = config.build()

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
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        c_skip, c_out, c_in, c_noise = self.preconditioning(sigma.to(x.dtype).reshape(-1, 1, 1, 1))
        if class_labels is None and self.config.label_dim:
            class_labels = x.new_zeros(x.shape[0], self.config.label_dim)
        scaled = c_in * x
        if self.memory_format is not None:
            scaled = scaled.contiguous(memory_format=self.memory_format)
        inputs = (scaled, c_noise.flatten(), class_labels, augment_labels)
        if self.compute_dtype is None:
            return c_skip * x + c_out * self.model(*inputs)
        with torch.autocast(x.device.type, dtype=self.compute_dtype):
            raw = self.model(*inputs)
        return c_skip * x + c_out * raw.to(x.dtype)

    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise of noise levels, each of sigma's shape."""
        return coefficients(self.config.preconditioning, sigma)
