"""The function that every engine computes, as torch modules: latents and classes to pixels."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.data.images import to_pixels
from distill.networks import Denoiser
from distill.networks.latent_space import LatentDecoder, image_shape
from distill.sampling import few_step
from distill.schedules import step_sigmas


class PixelGenerator(nn.Module):
    """The generator as it was trained, in float32: what exported graphs are measured against.

    Args:
        generator: the network.
        sigma_init: the first noise level that it knows.
        steps: in how many it draws; the later ones add the same noise again.
        decoder: of a generator of latents.
    """

    one_hot: Tensor

    def __init__(
        self,
        generator: Denoiser,
        sigma_init: float,
        steps: int = 1,
        decoder: LatentDecoder | None = None,
    ) -> None:
        super().__init__()
        self.generator, self.sigma_init, self.steps = generator, sigma_init, steps
        self.decoder = decoder
        self.register_buffer("one_hot", torch.eye(generator.config.label_dim))

    def images(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Map float32 [N, C, H, W] and int64 [N] to what the generator draws, float32 [N, C, H, W].

        That are pixels in [-1, 1], or an autoencoder's latents.
        """
        labels = None if class_labels is None else self.one_hot[class_labels]
        return few_step(self.generator, latents, labels, self.sigma_init, self.steps)

    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Map float32 [N, C, H, W] and int64 [N] to uint8 [N, H, W, C]."""
        return self.pixels(self.images(latents, class_labels))

    def pixels(self, images: Tensor) -> Tensor:
        """Map what `images` returns to uint8 [N, H, W, C]."""
        return (self.decoder or to_pixels)(images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of an image."""
        return image_shape(self.generator.config, self.decoder)


class _Factors(NamedTuple):
    """Of one step: D = skip x + out F(into x), and the noise level at which it denoises."""

    into: float
    skip: float
    out: float
    sigma: float


class FoldedGenerator(nn.Module):
    """The same function with all folded that the noise levels fix: what is exported.

    The embedding depends on step and class alone, so it becomes a table with a row for each (all
    classes of the first step, then those of the next), or what the network makes of it does
    (`RawNetwork.fold`); no logarithm, sine or augmentation is left. Several steps are computed one
    after the other, by the same weights.

    The network and the decoder compute in `dtype`; what is around them (EDM's preconditioning, the
    noise between steps, the quantisation) stays float32, islands without which float16 would round
    whole levels.

    Args:
        generator: the network; it is copied.
        sigma_init: the first noise level that it knows.
        dtype: float32, float16 or bfloat16.
        steps, decoder: see `PixelGenerator`.
    """

    def __init__(
        self,
        generator: Denoiser,
        sigma_init: float,
        dtype: torch.dtype = torch.float32,
        steps: int = 1,
        decoder: LatentDecoder | None = None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.decoder = None if decoder is None else decoder.folded()
        self.unet = copy.deepcopy(generator.model).cpu().float().eval()
        self.classes = generator.config.label_dim
        self.steps: list[_Factors] = []
        one_hot, embeddings = torch.eye(self.classes) if self.classes else None, []
        with torch.no_grad():
            for number, sigma in enumerate(step_sigmas(sigma_init, steps)):
                level = torch.tensor([sigma], dtype=torch.float32)
                c_skip, c_out, c_in, c_noise = generator.preconditioning(level)
                embeddings.append(self.unet.embed(c_noise, one_hot, None))
                scale = 1.0 if number else sigma  # the first step's input is the latents themselves
                factors = float(c_in) * scale, float(c_skip) * scale, float(c_out), sigma
                self.steps.append(_Factors(*factors))
            self.embedding = self.unet.fold(torch.cat(embeddings))
        self.to(dtype)

    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Map float32 [N, C, H, W] and int64 [N] to uint8 [N, H, W, C]."""
        noisy = latents
        for number, step in enumerate(self.steps[:-1]):
            raw = self._draw(noisy, number, class_labels)
            noise = latents * self.steps[number + 1].sigma
            noisy = raw.float() * step.out + (noisy * step.skip + noise)
        raw, last = self._draw(noisy, len(self.steps) - 1, class_labels), self.steps[-1]
        if self.decoder is not None:
            drawn = raw.float() * last.out + noisy * last.skip
            levels = self.decoder(drawn.to(self.dtype)).float() * 255
            return levels.clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
        # Pixels are to_pixels(skip x + out F): 127.5 goes into the factors.
        levels = raw.float() * (last.out * 127.5) + (noisy * (last.skip * 127.5) + 128)
        # TensorRT knows uint8 as an output only: the cast has to be the graph's last node.
        return levels.clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)

    def _draw(self, noisy: Tensor, number: int, class_labels: Tensor | None) -> Tensor:
        return self.unet.draw(
            (noisy * self.steps[number].into).to(self.dtype), self._embed(number, class_labels)
        )

    def _embed(self, number: int, class_labels: Tensor | None) -> Tensor:
        if class_labels is None:
            # A table of one row returns that whatever it is asked.
            rows = torch.full((1,), number) if len(self.steps) > 1 else torch.zeros(1)
        else:
            rows = class_labels + number * self.classes if number else class_labels
        return self.embedding(rows)
