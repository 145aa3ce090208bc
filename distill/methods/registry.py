"""The methods of distillation, by name: that of their section in a recipe."""

from typing import Any

from distill.errors import UserError
from distill.methods.dmd import Dmd
from distill.methods.sid import Sid
from distill.recipe import RECIPE_ENTRIES, Recipe, checked_section
from distill.training.method import Method
from distill.training_config import DistillationConfig

METHODS: dict[str, type[Method]] = {method.name: method for method in (Sid, Dmd)}


def method_section(recipe: Recipe, name: str, method: str | None = None) -> DistillationConfig:
    """What a recipe says of its distillation by a method, checked by that method.

    All sections of methods are checked, also those of methods that are not asked for. A method
    without a section of its own is given what it knows of the first one, see `taken_over`.

    Args:
        recipe: as `load_recipe` read it.
        name: by which it was asked for, to be named in errors.
        method: the method's name; None: that of the recipe's first section.

    Raises:
        UserError: there is no such method, or an entry is unknown, missing or out of range.
    """
    for section in recipe.methods:
        if section not in METHODS:
            raise UserError(
                f"{name}: unknown section [{section}]: a recipe may hold "
                f"{', '.join(RECIPE_ENTRIES)} and sections of methods: {', '.join(METHODS)}"
            )
    sections = {
        section: checked_section(name, section, METHODS[section].section, entries)
        for section, entries in recipe.methods.items()
    }
    method = recipe.method if method is None else method
    if method in sections:
        return sections[method]
    if method not in METHODS:
        raise UserError(f"no method {method!r}: choose of {', '.join(METHODS)}")
    source = f"{name}, which has no section [{method}], by the entries of [{recipe.method}]"
    taken, _ = taken_over(recipe, method)
    return checked_section(source, method, METHODS[method].section, taken)


def taken_over(recipe: Recipe, method: str) -> tuple[dict[str, Any], list[str]]:
    """What a method without a section of its own is given: entries of the recipe's first one.

    Args:
        recipe: as `load_recipe` read it.
        method: the name of a method of `METHODS`.

    Returns:
        The entries that this method knows too, and the names of the others.
    """
    entries, known = recipe.methods[recipe.method], METHODS[method].section.model_fields
    taken = {name: value for name, value in entries.items() if name in known}
    return taken, [name for name in entries if name not in known]
