"""What a feature extractor makes of real images that lost half of their colours.

    python tests/compare/halved_colours.py --features avatars-cnn \
           --data runs/avatars.zip --test runs/avatars-test.zip

Of each class the images on one side of the median along the main axis of their mean colours are
kept. A feature extractor that sees variety within a class puts them far from the held-out images,
and finds fewer of those in their midst (recall). As many images of all colours are the floor.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from distill.data.datasets import Dataset, load_dataset
from distill.evaluation.feature_extractor import FeatureExtractor, Floats
from distill.evaluation.features import load_extractor
from distill.evaluation.frechet import frechet_distance, statistics
from distill.evaluation.precision_recall import precision_recall


def one_side(images: Tensor) -> Tensor:
    """Those images of one class, uint8 [N, C, H, W], that lie on one side of the median colour."""
    means = images.float().mean(dim=(2, 3))
    means = means - means.mean(dim=0)
    axis = torch.linalg.svd(means, full_matrices=False).Vh[0]
    return images[(means @ axis).argsort()[: len(images) // 2]]


def halves(dataset: Dataset, take: Callable[[Tensor], Tensor]) -> Tensor:
    """What `take` keeps of each class of a data set."""
    classes = range(len(dataset.classes))
    return torch.cat([take(dataset.images[dataset.labels == label]) for label in classes])


def some(dataset: Dataset, count: int) -> Dataset:
    """So many images of a data set, which has them class by class, drawn at random."""
    drawn = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count]
    return Dataset(dataset.name, dataset.images[drawn], dataset.labels[drawn], dataset.classes)


def print_row(name: str, images: Tensor, extractor: FeatureExtractor, real: Floats) -> None:
    """Print distance, precision and recall of images against features of held-out ones."""
    drawn = extractor.extract(images).features
    distance = frechet_distance(statistics(drawn.astype(float)), statistics(real.astype(float)))
    precision, recall = precision_recall(drawn, real)
    print(f"{name:<22} distance {distance:.4f}  precision {precision:.3f}  recall {recall:.3f}")


def main() -> None:
    """Print distance, precision and recall of both against the held-out images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", required=True)
    parser.add_argument(
        "--data", type=Path, required=True, help="images that a teacher learns from"
    )
    parser.add_argument("--test", type=Path, required=True, help="held-out images")
    parser.add_argument("--images", type=int, default=10_000, help="of each, at most")
    options = parser.parse_args()
    extractor = load_extractor(options.features)
    side = extractor.metadata.resolution if extractor.metadata else 64
    train = some(load_dataset(options.data, resolution=side), options.images)
    test = some(load_dataset(options.test, resolution=side), options.images)
    real = extractor.extract(test.images).features
    whole, half = halves(train, lambda images: images[::2]), halves(train, one_side)
    print_row("all colours", whole, extractor, real)
    print_row("half of the colours", half, extractor, real)


if __name__ == "__main__":
    main()
