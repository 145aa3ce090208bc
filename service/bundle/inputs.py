"""The inputs of a bundle's graph, as its manifest lists them: one entry each, of a kind.

A kind says where the values come from. `noise` is drawn from an image's seed, `class` is its
class; a `label` and a `vector` are named in a request's `inputs`, and have a default for all that
name none: most requests, the golden images and the canary.

Shapes are those of one image. The graph takes each input with the batch's axis N before them.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from service.bundle.schema import ManifestPart
from service.bundle.validation import shown_as_json
from service.exceptions import RefusedError

LATENTS, CLASS_LABELS, IMAGES = "latents", "class_labels", "images"
"""What `sid-distill` calls a graph's inputs, and what every graph calls its output."""
Value = int | tuple[float, ...]
"""What an image has of a label, or of a vector."""

_LARGEST = float(np.finfo(np.float32).max)
_LABELS = int(np.iinfo(np.int64).max)

InputName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$")]
# A list in JSON; inside, the numbers are as strict as everywhere.
Shape = Annotated[tuple[PositiveInt, ...], Field(strict=False)]


class InputError(RefusedError, ValueError):
    """A value that an input of the model does not take; the message says what it takes."""

    status, kind = 422, "input-not-taken"


class NoiseInput(ManifestPart):
    """Standard normal noise, drawn from the seed: float32 [N, *shape]. Every graph has one."""

    name: InputName
    kind: Literal["noise"] = "noise"
    dtype: Literal["float32"] = "float32"
    shape: Shape = Field(min_length=1, description="Of one image's noise: its latents.")


class ClassInput(ManifestPart):
    """The class index: int64 [N]. A graph has it if, and only if, the model has classes."""

    name: InputName
    kind: Literal["class"] = "class"
    dtype: Literal["int64"] = "int64"
    shape: Shape = Field(default=(), max_length=0, description="One number per image: [].")


class LabelInput(ManifestPart):
    """A number that a request may choose beside the class, such as a style: int64 [N]."""

    name: InputName
    kind: Literal["label"] = "label"
    dtype: Literal["int64"] = "int64"
    shape: Shape = Field(default=(), max_length=0, description="One number per image: [].")
    count: int = Field(ge=1, le=_LABELS, description="How many there are: 0 to count - 1.")
    default: int = Field(default=0, ge=0, description="For requests that do not name it.")

    @model_validator(mode="after")
    def _default_is_one(self) -> "LabelInput":
        if self.default >= self.count:
            raise ValueError(f"the default {self.default} is not below the count {self.count}")
        return self

    @property
    def takes(self) -> str:
        """What it takes, in words."""
        return f"a whole number from 0 to {self.count - 1} (default {self.default})"

    def check(self, value: object) -> int:
        """Return `value` as an int, 3.0 as 3; raises InputError for what is none of the labels."""
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < self.count:
            return number
        raise InputError(f"{self.name} takes {self.takes}, not {shown_as_json(value)}")


class VectorInput(ManifestPart):
    """Numbers that a request may choose, such as weights of a mixture: float32 [N, D]."""

    name: InputName
    kind: Literal["vector"] = "vector"
    dtype: Literal["float32"] = "float32"
    shape: Shape = Field(min_length=1, max_length=1, description="[D]: how many numbers per image.")
    default: Annotated[tuple[float, ...], Field(strict=False)] = Field(
        description="For requests that do not name it."
    )

    @model_validator(mode="after")
    def _default_is_one(self) -> "VectorInput":
        try:
            self.check(self.default)
        except InputError as error:
            raise ValueError(f"the default is none: {error}") from None
        return self

    @property
    def takes(self) -> str:
        """What it takes, in words."""
        return f"a list of {self.shape[0]} numbers (default {shown_as_json(self.default)})"

    def check(self, value: object) -> tuple[float, ...]:
        """Return `value` as floats; raises InputError unless it is so many, finite in float32."""
        numbers = value if isinstance(value, list | tuple) else ()
        if len(numbers) != self.shape[0] or not all(map(_is_float32, numbers)):
            raise InputError(f"{self.name} takes {self.takes}, not {shown_as_json(value)}")
        return tuple(map(float, numbers))


ExtraInput = LabelInput | VectorInput
"""What a request may name: a further kind is a class beside these two, and stands here."""
Input = Annotated[NoiseInput | ClassInput | ExtraInput, Field(discriminator="kind")]


def noise_and_class(latent_shape: Sequence[int], *, has_classes: bool) -> list[Input]:
    """The inputs of a graph as `sid-distill` exports it.

    Args:
        latent_shape: of one image's noise.
        has_classes: whether it is asked for a class.
    """
    noise = NoiseInput(name=LATENTS, shape=tuple(latent_shape))
    return [noise, ClassInput(name=CLASS_LABELS)] if has_classes else [noise]


def _is_float32(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _LARGEST
