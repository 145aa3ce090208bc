"""Under which licence a network may be passed on, as far as its file says.

A licence stands in the header from the start: `import` and a recipe state it, a student inherits
its teacher's. It is never assumed of images that nobody has spoken for. What forbids commercial
use goes on forbidding it in all that is made of it.
"""

import re
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


def checked_licence(stated: str, inherited: str | None = None) -> str:
    """What a person gave as --licence, without blanks around it.

    Args:
        stated: what was given.
        inherited: what the network's file says.

    Raises:
        UserError: it is empty, or permits commercial use where the file's forbids it. Terms of
            somebody's own ("LicenseRef-...") are taken: they may rest on a permission.
    """
    licence = stated.strip()
    if not licence:
        raise UserError("--licence is empty: expected an SPDX identifier or a sentence")
    if inherited is None or not is_non_commercial(inherited):
        return licence
    if is_non_commercial(licence) or licence.startswith("LicenseRef-"):
        return licence
    raise UserError(
        f"--licence {licence} does not fit: the network's file says {inherited}, which forbids "
        "commercial use, also of what was distilled from it. Leave --licence out, or name terms of "
        "your own (LicenseRef-...)"
    )


def is_non_commercial(licence: str) -> bool:
    """Whether a licence forbids commercial use, as Creative Commons' NC does, or by its words."""
    words = r"\bnon-?commercial|\bno commercial|\bnot for commercial"
    return bool(re.search(rf"\bNC\b|(?i:{words})", licence))


def licence_of_both(teacher: str | None, start: str | None) -> str | None:
    """The licence of a student of a teacher that began as another network; None: not known.

    The teacher's, unless that is the freer one of the two.
    """
    forbids = start is not None and is_non_commercial(start)
    return start if forbids and not (teacher and is_non_commercial(teacher)) else teacher


def licence_of_light_decoder(autoencoder: str | None, generator: str | None) -> str | None:
    """The licence of a decoder that imitates one on what a generator draws; None: not known.

    That of what it imitates, unless the generator's alone forbids commercial use. Of one that
    forbids it that is known, whatever the other says.
    """
    licence = licence_of_both(autoencoder, generator)
    if licence is not None and is_non_commercial(licence):
        return licence
    return None if generator is None else licence
