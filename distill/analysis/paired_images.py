"""Teacher's and generator's images from the same seeds, compared class by class."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.analysis.curve import Array
from distill.analysis.run_folder import Networks
from distill.data.datasets import one_hot
from distill.data.images import to_pixels
from distill.evaluation.feature_extractor import FeatureExtractor
from distill.sampling import few_step, heun
from distill.training.precision import full_float32
from service.bundle import latents


@dataclass(frozen=True)
class PairedImages:
    """Both networks' images, image i from seed i and of class i mod classes.

    Attributes:
        teacher: uint8 [M, H, W, C], Heun's sampler.
        generator: the same, all of its steps.
        labels: int64 [M].
    """

    teacher: Tensor
    generator: Tensor
    labels: Tensor


@dataclass(frozen=True)
class ClassComparison:
    """How teacher and generator compare, a value for each class; NaN where it cannot be told.

    Attributes:
        features: name of the feature extractor, or "pixels".
        teacher_accuracy: share of the teacher's images taken for their class [K].
        generator_accuracy: the same of the generator's.
        variety: the generator's spread of features (the trace of their covariance) as a share of
            the teacher's [K]; below 1 its images are more alike.
    """

    features: str
    teacher_accuracy: Array
    generator_accuracy: Array
    variety: Array


def seeded_inputs(
    networks: Networks, count: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Latents of seeds 0, 1, ..., classes i mod K [count], and these one-hot (None without)."""
    config = networks.generator.config
    labels = torch.arange(count) % max(config.label_dim, 1)
    z = torch.from_numpy(latents(range(count), config.latent_shape)).to(device)
    if not config.label_dim:
        return z, labels, None
    return z, labels, one_hot(labels, config.label_dim).to(device)


@full_float32()
@torch.no_grad()
def generate(networks: Networks, z: Tensor, labels: Tensor | None, batch: int = 125) -> Tensor:
    """The generator's images [N, C, H, W] for given latents, a batch at a time."""
    settings = networks.settings
    drawing = settings["sigma_init"], settings["steps"], settings["renoise"]
    parts = [slice(i, i + batch) for i in range(0, len(z), batch)]
    return torch.cat(
        [
            few_step(networks.generator, z[s], None if labels is None else labels[s], *drawing)
            for s in parts
        ]
    )


@full_float32()
def draw_paired_images(
    networks: Networks, count: int, device: torch.device, steps: int = 18, batch: int = 125
) -> PairedImages:
    """Draw `count` images of each network; the teacher takes 2 steps - 1 evaluations each."""
    z, labels, chosen = seeded_inputs(networks, count, device)
    pixels, drawn = networks.decoder or to_pixels, []
    with tqdm(total=count, unit="img", desc="the teacher's images") as bar:
        for start in range(0, count, batch):
            part = slice(start, start + batch)
            c = None if chosen is None else chosen[part]
            drawn.append(pixels(heun(networks.teacher, z[part], c, steps)).cpu())
            bar.update(len(drawn[-1]))
    return PairedImages(torch.cat(drawn), pixels(generate(networks, z, chosen)).cpu(), labels)


def compare_classes(
    images: PairedImages, extractor: FeatureExtractor | None, classes: int
) -> ClassComparison:
    """Compare class by class, over a feature extractor's features or else over pixels.

    Args:
        images: of both networks.
        extractor: None compares pixels.
        classes: how many; without any, all images are of one class.
    """
    # Only a classifier of this data's own classes can say whether an image is of its class.
    knows = extractor is not None and extractor.metadata is not None and classes > 0
    theirs, their_right = _seen(images.teacher, images.labels, extractor, knows)
    ours, our_right = _seen(images.generator, images.labels, extractor, knows)
    of_class = [(images.labels == k).numpy() for k in range(max(classes, 1))]
    return ClassComparison(
        "pixels" if extractor is None else extractor.name,
        np.array([their_right[k].mean() for k in of_class]),
        np.array([our_right[k].mean() for k in of_class]),
        np.array([relative_spread(theirs[k], ours[k]) for k in of_class]),
    )


def relative_spread(reference: Array, other: Array) -> float:
    """The trace of the covariance of features [N, D] as a share of a reference's [N, D].

    NaN with fewer than two rows or without spread.
    """
    if len(reference) < 2:
        return float("nan")
    spread = float(reference.var(axis=0, ddof=1).sum())
    return float(other.var(axis=0, ddof=1).sum()) / spread if spread > 0 else float("nan")


def _seen(
    pixels: Tensor, labels: Tensor, extractor: FeatureExtractor | None, knows: bool
) -> tuple[Array, Array]:
    """Features [N, D], and 1 where the image is taken for its class (NaN where untold) [N]."""
    untold = np.full(len(pixels), np.nan)
    if extractor is None:
        return pixels.flatten(1).double().numpy() / 127.5, untold
    features, probabilities = extractor.extract(pixels.permute(0, 3, 1, 2), probabilities=knows)
    if probabilities is None:
        return features.astype(np.float64), untold
    right = probabilities.argmax(axis=1) == labels.numpy()
    return features.astype(np.float64), right.astype(np.float64)
