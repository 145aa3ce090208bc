"""Measuring a network: many pictures from the seed contract, compared with the real ones."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from distill.data.datasets import one_hot
from distill.data.images import to_pixels
from distill.evaluation.detector import Detector
from distill.evaluation.observed import Observed, checked_reference, figures
from distill.evaluation.reference import Reference, own_reference
from distill.networks import Denoiser
from distill.sampling import heun, one_step
from distill.training.distributed import World
from distill.training.precision import full_float32
from service.bundle import latents

Sampler = Callable[[Tensor, Tensor | None], Tensor]


def heun_sampler(denoiser: Denoiser, steps: int) -> Sampler:
    """Sample a teacher in 2 steps - 1 evaluations."""
    return lambda z, labels: heun(denoiser, z, labels, steps)


def one_step_sampler(generator: Denoiser, sigma_init: float) -> Sampler:
    """Sample a generator in one evaluation."""
    return lambda z, labels: one_step(generator, z, labels, sigma_init)


def measure(
    sampler: Sampler,
    network: Denoiser,
    detector: Detector,
    images: int = 10_000,
    first_seed: int = 0,
    batch: int = 250,
    progress: bool = False,
    reference: Reference | None = None,
    metrics: Collection[str] = (),
    world: World | None = None,
) -> dict[str, float]:
    """Draw pictures as `observe_pictures` does and return their `figures`, in the first process.

    Args:
        sampler, network, images, first_seed, batch, progress, world: see `observe_pictures`.
        detector: the feature network.
        reference: the real pictures; None takes the statistics that the detector brings.
        metrics: those of `distill.evaluation.observed.METRICS` wanted beside the distance.

    Raises:
        UserError: there is no reference, or not one that `metrics` can do with.
    """
    reference = checked_reference(detector.name, reference or own_reference(detector), metrics)
    observed = observe_pictures(
        sampler, network, [detector], images, first_seed, batch, progress, metrics, world
    )
    return figures(observed[0], reference, metrics) if observed else {}


@torch.no_grad()
def observe_pictures(
    sampler: Sampler,
    network: Denoiser,
    detectors: Sequence[Detector],
    images: int,
    first_seed: int = 0,
    batch: int = 250,
    progress: bool = False,
    metrics: Collection[str] = (),
    world: World | None = None,
) -> list[Observed]:
    """Draw image i from seed first_seed + i and class i mod classes; let each detector look.

    The seeds are the served ones (`service.bundle.latents`): whoever asks the server for the
    same seeds and classes measures the same pictures. (EDM draws each image's class at random
    from its seed: as even, but for chance.)

    Args:
        sampler: turns latents and one-hot labels into images.
        network: what it samples; gives shape, classes and device.
        detectors: the feature networks; every picture is drawn once for all of them.
        images: how many; the distance is biased upwards by about 1/images.
        first_seed: the first seed.
        batch: images a network call.
        progress: show a progress bar.
        metrics: what will be asked of the result.
        world: several processes each draw whole batches, one stretch of the seeds each: the
            same batches as one process, so the same pictures to the bit.

    Returns:
        What each detector saw of all pictures; nothing in processes other than the first.
    """
    config = network.config
    device = next(network.parameters()).device
    shape = (config.img_channels, config.img_resolution, config.img_resolution)
    classes = torch.arange(images) % max(config.label_dim, 1)
    # Whether the classes of pictures are the classes that a detector tells apart.
    judges = [bool(config.label_dim) and detector.facts is not None for detector in detectors]
    seen: list[Observed | None] = [None] * len(detectors)
    starts = range(0, images, batch)
    if world is not None:
        share = -(-len(starts) // world.size)
        starts = starts[share * world.rank : share * (world.rank + 1)]
    for start in tqdm(starts, disable=not progress, unit="batch", desc="pictures"):
        stop = min(start + batch, images)
        z = torch.from_numpy(latents(range(first_seed + start, first_seed + stop), shape))
        labels = None
        if config.label_dim:
            labels = one_hot(classes[start:stop], config.label_dim).to(device)
        with full_float32(network):
            pixels = to_pixels(sampler(z.to(device), labels)).permute(0, 3, 1, 2)
        for i, (detector, judge) in enumerate(zip(detectors, judges, strict=True)):
            observation = detector.observe(pixels, judge or "is" in metrics)
            asked_for = classes[start:stop].numpy() if judge else None
            seen[i] = _merged([seen[i], Observed.of(observation, asked_for, metrics)])
    everyone = [seen] if world is None or world.size == 1 else _gathered(seen, world)
    whole = [_merged(parts) for parts in zip(*everyone, strict=True)]
    return [observed for observed in whole if observed is not None]


def _merged(parts: Iterable[Observed | None]) -> Observed | None:
    """All parts as one; None stands for no pictures."""
    present = [part for part in parts if part is not None]
    return reduce(Observed.merge, present) if present else None


def _gathered(seen: list[Observed | None], world: World) -> list[list[Observed | None]]:
    """What every process saw, in order, in the first; nothing in the others."""
    everyone: list[list[Observed | None]] = [[] for _ in range(world.size)]
    group = dist.new_group(backend="gloo")  # it is in the processor's memory, not the GPU's
    try:
        dist.gather_object(seen, everyone if world.is_main else None, dst=0, group=group)
    finally:
        dist.destroy_process_group(group)
    return everyone if world.is_main else []
