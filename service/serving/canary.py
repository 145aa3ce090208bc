"""The canary: the one image that an engine draws to prove that it works, and with what."""

import numpy as np

from service.bundle import Bundle, latents
from service.engines import EngineError, Images, Inputs


class Canary:
    """The first golden image of a bundle; any image at all where there is no golden one.

    Args:
        bundle: what is drawn.
        filename: the graph that draws it: how far its picture may be off.
    """

    def __init__(self, bundle: Bundle, filename: str) -> None:
        self._manifest = bundle.manifest
        self._bounds = bundle.bounds(filename)
        golden = bundle.manifest.golden
        self._golden, self._image = golden, golden.images[0] if golden else None

    def inputs(self) -> Inputs:
        """Latents and class labels of the one image."""
        seed = self._image.seed if self._image else 0
        label = self._image.class_label if self._image else 0
        noise = latents([seed], self._manifest.latent_shape)
        return noise, np.array([label], dtype=np.int64) if self._manifest.classes else None

    def compare(self, images: Images) -> None:
        """Raise EngineError when they are another picture than the one published."""
        if self._golden and self._image:
            mismatch = self._golden.mismatch(self._image, images[0], self._bounds)
            if mismatch:
                raise EngineError(f"{self._manifest.name}: {mismatch}")
