"""FID's own network: the TorchScript file that the user brings, recognised by its hash.

Only over this very file is a Fréchet distance called FID: other Inceptions (torchvision's among
them) have other weights and scale images otherwise, and give other numbers.
"""

import hashlib
import io
from pathlib import Path

import torch
from torch import Tensor

from distill.errors import UserError
from distill.evaluation.feature_extractor import FeatureExtractor, FeatureModule, as_rgb

NAME = "inception-2015-12-05"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


class Inception(FeatureModule):
    """The network with its published calling convention.

    It takes uint8 [N, 3, H, W] and scales them itself; with return_features=True it returns its
    2048 pooled features, with no_output_bias=True the class probabilities whose Inception score
    is the one of Salimans et al. 2016.

    Args:
        script: the loaded TorchScript module.
    """

    dimensions = 2048
    batch = 64  # it scales images to 299x299

    def __init__(self, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.script = script

    def extract(self, pixels: Tensor, probabilities: bool) -> tuple[Tensor, Tensor | None]:
        """Look at images, see `FeatureModule`."""
        x = as_rgb(pixels)
        features = self.script(x, return_features=True)
        return features, self.script(x, no_output_bias=True) if probabilities else None


def load_inception(path: Path, sha256: str = SHA256) -> FeatureExtractor:
    """Load the extractor, once its bytes are the ones whose hash is known.

    A TorchScript file is a program: nothing of it is looked at before the hash has matched, and
    the bytes that were hashed are the bytes that are loaded.

    Raises:
        UserError: there is no such file, or it is another one.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: FID needs the user's own {NAME}.pt")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise UserError(
            f"{path} is not {NAME}.pt: its SHA-256 is {digest}, FID's extractor has {sha256}; it "
            "was not opened"
        )
    script = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    return FeatureExtractor(NAME, Inception(script), sha256)
