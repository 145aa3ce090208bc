"""The function that every engine computes, as torch modules: latents and classes to pixels."""

import copy

import torch
from torch import Tensor, nn

from distill.data.images import to_pixels
from distill.networks import Denoiser
from distill.sampling import one_step


class PixelGenerator(nn.Module):
    """The generator as it was trained, in float32: what exported graphs are measured against."""

    one_hot: Tensor

    def __init__(self, generator: Denoiser, sigma_init: float) -> None:
        super().__init__()
        self.generator, self.sigma_init = generator, sigma_init
        self.register_buffer("one_hot", torch.eye(generator.config.label_dim))

    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Map float32 [N, C, H, W] and int64 [N] to uint8 [N, H, W, C]."""
        labels = None if class_labels is None else self.one_hot[class_labels]
        return to_pixels(one_step(self.generator, latents, labels, self.sigma_init))


class FoldedGenerator(nn.Module):
    """The same function with all folded that the one noise level fixes: what is exported.

    The embedding depends on the class alone, so it becomes a table with a row a class, or what the
    network makes of it does (`RawNetwork.fold`); no logarithm, sine or augmentation is left.

    The network computes in `dtype`; what is around it (EDM's preconditioning, the quantisation)
    stays float32, an island without which float16 would round whole levels.

    Args:
        generator: the network; it is copied.
        sigma_init: the one noise level it knows.
        dtype: float32, float16 or bfloat16.
    """

    def __init__(
        self, generator: Denoiser, sigma_init: float, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.unet = copy.deepcopy(generator.model).cpu().float().eval()
        classes = generator.config.label_dim
        with torch.no_grad():
            level = torch.tensor([sigma_init], dtype=torch.float32)
            c_skip, c_out, c_in, c_noise = generator.preconditioning(level)
            emb = self.unet.embed(c_noise, torch.eye(classes) if classes else None, None)
            self.embedding = self.unet.fold(emb)
        self.to(dtype)
        # Pixels are to_pixels(c_skip sigma z + c_out F(c_in sigma z)): 127.5 goes into the factors.
        self.scale_in = float(c_in) * sigma_init
        self.scale_skip = float(c_skip) * sigma_init * 127.5
        self.scale_out = float(c_out) * 127.5

    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Map float32 [N, C, H, W] and int64 [N] to uint8 [N, H, W, C]."""
        raw = self.unet.draw((latents * self.scale_in).to(self.dtype), self._embed(class_labels))
        levels = raw.float() * self.scale_out + (latents * self.scale_skip + 128)
        # TensorRT knows uint8 as an output only: the cast has to be the graph's last node.
        return levels.clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)

    def _embed(self, class_labels: Tensor | None) -> Tensor:
        # An unconditional network's tables have one row, which they return whatever they are asked.
        return self.embedding(torch.zeros(1) if class_labels is None else class_labels)
