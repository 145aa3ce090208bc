"""A small classifier whose last hidden layer is what a distance compares.

No Inception weights are free of charge for a 28x28 grey picture of a shoe, so the repository
trains its own network on the real images (`sid-distill features`), ships it and names it. A
distance over it is called by its name, never FID.
"""

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from distill.checkpoints import first_line, write_atomically
from distill.data import Dataset
from distill.errors import UserError
from distill.evaluation.detector import Detector, DetectorFacts, FeatureModule
from distill.evaluation.frechet import Statistics, frechet_distance, statistics
from service.bundle import sha256_file

FEATURES = 128


class Classifier(FeatureModule):
    """Three convolutions, a hidden layer of 128 features, and a linear classifier.

    Args:
        channels: colour channels of the images.
        classes: number of classes.
    """

    dimensions = FEATURES

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

    def observe(self, pixels: Tensor, probabilities: bool) -> tuple[Tensor, Tensor | None]:
        """Look at pictures, see `FeatureModule`."""
        features = self.features(pixels)
        return features, self.classifier(features).softmax(dim=1) if probabilities else None


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
    network = Classifier(train.images.shape[1], len(train.classes))
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
    reference = statistics(features)
    accuracy = distance = None
    if test is not None:
        features, predicted = detector.embed(test.images)
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
    return Detector(name, network, "", reference, facts)


def _shifted(pixels: Tensor, reach: int = 2) -> Tensor:
    """Shift the whole batch by up to `reach` pixels each way, repeating the border."""
    dy, dx = torch.randint(2 * reach + 1, (2,)).tolist()
    height, width = pixels.shape[2:]
    padded = F.pad(pixels.float(), (reach,) * 4, mode="replicate")
    return padded[:, :, dy : dy + height, dx : dx + width]


def save_classifier(path: Path, detector: Detector) -> None:
    """Write network, reference statistics and facts as one .safetensors file."""
    assert detector.reference is not None
    assert detector.facts is not None
    tensors = {name: tensor.contiguous() for name, tensor in detector.network.state_dict().items()}
    tensors["reference.mu"] = torch.from_numpy(detector.reference.mu)
    tensors["reference.sigma"] = torch.from_numpy(detector.reference.sigma)
    content = safetensors.torch.save(tensors, {"facts": detector.facts.model_dump_json()})
    write_atomically(path, lambda file: file.write_bytes(content))


def load_classifier(path: Path) -> Detector:
    """Read a feature network of `save_classifier`'s.

    Raises:
        UserError: the file is damaged or something else.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = DetectorFacts.model_validate_json((file.metadata() or {})["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        mu, sigma = tensors.pop("reference.mu"), tensors.pop("reference.sigma")
        network = Classifier(facts.channels, len(facts.classes))
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} is not a feature network of sid-distill's: {first_line(error)}"
        ) from None
    reference = Statistics(mu.numpy(), sigma.numpy())
    return Detector(path.stem, network.eval(), sha256_file(path), reference, facts)
