"""Manifests of format 1, which knew one graph: noise of the image's shape, and a class."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from service.bundle.inputs import noise_and_class
from service.bundle.schema import ManifestPart


class _Shapes(ManifestPart):
    """What format 1 says of shapes; the other fields are those of format 2."""

    resolution: int = Field(ge=1, description="Height and width in pixels.")
    channels: Literal[1, 3] = Field(description="1 is grey, 3 is RGB.")


def to_format_2(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a manifest of format 1, said in format 2.

    Raises:
        ValidationError: what format 1 says of shapes breaks its schema; the rest is not looked at.
    """
    shapes = _Shapes.model_validate(fields)
    side, channels = shapes.resolution, shapes.channels
    inputs = noise_and_class((channels, side, side), has_classes=bool(fields.get("classes")))
    kept = {name: value for name, value in fields.items() if name not in _Shapes.model_fields}
    return kept | {"format": 2, "inputs": inputs, "images": (side, side, channels)}
