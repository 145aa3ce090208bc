"""What all parts of a manifest have in common."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict


class ManifestPart(BaseModel):
    """One object of a manifest: strict about the fields that it knows.

    Fields that it does not know are ignored, so that a later release may add some that this one
    can do without; `requires` in the manifest names those that it cannot.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)


def field_paths(part: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The fields that a part knows, with those of the parts in it: `golden.images.seed`.

    Lists and mappings leave no trace in a path: each of their items is the same kind of object.
    """
    for name, field in part.model_fields.items():
        yield prefix + name
        for inner in _parts_in(field.annotation):
            yield from field_paths(inner, f"{prefix}{name}.")


def _parts_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if get_origin(annotation) is None and isinstance(annotation, type):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in get_args(annotation):
        yield from _parts_in(argument)
