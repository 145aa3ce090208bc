"""What every feature extractor is, whoever trained it: pixels in, features and classes out."""

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from distill.errors import UserError
from distill.evaluation.frechet import Array, Statistics
from distill.training.precision import full_float32

Floats = NDArray[np.float32]


class FeatureModule(nn.Module, ABC):
    """A network whose features a distance compares.

    Attributes:
        dimensions: D, features an image.
        batch: images at a time, so that memory suffices.
    """

    dimensions: int
    batch: int = 500

    @abstractmethod
    def extract(self, pixels: Tensor, probabilities: bool) -> tuple[Tensor, Tensor | None]:
        """Look at images.

        Args:
            pixels: uint8 [N, C, H, W] on this module's device; C is 1 or 3.
            probabilities: whether to tell class probabilities too.

        Returns:
            Features float32 [N, D], and probabilities float32 [N, K] where asked for.
        """


class ExtractorMetadata(BaseModel):
    """What a feature extractor of our own was trained on, and how well.

    Attributes:
        channels, resolution, classes: of the images it knows.
        train_images: how many it saw; `FeatureExtractor.reference` are their statistics.
        epochs, seed: how it was trained.
        test_accuracy: its accuracy on held-out real images; None where there were none.
        test_distance: their Fréchet distance to the training images.
        thumbnail: side of the thumbnail that its features had to paint; 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    channels: int
    resolution: int
    classes: list[str]
    train_images: int
    epochs: int
    seed: int
    test_accuracy: float | None = None
    test_distance: float | None = None
    thumbnail: int = 0


class ExtractedFeatures(NamedTuple):
    """What an extractor returns: features float32 [N, D], class probabilities [N, K] if asked."""

    features: Floats
    probabilities: Floats | None


@dataclass(frozen=True)
class FeatureExtractor:
    """A feature extractor with a name, the hash of its weights, and what it knows of real images.

    Attributes:
        name: what a distance over it is called by.
        network: in eval mode.
        sha256: of its file; empty while it has none.
        reference: statistics of the real images, where it brings them with it.
        metadata: what it was trained on; None for a network of others', which takes any image.
    """

    name: str
    network: FeatureModule
    sha256: str = ""
    reference: Statistics | None = None
    metadata: ExtractorMetadata | None = None

    def check_fits(self, shape: tuple[int, ...], classes: list[str]) -> None:
        """Raise UserError unless images [C, H, W] are such as this network was trained on."""
        if self.metadata is None:
            return
        channels, height, _ = shape
        generated = (channels, height, classes or self.metadata.classes)
        trained_on = (self.metadata.channels, self.metadata.resolution, self.metadata.classes)
        if generated != trained_on:
            raise UserError(
                f"the feature extractor {self.name} knows {_described(*trained_on)}, this network "
                f"draws {_described(*generated)}: train one on your data with 'sid-distill "
                f"features' and name it with --features, or say efficientnet-lite0, which takes "
                f"any images"
            )

    def extract(self, pixels: Tensor, probabilities: bool = False) -> ExtractedFeatures:
        """Look at uint8 images [N, C, H, W], on whatever device they are."""
        tensors = itertools.chain(self.network.parameters(), self.network.buffers())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        with torch.no_grad(), full_float32():
            parts = [
                self.network.extract(part.to(device), probabilities)
                for part in pixels.split(self.network.batch)
            ]
        features = torch.cat([part for part, _ in parts]).float().cpu().numpy()
        predicted = [part for _, part in parts if part is not None]
        return ExtractedFeatures(
            features, torch.cat(predicted).float().cpu().numpy() if predicted else None
        )

    def embed(self, pixels: Tensor) -> tuple[Array, Tensor]:
        """Map uint8 [N, C, H, W] to features float64 [N, D] and likeliest classes int64 [N]."""
        features, probabilities = self.extract(pixels, probabilities=True)
        assert probabilities is not None
        return features.astype(np.float64), torch.from_numpy(probabilities.argmax(axis=1))


def _described(channels: int, resolution: int, classes: list[str]) -> str:
    names = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{resolution}x{resolution} images of {channels} channels in classes {names}"


def as_rgb(pixels: Tensor) -> Tensor:
    """Repeat the one channel of grey images [N, 1, H, W] three times; others as they are."""
    return pixels.repeat(1, 3, 1, 1) if pixels.shape[1] == 1 else pixels
