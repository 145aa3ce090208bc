"""The graphs of a bundle: in which precision each computes, and how far its pictures may be off.

A bundle holds one network and may hold it several times: `model.onnx`, which every engine reads,
in float32; and others that some engine computes faster. All draw the same pictures, within bounds
that `sid-distill publish` has held them to.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["float32", "bfloat16", "float16", "int8"]

# Within a version's folder.
PORTABLE = "model.onnx"  # float32, for every engine
CPU = "model.cpu.onnx"  # float32, written for the kernels that ONNX Runtime has for processors
PLAN = "model.plan"  # TensorRT's, for the GPU it was built on
FILENAMES: dict[str, Precision] = {
    PORTABLE: "float32",
    CPU: "float32",
    "model.bfloat16.onnx": "bfloat16",
    "model.float16.onnx": "float16",
    "model.int8.onnx": "int8",
}


_FORMS = {CPU: "cpu", PLAN: "plan"}  # of the graphs whose precision does not tell them apart


def variant(filename: str, precision: Precision) -> str:
    """Which graph of a bundle draws, as a model's tag says it: `float32`, `float32-cpu`.

    Args:
        filename: the graph within the version's folder.
        precision: in which it computes, which its name does not always say.
    """
    form = _FORMS.get(filename)
    return f"{precision}-{form}" if form else precision


class Bounds(BaseModel):
    """How far pictures may be from float32 torch's and still count as the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    max_difference: int = Field(ge=0, le=255, description="Largest difference, in levels of 255.")
    max_differing_share: float = Field(ge=0, le=1, description="Share of values that may differ.")
    max_distance_change: float | None = Field(
        default=None,
        ge=0,
        description="Relative change of the Fréchet distance; null where none is stated.",
    )


class Measured(BaseModel):
    """How far they were when the graph was published."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    engine: str = Field(description="What drew them, with its version.")
    images: int = Field(ge=1, description="Pictures that were compared.")
    difference: int = Field(ge=0, le=255, description="Largest difference, in levels of 255.")
    differing_share: float = Field(ge=0, le=1, description="Share of values that differ.")
    batch_difference: int = Field(
        ge=0,
        le=255,
        description="Largest difference between a picture drawn alone and the same one drawn in a "
        "batch, in levels of 255; 0: batches change nothing.",
    )
    distance_change: float | None = Field(
        default=None, description="Relative change of the Fréchet distance; null: not measured."
    )


class Graph(BaseModel):
    """One graph of a bundle."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    precision: Precision = Field(description="In which the network computes.")
    bounds: Bounds
    measured: Measured
