"""A raw network of any family as a denoiser."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.networks.family import NetworkLayout
from distill.networks.preconditioning import coefficients

# What a call returns: D(x), the logits of the discriminator that the encoder is, or (D(x), logits),
# for which the encoder computes once.
Parts = Literal["denoised", "logits", "both"]


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
        parts: Parts = "denoised",
        uncertainty: bool = False,
    ) -> Any:
        """Denoise, or judge, or both.

        Args:
            x: float32 [N, C, H, W], the noisy image, clean pixels in [-1, 1].
            sigma: float32 [N], [N, 1, 1, 1] or [1], the standard deviation of the noise.
            class_labels: float32 one-hot [N, label_dim]; None means the zero vector.
            augment_labels: float32 [N, augment_dim]; None means the zero vector.
            parts: what to compute. An argument, and no other method, because DDP and FSDP see a
                network's `forward` alone.
            uncertainty: also return how far the estimate may be off, as a loss wants it.

        Returns:
            The estimate of E[clean image | x], float32 [N, C, H, W]. Logits are float32
            [N, 1, H', W'], the mean over the channels of the last map that `encode` returns
            (arXiv 2410.14919): no weight is added. With `uncertainty` a pair of what was asked for
            and what `RawNetwork.uncertainty` says, None for a family that says nothing.
        """
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        c_skip, c_out, c_in, c_noise = self.preconditioning(sigma.to(x.dtype).reshape(-1, 1, 1, 1))
        if class_labels is None and self.config.label_dim:
            class_labels = x.new_zeros(x.shape[0], self.config.label_dim)
        scaled = c_in * x
        if self.memory_format is not None:
            scaled = scaled.contiguous(memory_format=self.memory_format)
        inputs = (scaled, c_noise.flatten(), class_labels, augment_labels)
        with self._autocast(x.device):
            raw, logits = self._compute(parts, *inputs)
        computed: Tensor | tuple[Tensor, Tensor] | None = logits
        if raw is not None:
            if self.compute_dtype is not None:
                raw = raw.to(x.dtype)
            denoised = c_skip * x + c_out * raw
            computed = denoised if logits is None else (denoised, logits)
        return (computed, self.model.uncertainty(c_noise.flatten())) if uncertainty else computed

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.compute_dtype)

    def _compute(
        self,
        parts: Parts,
        scaled: Tensor,
        c_noise: Tensor,
        class_labels: Tensor | None,
        augment_labels: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """What F returns, and the logits; None for what is not among the parts."""
        if parts == "denoised":
            return self.model(scaled, c_noise, class_labels, augment_labels), None
        emb = self.model.embed(c_noise, class_labels, augment_labels)
        features = self.model.encode(scaled, emb)
        logits = features[-1].float().mean(dim=1, keepdim=True)
        return None if parts == "logits" else self.model.decode(features, emb), logits

    def strip(self) -> None:
        """Drop, in place, what only a loss of a training reads: what is left draws the same."""
        self.config = self.config.for_drawing()
        self.model.strip()

    def preconditioning(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in and c_noise of noise levels, each of sigma's shape."""
        return coefficients(self.config.preconditioning, sigma)
