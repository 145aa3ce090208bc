"""Measuring a network: many pictures from the seed contract, compared with the real ones."""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from distill.data import one_hot
from distill.evaluation.features import Detector
from distill.evaluation.frechet import frechet_distance, statistics
from distill.images import to_pixels
from distill.networks import Denoiser
from distill.sampling import heun, one_step
from service.bundle import latents

Sampler = Callable[[Tensor, Tensor | None], Tensor]


def heun_sampler(denoiser: Denoiser, steps: int) -> Sampler:
    """Sample a teacher in 2 steps - 1 evaluations."""
    return lambda z, labels: heun(denoiser, z, labels, steps)


def one_step_sampler(generator: Denoiser, sigma_init: float) -> Sampler:
    """Sample a generator in one evaluation."""
    return lambda z, labels: one_step(generator, z, labels, sigma_init)


@torch.no_grad()
def measure(
    sampler: Sampler,
    network: Denoiser,
    detector: Detector,
    images: int = 10_000,
    first_seed: int = 0,
    batch: int = 250,
    progress: bool = False,
) -> dict[str, float]:
    """Draw image i from seed first_seed + i and class i mod classes; compare with the real ones.

    The seeds are the served ones (`service.bundle.latents`): whoever asks the server for the
    same seeds and classes measures the same pictures.

    Args:
        sampler: turns latents and one-hot labels into images.
        network: what it samples; gives shape, classes and device.
        detector: the feature network, with the statistics of the real images.
        images: how many; the distance is biased upwards by about 1/images.
        first_seed: the first seed.
        batch: images a network call.
        progress: show a progress bar.

    Returns:
        `distance`, and `accuracy` (the share that the detector's classifier takes for the class
        asked for) for a class-conditional network.
    """
    config = network.config
    device = next(network.parameters()).device
    shape = (config.img_channels, config.img_resolution, config.img_resolution)
    pixels = []
    classes = torch.arange(images) % max(config.label_dim, 1)
    for start in tqdm(range(0, images, batch), disable=not progress, unit="batch"):
        stop = min(start + batch, images)
        z = torch.from_numpy(latents(range(first_seed + start, first_seed + stop), shape))
        labels = None
        if config.label_dim:
            labels = one_hot(classes[start:stop], config.label_dim).to(device)
        pixels.append(to_pixels(sampler(z.to(device), labels)).cpu())
    features, predicted = detector.embed(torch.cat(pixels).permute(0, 3, 1, 2))
    result = {"distance": frechet_distance(statistics(features), detector.reference)}
    if config.label_dim:
        result["accuracy"] = (predicted == classes).double().mean().item()
    return result
