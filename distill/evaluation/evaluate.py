"""Measuring a network: many images from the seed contract, compared with the real ones."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from distill.data.datasets import one_hot
from distill.data.images import to_pixels
from distill.evaluation.feature_extractor import FeatureExtractor
from distill.evaluation.feature_stats import FeatureStats, checked_reference, compute_metrics
from distill.evaluation.reference import Reference, bundled_reference
from distill.networks import Denoiser
from distill.networks.latent_space import LatentDecoder
from distill.sampling import euler, few_step, heun
from distill.training.distributed import DistributedContext
from distill.training.precision import full_float32
from distill.training_config import Renoise
from service.bundle import latents

Sampler = Callable[[Tensor, Tensor | None], Tensor]


def heun_sampler(denoiser: Denoiser, steps: int) -> Sampler:
    """Sample a teacher in 2 steps - 1 evaluations."""
    return lambda z, labels: heun(denoiser, z, labels, steps)


def euler_sampler(denoiser: Denoiser, steps: int) -> Sampler:
    """Sample a teacher in `steps` evaluations."""
    return lambda z, labels: euler(denoiser, z, labels, steps)


def few_step_sampler(
    generator: Denoiser, sigma_init: float, steps: int = 1, renoise: Renoise = "same"
) -> Sampler:
    """Sample a generator in `steps` evaluations, see `distill.sampling.few_step`."""
    return lambda z, labels: few_step(generator, z, labels, sigma_init, steps, renoise)


def measure(
    sampler: Sampler,
    network: Denoiser,
    extractor: FeatureExtractor,
    images: int = 10_000,
    first_seed: int = 0,
    batch: int = 250,
    progress: bool = False,
    reference: Reference | None = None,
    metrics: Collection[str] = (),
    context: DistributedContext | None = None,
    pr_images: int | None = None,
    decoder: LatentDecoder | None = None,
) -> dict[str, float]:
    """Draw images as `collect_feature_stats` does and return their metrics, in the first process.

    Args:
        sampler, network, images, first_seed, batch, progress, context, decoder: see
            `collect_feature_stats`.
        extractor: the feature extractor.
        reference: the real images; None takes the statistics that the extractor brings.
        metrics: those of `distill.evaluation.feature_stats.METRICS` wanted beside the distance.
        pr_images: see `distill.evaluation.feature_stats.compute_metrics`.

    Raises:
        UserError: there is no reference, or not one that `metrics` can do with.
    """
    reference = checked_reference(
        extractor.name, reference or bundled_reference(extractor), metrics
    )
    stats = collect_feature_stats(
        sampler, network, [extractor], images, first_seed, batch, progress, metrics, context,
        decoder,
    )  # fmt: skip
    return compute_metrics(stats[0], reference, metrics, pr_images) if stats else {}


@torch.no_grad()
def collect_feature_stats(
    sampler: Sampler,
    network: Denoiser,
    extractors: Sequence[FeatureExtractor],
    images: int,
    first_seed: int = 0,
    batch: int = 250,
    progress: bool = False,
    metrics: Collection[str] = (),
    context: DistributedContext | None = None,
    decoder: LatentDecoder | None = None,
) -> list[FeatureStats]:
    """Draw image i from seed first_seed + i and class i mod classes; let each extractor look.

    The seeds are the served ones (`service.bundle.latents`): whoever asks the server for the
    same seeds and classes measures the same images. (EDM draws each image's class at random
    from its seed: as even, but for chance.)

    Args:
        sampler: turns latents and one-hot labels into images.
        network: what it samples; gives shape, classes and device.
        extractors: the feature extractors; every image is drawn once for all of them.
        images: how many; the distance is biased upwards by about 1/images.
        first_seed: the first seed.
        batch: images a network call.
        progress: show a progress bar.
        metrics: what will be asked of the result.
        context: several processes each draw whole batches, one stretch of the seeds each: the
            same batches as one process, so the same images to the bit.
        decoder: makes pixels of what a network of latents draws, on its device.

    Returns:
        What each extractor saw of all images; nothing in processes other than the first.
    """
    config = network.config
    device = next(network.parameters()).device
    classes = torch.arange(images) % max(config.label_dim, 1)
    # Whether the classes of images are the classes that an extractor tells apart.
    with_classes = [
        bool(config.label_dim) and extractor.metadata is not None for extractor in extractors
    ]
    seen: list[FeatureStats | None] = [None] * len(extractors)
    starts = range(0, images, batch)
    if context is not None:
        share = -(-len(starts) // context.size)
        starts = starts[share * context.rank : share * (context.rank + 1)]
    for start in tqdm(starts, disable=not progress, unit="batch", desc="images"):
        stop = min(start + batch, images)
        seeds = range(first_seed + start, first_seed + stop)
        z = torch.from_numpy(latents(seeds, config.latent_shape))
        labels = None
        if config.label_dim:
            labels = one_hot(classes[start:stop], config.label_dim).to(device)
        with full_float32(network):
            drawn = sampler(z.to(device), labels)
            pixels = (decoder or to_pixels)(drawn).permute(0, 3, 1, 2)
        for i, (extractor, with_class) in enumerate(zip(extractors, with_classes, strict=True)):
            extracted = extractor.extract(pixels, with_class or "is" in metrics)
            asked_for = classes[start:stop].numpy() if with_class else None
            seen[i] = _merged([seen[i], FeatureStats.of(extracted, asked_for, metrics)])
    everyone = [seen] if context is None or context.size == 1 else _gathered(seen, context)
    whole = [_merged(parts) for parts in zip(*everyone, strict=True)]
    return [stats for stats in whole if stats is not None]


def _merged(parts: Iterable[FeatureStats | None]) -> FeatureStats | None:
    """All parts as one; None stands for no images."""
    present = [part for part in parts if part is not None]
    return reduce(FeatureStats.merge, present) if present else None


def _gathered(
    seen: list[FeatureStats | None], context: DistributedContext
) -> list[list[FeatureStats | None]]:
    """What every process saw, in order, in the first; nothing in the others."""
    everyone: list[list[FeatureStats | None]] = [[] for _ in range(context.size)]
    group = dist.new_group(backend="gloo")  # it is in the processor's memory, not the GPU's
    try:
        dist.gather_object(seen, everyone if context.is_main else None, dst=0, group=group)
    finally:
        dist.destroy_process_group(group)
    return everyone if context.is_main else []
