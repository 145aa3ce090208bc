"""Under which licence a network may be passed on, as far as its file says.

A licence stands in the header from the start: `import` and a recipe state it, a student inherits
its teacher's. It is never assumed of images that nobody has spoken for.
"""

from collections.abc import Mapping
from typing import Any

from distill.errors import UserError
from distill.importing.released import RELEASED
from distill.recipe import RECIPES, load_recipe


def licence_of(metadata: Mapping[str, Any]) -> str | None:
    """The licence of a network with this metadata (`checkpoints.NetworkMetadata`); None: not known.

    Headers written before they held it say where a network comes from: a released file, or the
    data of a shipped recipe.
    """
    if stated := metadata.get("licence"):
        return str(stated)
    if "source_sha256" in metadata:
        return RELEASED
    data, _, _ = str(metadata.get("data", "")).rpartition(", ")  # then the number of images
    recipes = (load_recipe(file.stem) for file in sorted(RECIPES.glob("*.toml")))
    return next((recipe.licence for recipe in recipes if data and recipe.data == data), None)


def checked_licence(stated: str) -> str:
    """What a person gave as --licence, without blanks around it; raise UserError if it is empty."""
    if not stated.strip():
        raise UserError("--licence is empty: expected an SPDX identifier or a sentence")
    return stated.strip()
