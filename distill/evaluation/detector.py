"""What every feature network is, whoever trained it: pixels in, features and classes out."""

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
from distill.networks import Denoiser
from distill.training.precision import full_float32

Floats = NDArray[np.float32]


class FeatureModule(nn.Module, ABC):
    """A network whose features a distance compares.

    Attributes:
        dimensions: D, features a picture.
        batch: pictures at a time, so that memory suffices.
    """

    dimensions: int
    batch: int = 500

    @abstractmethod
    def observe(self, pixels: Tensor, probabilities: bool) -> tuple[Tensor, Tensor | None]:
        """Look at pictures.

        Args:
            pixels: uint8 [N, C, H, W] on this module's device; C is 1 or 3.
            probabilities: whether to tell class probabilities too.

        Returns:
            Features float32 [N, D], and probabilities float32 [N, K] where asked for.
        """


class DetectorFacts(BaseModel):
    """What a feature network of our own was trained on, and how well.

    Attributes:
        channels, resolution, classes: of the images it knows.
        train_images: how many it saw; `Detector.reference` are their statistics.
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


class Observation(NamedTuple):
    """What a feature network saw: features float32 [N, D], class probabilities [N, K] if asked."""

    features: Floats
    probabilities: Floats | None


@dataclass(frozen=True)
class Detector:
    """A feature network with a name, the hash of its weights, and what it knows of real images.

    Attributes:
        name: what a distance over it is called by.
        network: in eval mode.
        sha256: of its file; empty while it has none.
        reference: statistics of the real images, where it brings them with it.
        facts: what it was trained on; None for a network of others', which takes any picture.
    """

    name: str
    network: FeatureModule
    sha256: str = ""
    reference: Statistics | None = None
    facts: DetectorFacts | None = None

    def check_fits(self, denoiser: Denoiser, classes: list[str]) -> None:
        """Raise UserError unless `denoiser` draws what this network was trained on."""
        if self.facts is None:
            return
        config = denoiser.config
        drawn = (config.img_channels, config.img_resolution, classes or self.facts.classes)
        known = (self.facts.channels, self.facts.resolution, self.facts.classes)
        if drawn != known:
            raise UserError(
                f"the feature network {self.name} knows {_described(*known)}, this network draws "
                f"{_described(*drawn)}: train one on your data with 'sid-distill features' and "
                "name it with --features"
            )

    def observe(self, pixels: Tensor, probabilities: bool = False) -> Observation:
        """Look at uint8 pictures [N, C, H, W], on whatever device they are."""
        tensors = itertools.chain(self.network.parameters(), self.network.buffers())
        device = next((tensor.device for tensor in tensors), torch.device("cpu"))
        with torch.no_grad(), full_float32():
            parts = [
                self.network.observe(part.to(device), probabilities)
                for part in pixels.split(self.network.batch)
            ]
        features = torch.cat([part for part, _ in parts]).float().cpu().numpy()
        told = [part for _, part in parts if part is not None]
        return Observation(features, torch.cat(told).float().cpu().numpy() if told else None)

    def embed(self, pixels: Tensor) -> tuple[Array, Tensor]:
        """Map uint8 [N, C, H, W] to features float64 [N, D] and likeliest classes int64 [N]."""
        features, probabilities = self.observe(pixels, probabilities=True)
        assert probabilities is not None
        return features.astype(np.float64), torch.from_numpy(probabilities.argmax(axis=1))


def _described(channels: int, resolution: int, classes: list[str]) -> str:
    names = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{resolution}x{resolution} pictures of {channels} channels in classes {names}"


def as_rgb(pixels: Tensor) -> Tensor:
    """Repeat the one channel of grey pictures [N, 1, H, W] three times; others as they are."""
    return pixels.repeat(1, 3, 1, 1) if pixels.shape[1] == 1 else pixels
