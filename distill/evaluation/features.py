"""A small classifier whose last hidden layer is what the Fréchet distance compares.

No Inception weights are free of charge for a 28x28 grey picture of a shoe, so the repository
trains its own network on the real images (`sid-distill features`), ships it and names it. A
distance over it is called by its name, never FID.
"""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from distill.checkpoints import first_line, write_atomically
from distill.data import Dataset
from distill.errors import UserError
from distill.evaluation.frechet import Array, Statistics, frechet_distance, statistics
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


class DetectorFacts(BaseModel):
    """What a feature network was trained on, and how well.

    Attributes:
        channels, resolution, classes: of the images it knows.
        train_images: how many it saw; `Detector.reference` are their statistics.
        epochs, seed: how it was trained.
        test_accuracy: its accuracy on held-out real images; None where there were none.
        test_distance: their Fréchet distance to the training images.
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


@dataclass(frozen=True)
class Detector:
    """A trained feature network with the statistics of the real images it saw.

    Attributes:
        name: what a distance over it is called by.
        network: in eval mode.
        reference: statistics of the training images.
        facts: what it was trained on.
    """

    name: str
    network: FeatureNetwork
    reference: Statistics
    facts: DetectorFacts

    def check_fits(self, denoiser: Denoiser, classes: list[str]) -> None:
        """Raise UserError unless `denoiser` draws what this network was trained on."""
        config = denoiser.config
        drawn = (config.img_channels, config.img_resolution, classes or self.facts.classes)
        known = (self.facts.channels, self.facts.resolution, self.facts.classes)
        if drawn != known:
            raise UserError(
                f"the feature network {self.name} knows {_described(*known)}, this network draws "
                f"{_described(*drawn)}: train one on your data with 'sid-distill features' and "
                "name it with --features"
            )

    def embed(self, pixels: Tensor) -> tuple[Array, Tensor]:
        """Map uint8 [N, C, H, W] to features float64 [N, 128] and predicted classes int64 [N]."""
        return _embed(self.network, pixels)


def _described(channels: int, resolution: int, classes: list[str]) -> str:
    names = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    return f"{resolution}x{resolution} pictures of {channels} channels in classes {names}"


@torch.no_grad()
def _embed(network: FeatureNetwork, pixels: Tensor, batch: int = 500) -> tuple[Array, Tensor]:
    device = network.classifier.weight.device
    features = [network.features(part.to(device)) for part in pixels.split(batch)]
    predicted = [network.classifier(part).argmax(dim=1).cpu() for part in features]
    return torch.cat(features).cpu().double().numpy(), torch.cat(predicted)


def train_detector(
    name: str, train: Dataset, test: Dataset | None, epochs: int, seed: int = 0, batch: int = 128
) -> Detector:
    """Train a feature network on labelled images, shifted by up to two pixels.

    Raises:
        UserError: the images carry no classes, or are too few.
    """
    if not train.classes:
        raise UserError("a feature network learns to tell classes apart: the data set has none")
    if len(train) < 2 * FEATURES:
        raise UserError(
            f"{len(train)} images are too few for the covariance of {FEATURES} features: "
            f"at least {2 * FEATURES} are needed"
        )
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
    network.eval()
    features, _ = _embed(network, train.images)
    reference = statistics(features)
    accuracy = distance = None
    if test is not None:
        features, predicted = _embed(network, test.images)
        accuracy = (predicted == test.labels).double().mean().item()
        distance = frechet_distance(statistics(features), reference)
    facts = DetectorFacts(
        channels=train.images.shape[1],
        resolution=train.images.shape[2],
        classes=list(train.classes),
        train_images=len(train),
        epochs=epochs,
        seed=seed,
        test_accuracy=accuracy,
        test_distance=distance,
    )
    return Detector(name, network, reference, facts)


def _shifted(pixels: Tensor, reach: int = 2) -> Tensor:
    """Shift the whole batch by up to `reach` pixels each way, repeating the border."""
    dy, dx = torch.randint(2 * reach + 1, (2,)).tolist()
    height, width = pixels.shape[2:]
    padded = F.pad(pixels.float(), (reach,) * 4, mode="replicate")
    return padded[:, :, dy : dy + height, dx : dx + width]


def save_detector(path: Path, detector: Detector) -> None:
    """Write network, reference statistics and facts as one .safetensors file."""
    tensors = {name: tensor.contiguous() for name, tensor in detector.network.state_dict().items()}
    tensors["reference.mu"] = torch.from_numpy(detector.reference.mu)
    tensors["reference.sigma"] = torch.from_numpy(detector.reference.sigma)
    content = safetensors.torch.save(tensors, {"facts": detector.facts.model_dump_json()})
    write_atomically(path, lambda file: file.write_bytes(content))


def detector_file(name: str) -> Path:
    """The file of a shipped detector ("fashion-cnn"), or the .safetensors path that was named.

    Raises:
        UserError: there is none.
    """
    path = Path(name) if name.endswith(".safetensors") else ASSETS / f"{name}.safetensors"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in ASSETS.glob("*.safetensors")))
        raise UserError(
            f"no feature network {name!r}: name a .safetensors file made by "
            f"'sid-distill features', or one of: {shipped}"
        )
    return path


def load_detector(name: str) -> Detector:
    """Read a detector by a name that `detector_file` understands.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = detector_file(name)
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = DetectorFacts.model_validate_json((file.metadata() or {})["facts"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        mu, sigma = tensors.pop("reference.mu"), tensors.pop("reference.sigma")
        network = FeatureNetwork(facts.channels, len(facts.classes))
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} is not a feature network of sid-distill's: {first_line(error)}"
        ) from None
    return Detector(path.stem, network.eval(), Statistics(mu.numpy(), sigma.numpy()), facts)
