"""A small classifier whose last hidden layer is what a distance compares.

No Inception weights are free of charge for a 28x28 grey image of a shoe, so the repository
trains its own network on the real images (`sid-distill features`), ships it and names it. A
distance over it is called by its name, never FID.

A classifier's features forget what does not tell classes apart: a generator that draws every
planet in one colour loses nothing by them. So they also have to paint a thumbnail of the image,
by one linear layer that is thrown away after training: what varies within a class (colours, and
where the parts are) then stays in them, and its loss shows in distance and recall.
"""

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from distill.data.datasets import Dataset
from distill.errors import UserError, first_line
from distill.evaluation.feature_extractor import ExtractorMetadata, FeatureExtractor, FeatureModule
from distill.evaluation.frechet import Statistics, frechet_distance, statistics
from distill.file_kinds import FEATURE_EXTRACTOR, describe_file, is_network
from service.bundle import sha256_file, write_atomically

FEATURES = 128
THUMBNAIL_WEIGHT = 10.0  # brings the painting's mean squared error to the size of the entropy


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

    def extract(self, pixels: Tensor, probabilities: bool) -> tuple[Tensor, Tensor | None]:
        """Look at images, see `FeatureModule`."""
        features = self.features(pixels)
        return features, self.classifier(features).softmax(dim=1) if probabilities else None


def train_extractor(
    name: str,
    train: Dataset,
    test: Dataset | None,
    epochs: int,
    seed: int = 0,
    batch: int = 128,
    thumbnail: int = 0,
) -> FeatureExtractor:
    """Train a feature extractor on labelled images, shifted by up to two pixels.

    Args:
        name: what a distance over it is called by.
        train: the images to learn from; their statistics become the extractor's reference.
        test: held-out images, for its accuracy and the distance of real images.
        epochs: passes over the images.
        seed: start of the random stream.
        batch: images a step.
        thumbnail: side of the thumbnail that the features must be able to paint, in pixels; it
            divides the images' side. 0: the features are those of a classifier alone.

    Raises:
        UserError: the images carry no classes, are too few, or have no thumbnail of that side.
    """
    channels, side = train.images.shape[1:3]
    if thumbnail and side % thumbnail:
        raise UserError(
            f"a thumbnail of {thumbnail} pixels cannot be made of images of {side}: choose a "
            "--thumbnail that divides it, or 0 for none"
        )
    if not train.classes:
        raise UserError(
            "a feature extractor learns to tell classes apart: the data set has none. Put the "
            "images into one sub-folder a class, or do without: 'run --features none' and "
            "'publish' without --teacher measure nothing, and 'evaluate' takes --features "
            "efficientnet-lite0 for any images (docs/tutorial.md)"
        )
    if len(train) < 2 * FEATURES:
        raise UserError(
            f"{len(train)} images are too few for the covariance of {FEATURES} features: "
            f"at least {2 * FEATURES} are needed"
        )
    torch.manual_seed(seed)
    network = Classifier(channels, len(train.classes))
    painter = nn.Linear(FEATURES, channels * thumbnail**2) if thumbnail else None
    steps = epochs * -(-len(train) // batch)
    learned = [*network.parameters(), *(painter.parameters() if painter else ())]
    optimizer = torch.optim.AdamW(learned, lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in tqdm(range(steps), unit="step", desc="features"):
        indices = torch.randint(len(train), (batch,))
        pixels = _shifted(train.images[indices])
        hidden = network.features(pixels)
        logits = network.classifier(F.dropout(hidden, 0.3))
        loss = F.cross_entropy(logits, train.labels[indices], label_smoothing=0.05)
        if painter is not None:
            small = F.avg_pool2d(pixels / 127.5 - 1, side // thumbnail).flatten(1)
            loss = loss + THUMBNAIL_WEIGHT * F.mse_loss(painter(hidden), small)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    extractor = FeatureExtractor(name, network.eval())
    features, _ = extractor.embed(train.images)
    reference = statistics(features)
    accuracy = distance = None
    if test is not None:
        features, predicted = extractor.embed(test.images)
        accuracy = (predicted == test.labels).double().mean().item()
        distance = frechet_distance(statistics(features), reference)
    metadata = ExtractorMetadata(
        channels=channels,
        resolution=side,
        classes=list(train.classes),
        train_images=len(train),
        epochs=epochs,
        seed=seed,
        test_accuracy=accuracy,
        test_distance=distance,
        thumbnail=thumbnail,
    )
    return FeatureExtractor(name, network, "", reference, metadata)


def _shifted(pixels: Tensor, reach: int = 2) -> Tensor:
    """Shift the whole batch by up to `reach` pixels each way, repeating the border."""
    dy, dx = torch.randint(2 * reach + 1, (2,)).tolist()
    height, width = pixels.shape[2:]
    padded = F.pad(pixels.float(), (reach,) * 4, mode="replicate")
    return padded[:, :, dy : dy + height, dx : dx + width]


def save_classifier(path: Path, extractor: FeatureExtractor) -> None:
    """Write network, reference statistics and facts as one .safetensors file."""
    assert extractor.reference is not None
    assert extractor.metadata is not None
    tensors = {name: tensor.contiguous() for name, tensor in extractor.network.state_dict().items()}
    tensors["reference.mu"] = torch.from_numpy(extractor.reference.mu)
    tensors["reference.sigma"] = torch.from_numpy(extractor.reference.sigma)
    content = safetensors.torch.save(tensors, {"facts": extractor.metadata.model_dump_json()})
    write_atomically(path, lambda file: file.write_bytes(content))


def load_classifier(path: Path) -> FeatureExtractor:
    """Read a feature extractor of `save_classifier`'s.

    Raises:
        UserError: the file is damaged or something else.
    """
    kind = "a network that sid-distill wrote" if is_network(path) else describe_file(path)
    if kind is not None and kind != FEATURE_EXTRACTOR:
        raise UserError(f"{path} is not a feature extractor of sid-distill's: it is {kind}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = ExtractorMetadata.model_validate_json((file.metadata() or {})["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        mu, sigma = tensors.pop("reference.mu"), tensors.pop("reference.sigma")
        network = Classifier(metadata.channels, len(metadata.classes))
        network.load_state_dict(tensors)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} is not a feature extractor of sid-distill's: {first_line(error)}"
        ) from None
    reference = Statistics(mu.numpy(), sigma.numpy())
    return FeatureExtractor(path.stem, network.eval(), sha256_file(path), reference, metadata)
