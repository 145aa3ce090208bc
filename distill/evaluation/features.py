"""A small classifier whose last hidden layer is what the Fréchet distance compares.

No Inception weights are free of charge for a 28x28 grey picture of a shoe, so the repository
trains its own network on the real images (`sid-distill features`), ships it and names it. A
distance over it is called by its name, never FID.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from distill.checkpoints import write_atomically
from distill.data import Dataset
from distill.errors import UserError
from distill.evaluation.frechet import (
    Array,
    Statistics,
    frechet_distance,
    load_statistics,
    save_statistics,
    statistics,
)
from distill.networks import Denoiser

ASSETS = Path(__file__).parent / "assets"
FEATURES = 128


class FeatureNetwork(nn.Module):
    """Three convolutions, a hidden layer of 128 features, and a linear classifier.

    Args:
        channels: colour channels of the images.
        classes: number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.channels, self.classes = channels, classes

        def stage(cin: int, cout: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU()
            )

        self.stages = nn.Sequential(
            stage(channels, 32), nn.MaxPool2d(2), stage(32, 64), nn.MaxPool2d(2), stage(64, 128)
        )
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.hidden = nn.Linear(128 * 16, FEATURES)
        self.classifier = nn.Linear(FEATURES, classes)

    def features(self, pixels: Tensor) -> Tensor:
        """Map uint8 [N, C, H, W] to float32 [N, 128]."""
        x = self.stages(pixels.float() / 127.5 - 1)
        return F.relu(self.hidden(self.pool(x).flatten(1)))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map uint8 [N, C, H, W] to logits [N, classes]."""
        return self.classifier(F.dropout(self.features(pixels), 0.3, self.training))


@dataclass
class Detector:
    """A trained feature network with the statistics of the real images it saw.

    Attributes:
        name: what a distance over it is called by.
        network: in eval mode.
        reference: statistics of the training images.
        facts: how it was trained; `test_accuracy` and `test_distance` among them.
    """

    name: str
    network: FeatureNetwork
    reference: Statistics = field(default_factory=lambda: Statistics(np.empty(0), np.empty(0)))
    facts: dict[str, Any] = field(default_factory=dict)

    def check_fits(self, denoiser: Denoiser) -> None:
        """Raise UserError unless `denoiser` draws what this network was trained on."""
        drawn = (denoiser.config.img_channels, denoiser.config.label_dim)
        known = (self.network.channels, self.network.classes)
        if drawn != known:
            raise UserError(
                f"the feature network {self.name} knows {known[0]}-channel images of {known[1]} "
                f"classes, this network draws {drawn[0]} channels and {drawn[1]} classes: train "
                "one on your data with 'sid-distill features' and name it with --features"
            )

    @torch.no_grad()
    def embed(self, pixels: Tensor, batch: int = 500) -> tuple[Array, Tensor]:
        """Map uint8 [N, C, H, W] to features float64 [N, 128] and predicted classes int64 [N]."""
        device = self.network.classifier.weight.device
        features = [self.network.features(part.to(device)) for part in pixels.split(batch)]
        predicted = [self.network.classifier(part).argmax(dim=1).cpu() for part in features]
        return torch.cat(features).cpu().double().numpy(), torch.cat(predicted)


def train_detector(
    name: str, train: Dataset, test: Dataset | None, epochs: int, seed: int = 0, batch: int = 128
) -> Detector:
    """Train a feature network on labelled images, shifted by up to two pixels.

    Raises:
        UserError: the images carry no classes.
    """
    if not train.classes:
        raise UserError("a feature network learns to tell classes apart: the data set has none")
    torch.manual_seed(seed)
    network = FeatureNetwork(train.images.shape[1], len(train.classes))
    steps = epochs * -(-len(train) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in tqdm(range(steps), unit="step", desc="features"):
        indices = torch.randint(len(train), (batch,))
        logits = network(_shifted(train.images[indices]))
        loss = F.cross_entropy(logits, train.labels[indices], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    detector = Detector(name, network.eval())
    features, _ = detector.embed(train.images)
    detector.reference = statistics(features)
    detector.facts = {"epochs": epochs, "seed": seed, "train_images": len(train)}
    if test is not None:
        features, predicted = detector.embed(test.images)
        accuracy = (predicted == test.labels).double().mean().item()
        distance = frechet_distance(statistics(features), detector.reference)
        detector.facts |= {"test_accuracy": accuracy, "test_distance": distance}
    return detector


def _shifted(pixels: Tensor, reach: int = 2) -> Tensor:
    """Shift the whole batch by up to `reach` pixels each way, repeating the border."""
    dy, dx = torch.randint(2 * reach + 1, (2,)).tolist()
    height, width = pixels.shape[2:]
    padded = F.pad(pixels.float(), (reach,) * 4, mode="replicate")
    return padded[:, :, dy : dy + height, dx : dx + width]


def save_detector(path: Path, detector: Detector) -> None:
    """Write weights and facts to `path` (.safetensors), the reference statistics beside it."""
    network = detector.network
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    shape = {"channels": network.channels, "classes": network.classes}
    header = {"shape": json.dumps(shape), "facts": json.dumps(detector.facts)}
    content = safetensors.torch.save(weights, header)
    write_atomically(path, lambda file: file.write_bytes(content))
    save_statistics(path.with_suffix(".npz"), detector.reference)


def load_detector(name: str) -> Detector:
    """Read a detector by the name of a shipped one ("fashion-cnn") or a .safetensors path.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(name) if name.endswith(".safetensors") else ASSETS / f"{name}.safetensors"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in ASSETS.glob("*.safetensors")))
        raise UserError(
            f"no feature network {name!r}: name a .safetensors file made by "
            f"'sid-distill features', or one of: {shipped}"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        network = FeatureNetwork(**json.loads(header["shape"]))
        network.load_state_dict(weights)
    except (SafetensorError, KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a feature network of sid-distill's: {reason}") from None
    return Detector(
        path.stem,
        network.eval(),
        load_statistics(path.with_suffix(".npz")),
        json.loads(header["facts"]),
    )
