"""The graphs of a bundle: in which precision each computes, and how far its images may be off.

A bundle holds one network and may hold it several times: `model.onnx`, which every engine reads,
in float32; and others that some engine computes faster. All draw the same images, within bounds
that `sid-distill publish` has held them to.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from service.bundle.schema import ManifestPart

Precision = Literal["float32", "bfloat16", "float16"]

# Within a version's folder.
BASELINE = "model.onnx"  # float32, for every engine
CPU = "model.cpu.onnx"  # float32, written for the kernels that ONNX Runtime has for processors
CUDA = "model.cuda.onnx"  # float16, in operators that ONNX Runtime has for NVIDIA GPUs alone
PLAN = "model.plan"  # TensorRT's, for the GPU it was built on
FILENAMES: dict[str, Precision] = {
    BASELINE: "float32",
    CPU: "float32",
    "model.bfloat16.onnx": "bfloat16",
    "model.float16.onnx": "float16",
    CUDA: "float16",
}
# What an image's mean absolute difference may come to, in levels: a small multiple of what was
# measured (docs/results.md), and below the 2 of a shift that anyone would call another image.
# `publish` writes it into the manifest; graphs from before it did are held to it too.
MEAN_DIFFERENCE: dict[Precision, float] = {
    "float32": 0.01,
    "float16": 0.25,
    "bfloat16": 1.25,
}


# Of the graphs whose precision does not tell them apart.
_FORMS = {CPU: "cpu", CUDA: "cuda", PLAN: "plan"}


def variant(filename: str, precision: Precision) -> str:
    """Which graph of a bundle draws, as a model's tag says it: `float32`, `float32-cpu`.

    Args:
        filename: the graph within the version's folder.
        precision: in which it computes, which its name does not always say.
    """
    form = _FORMS.get(filename)
    return f"{precision}-{form}" if form else precision


class Tolerance(ManifestPart):
    """How far images may be from float32 torch's and still count as the same."""

    max_difference: int = Field(ge=0, le=255, description="Largest difference, in levels of 255.")
    max_differing_share: float = Field(ge=0, le=1, description="Share of values that may differ.")
    max_mean_difference: float | None = Field(
        default=None,
        ge=0,
        le=255,
        description="Mean absolute difference of an image, in levels: of the canary, and of 99 "
        "in 100 images when it was published; null where none is stated.",
    )
    max_distance_change: float | None = Field(
        default=None,
        ge=0,
        description="Relative change of the Fréchet distance; null where none is stated.",
    )

    def allow(self, difference: NDArray[Any]) -> bool:
        """Whether one image may differ so: absolute differences of its values, in levels."""
        allowed_mean = np.inf if self.max_mean_difference is None else self.max_mean_difference
        return bool(
            difference.max() <= self.max_difference
            and np.mean(difference > 0) <= self.max_differing_share
            and difference.mean() <= allowed_mean
        )


def _tolerance(
    precision: Precision, difference: int, differing_share: float, distance_change: float
) -> Tolerance:
    return Tolerance(
        max_difference=difference,
        max_differing_share=differing_share,
        max_mean_difference=MEAN_DIFFERENCE[precision],
        max_distance_change=distance_change,
    )


# What `publish` counts as the same image. float32 engines add in another order than torch: one
# level in a few pixels. Fewer bits are a little noise everywhere, which the mean difference limits,
# but a pixel at a sharp edge may move far (docs/results.md). Each holds for an image of its own
# too, as the canary is one. Nor may the distance move by more than other seeds would move it.
TOLERANCES: dict[Precision, Tolerance] = {
    "float32": _tolerance("float32", 1, 0.01, 0.005),
    "float16": _tolerance("float16", 4, 0.25, 0.01),
    "bfloat16": _tolerance("bfloat16", 64, 0.75, 0.03),
}


# A value of an image that a light decoder has so many levels off is another colour to the eye.
FAR = 32


class Imitation(ManifestPart):
    """How far a light decoder's images are from those of the decoder that it imitates."""

    mean_difference: float = Field(
        ge=0, le=255, description="Mean absolute difference, in levels of 255."
    )
    far_share: float = Field(
        ge=0, le=1, description=f"Share of values that differ by more than {FAR} levels."
    )
    distance_change: float | None = Field(
        default=None, description="Relative change of the Fréchet distance; null: not measured."
    )


class Measured(ManifestPart):
    """How far they were when the graph was published."""

    engine: str = Field(description="What drew them, with its version.")
    images: int = Field(ge=1, description="Images that were compared.")
    difference: int = Field(ge=0, le=255, description="Largest difference, in levels of 255.")
    differing_share: float = Field(ge=0, le=1, description="Share of values that differ.")
    mean_difference: float | None = Field(
        default=None,
        ge=0,
        le=255,
        description="Mean absolute difference of an image, in levels, which 99 in 100 images "
        "keep; null where it was not measured.",
    )
    worst_mean_difference: float | None = Field(
        default=None, ge=0, le=255, description="The same of the image that is furthest off."
    )
    batch_difference: int = Field(
        ge=0,
        le=255,
        description="Largest difference between an image drawn alone and the same one drawn in a "
        "batch, in levels of 255; 0: batches change nothing.",
    )
    distance_change: float | None = Field(
        default=None, description="Relative change of the Fréchet distance; null: not measured."
    )
    imitation: Imitation | None = Field(
        default=None,
        description="Of a graph with a light decoder: its images beside those of the decoder that "
        "it imitates; null where there is none, or the other one was not at hand.",
    )


class Graph(ManifestPart):
    """One graph of a bundle."""

    precision: Precision = Field(description="In which the network computes.")
    bounds: Tolerance
    measured: Measured

    @property
    def allowed(self) -> Tolerance:
        """The bounds; where they are from before the mean was judged, with the precision's mean."""
        if self.bounds.max_mean_difference is not None:
            return self.bounds
        update = {"max_mean_difference": MEAN_DIFFERENCE[self.precision]}
        return self.bounds.model_copy(update=update)
