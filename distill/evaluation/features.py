"""Feature extractors by name: the shipped classifiers, one's own, ImageNet's, and FID's."""

from pathlib import Path

from distill.errors import UserError
from distill.evaluation import efficientnet
from distill.evaluation.classifier import load_classifier
from distill.evaluation.feature_extractor import FeatureExtractor
from distill.evaluation.inception import load_inception

ASSETS = Path(__file__).parent / "assets"


def shipped_names() -> list[str]:
    """Names of the classifiers that the repository brings."""
    return sorted(file.stem for file in ASSETS.glob("*.safetensors"))


def load_extractor(name: str) -> FeatureExtractor:
    """Load a feature extractor onto the CPU.

    Args:
        name: a shipped classifier ("fashion-cnn"), the .safetensors file of one made by
            'sid-distill features', "efficientnet-lite0", or the path of FID's
            inception-2015-12-05.pt.

    Raises:
        UserError: there is none of that name, its packages are missing, or the file is damaged
            or another one.
    """
    if name == efficientnet.NAME:
        return efficientnet.load_efficientnet()
    if name.endswith(".pt"):
        return load_inception(Path(name))
    path = Path(name) if name.endswith(".safetensors") else ASSETS / f"{name}.safetensors"
    if not path.is_file():
        raise UserError(
            f"no feature extractor {name!r}: name a .safetensors file made by "
            f"'sid-distill features', FID's inception-2015-12-05.pt, {efficientnet.NAME}, or one "
            f"of: {', '.join(shipped_names())}"
        )
    return load_classifier(path)


def matching_extractor(shape: tuple[int, ...], classes: list[str]) -> FeatureExtractor:
    """The shipped classifier that knows images [C, H, W] of these classes.

    Raises:
        UserError: none does.
    """
    for name in shipped_names():
        extractor = load_extractor(name)
        try:
            extractor.check_fits(shape, classes)
        except UserError:
            continue
        return extractor
    raise UserError(
        f"no shipped feature extractor ({', '.join(shipped_names())}) knows what this network "
        f"draws: name one with --features, made by 'sid-distill features', or {efficientnet.NAME}"
    )
