"""Training a small autoencoder of one's own: images back from few numbers.

The loss is the mean absolute error of the pixels and a little of the latents' divergence from a
standard normal distribution, as in arXiv 2112.10752, but without its perceptual and adversarial
parts, which need networks of others. It is for images of up to some 128 pixels a side; for larger
ones take a released autoencoder.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from distill.data.datasets import Dataset
from distill.errors import UserError
from distill.importing.autoencoder import Autoencoder
from distill.networks.autoencoder import AutoencoderLayout, Decoder, Encoder

_EMA = 0.999  # of the weights, from step to step
_WARMUP = 50  # steps over which the learning rate rises


@dataclass(frozen=True)
class ReconstructionConfig:
    """How an autoencoder is trained.

    Attributes:
        images: how many it sees.
        batch: images a step.
        lr: Adam's highest learning rate; it falls to 0 on half a cosine.
        kl: weight of the divergence of a latent number, beside the error of a pixel in [0, 1].
        seed: start of the random stream.
    """

    images: int
    batch: int = 16
    lr: float = 1e-3
    kl: float = 1e-4
    seed: int = 0


def reconstruction_loss(images: Tensor, drawn: Tensor, moments: Tensor, kl: float) -> Tensor:
    """The loss, a scalar.

    Args:
        images: float32 [N, C, H, W] in [0, 1].
        drawn: what the decoder makes of a draw of their latents.
        moments: means and deviations of the latents [N, 2 c, h, w].
        kl: see `ReconstructionConfig`.
    """
    mean, deviation = moments.chunk(2, dim=1)
    divergence = 0.5 * (mean**2 + deviation**2 - 1) - deviation.log()
    return F.l1_loss(drawn, images) + kl * divergence.mean()


def train_autoencoder(
    dataset: Dataset,
    layout: AutoencoderLayout,
    config: ReconstructionConfig,
    device: torch.device,
    progress: bool = True,
) -> tuple[Autoencoder, float]:
    """Train on images of a data set.

    Returns:
        The average of the weights, in eval mode on the CPU; and the mean absolute error of the
        last images, in levels of 255.

    Raises:
        UserError: the images are not divisible, or the training diverged.
    """
    _, height, width = dataset.shape
    if height % layout.factor or width % layout.factor:
        raise UserError(
            f"images of {width}x{height} pixels cannot become latents of one place per "
            f"{layout.factor}x{layout.factor} pixels: take another --resolution or --factor"
        )
    torch.manual_seed(config.seed)
    encoder, decoder = Encoder(layout).to(device), Decoder(layout).to(device)
    weights = [*encoder.parameters(), *decoder.parameters()]
    kept = Autoencoder(copy.deepcopy(decoder), copy.deepcopy(encoder))
    assert kept.encoder is not None
    averages = [*kept.encoder.parameters(), *kept.decoder.parameters()]
    optimizer = torch.optim.Adam(weights, lr=config.lr, betas=(0.9, 0.99))
    steps, errors = -(-config.images // config.batch), []
    for step in tqdm(range(steps), unit="step", desc="autoencoder", disable=not progress):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate_share(step, steps)
        picked = torch.randint(len(dataset), (config.batch,))
        images = dataset.images[picked].to(device).float() / 255
        moments = encoder(images)
        mean, deviation = moments.chunk(2, dim=1)
        drawn = decoder(mean + deviation * torch.randn_like(mean))
        loss = reconstruction_loss(images, drawn, moments, config.kl)
        if not loss.isfinite():
            raise UserError(f"the loss is not finite after {step} steps: take a smaller --lr")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        keep = min(_EMA, (1 + step) / (10 + step))
        with torch.no_grad():
            for average, weight in zip(averages, weights, strict=True):
                average.lerp_(weight, 1 - keep)
            errors.append(float((drawn.clamp(0, 1) - images).abs().mean() * 255))
    kept.encoder.cpu().eval()
    kept.decoder.cpu().eval()
    recent = errors[-max(1, len(errors) // 20) :]
    return kept, sum(recent) / len(recent)


def rate_share(step: int, steps: int) -> float:
    """A rise over the first steps, then half a cosine down to 0."""
    return min(1.0, (step + 1) / _WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
