"""The methods of distillation, by name: that of their section in a recipe."""

from distill.errors import UserError
from distill.methods.sid import Sid
from distill.methods.sida import Sida
from distill.recipe import RECIPE_ENTRIES, Recipe, checked_section
from distill.training.method import Method
from distill.training_config import DistillationConfig

METHODS: dict[str, type[Method]] = {method.name: method for method in (Sid, Sida)}


def method_section(recipe: Recipe, name: str) -> DistillationConfig:
    """What a recipe says of its distillation, checked by the method that the section names.

    Args:
        recipe: as `load_recipe` read it.
        name: by which it was asked for, to be named in errors.

    Raises:
        UserError: there is no such method, or an entry is unknown, missing or out of range.
    """
    if recipe.method not in METHODS:
        raise UserError(
            f"{name}: unknown section [{recipe.method}]: a recipe may hold "
            f"{', '.join(RECIPE_ENTRIES)} and the section of its method: {', '.join(METHODS)}"
        )
    section = METHODS[recipe.method].section
    return checked_section(name, recipe.method, section, recipe.method_entries)
