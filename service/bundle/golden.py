"""Golden images: pixels a published model must reproduce, within a stated tolerance.

Processors differ in the last bits of a network's output, so a pixel may round to the next
level; anything more is a broken engine or the wrong file.
"""

import base64
import binascii
import io
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator

from service.bundle.graphs import Tolerance
from service.bundle.schema import ManifestPart
from service.bundle.seeds import SEED_MAX

Image = npt.NDArray[np.uint8]


class GoldenImage(ManifestPart):
    """One reference: the class and the seed that were asked for, and the pixels they gave.

    Labels and vectors (see `inputs`) had their defaults.
    """

    class_label: int | None = Field(description="Class index; null when unconditional.")
    seed: int = Field(ge=0, le=SEED_MAX)
    png: str = Field(description="The image as a PNG file, in base64.")

    @field_validator("png")
    @classmethod
    def _is_a_png(cls, png: str) -> str:
        try:
            _decode(png)
        except (binascii.Error, ValueError, OSError) as error:
            raise ValueError("not a PNG file in base64") from error
        return png

    @classmethod
    def from_pixels(cls, pixels: Image, *, class_label: int | None, seed: int) -> "GoldenImage":
        """Make the reference from uint8 [H, W, C] pixels, C being 1 or 3."""
        from PIL import Image as Pillow

        buffer = io.BytesIO()
        squeezed = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
        Pillow.fromarray(squeezed).save(buffer, format="PNG", optimize=True)
        png = base64.b64encode(buffer.getvalue()).decode("ascii")
        return cls(class_label=class_label, seed=seed, png=png)

    def pixels(self) -> Image:
        """The reference's pixels, uint8 [H, W, C]; read-only, as they are decoded once."""
        return self._decoded

    @cached_property
    def _decoded(self) -> Image:
        pixels = _decode(self.png)
        pixels.setflags(write=False)
        return pixels


class Golden(ManifestPart):
    """Reference images, and by how much an engine's may differ from them."""

    max_difference: int = Field(ge=0, le=255, description="Largest difference, in levels of 255.")
    max_differing_share: float = Field(ge=0, le=1, description="Share of values that may differ.")
    images: list[GoldenImage] = Field(min_length=1)

    def mismatch(
        self, reference: GoldenImage, pixels: Image, tolerance: Tolerance | None = None
    ) -> str | None:
        """Say how uint8 [H, W, C] `pixels` break the bounds; None when they keep them.

        The bounds are the graph's own where it states some (see `Bundle.bounds`).
        """
        allowed = tolerance or Tolerance(
            max_difference=self.max_difference, max_differing_share=self.max_differing_share
        )
        expected = reference.pixels()
        if pixels.shape != expected.shape:
            return f"the image is of shape {pixels.shape}, the golden one of {expected.shape}"
        difference = np.abs(pixels.astype(np.int16) - expected.astype(np.int16))
        if allowed.allow(difference):
            return None
        mean = allowed.max_mean_difference
        return (
            f"class {reference.class_label}, seed {reference.seed}: {np.mean(difference > 0):.2%} "
            f"of the values differ from the golden image, by up to {difference.max()} levels, by "
            f"{difference.mean():.2f} on average (allowed: {allowed.max_differing_share:.2%}, "
            f"{allowed.max_difference}{'' if mean is None else f', {mean:g}'})"
        )


def _decode(png: str) -> Image:
    from PIL import Image as Pillow  # here, so that reading a catalogue does not load Pillow

    with Pillow.open(io.BytesIO(base64.b64decode(png, validate=True)), formats=["PNG"]) as image:
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
