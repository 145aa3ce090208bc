"""A recipe: network, length and rates of a training in one small TOML file (distill/recipes/).

Every recipe has the sections that stand here, and one or more of methods of distillation, which
are kept as data: methods stand above, and check their own (`distill.methods.registry`).
"""

import math
import os
import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, create_model

from distill.errors import UserError
from distill.networks import AnyNetwork, family_of
from distill.text_files import read_text
from distill.training_config import RegressionConfig, Section, TeacherConfig, current_precision
from service.bundle import first_error

RECIPES = Path(__file__).parent / "recipes"

Checked = TypeVar("Checked", bound=BaseModel)


class Recipe(Section):
    """A network, its teacher's training and its distillation.

    Attributes:
        description: of what its networks draw, in a sentence that the catalogue can show.
        features: the shipped feature extractor over which a distance means something here.
        licence: of networks that are trained on the recipe's data (SPDX or a sentence); None:
            not known, and publish asks for it.
        data: the name of the data set that licence and description are about, so that other
            images are not published under them; None: whatever the recipe is used for.
        autoencoder: the file of the autoencoder whose latents the networks draw; None: they draw
            pixels.
        network: the teacher's shape.
        teacher: how the teacher is trained; None where it is released and imported.
        regression: how the generator starts, for 'sid-distill regress'; None where it starts from
            the teacher's weights.
        methods: the further sections, those of methods of distillation, in the order of the file:
            what stands in each, by the method's name, not checked yet: `distill.methods.registry`.
    """

    description: str
    features: str | None = None
    licence: str | None = Field(default=None, pattern=r"\S")
    data: str | None = None
    autoencoder: str | None = Field(default=None, pattern=r"\S")
    network: AnyNetwork
    teacher: TeacherConfig | None = None
    regression: RegressionConfig | None = None
    methods: dict[str, dict[str, Any]] = Field(min_length=1)

    @property
    def method(self) -> str:
        """The method by which one distils who names none: that of the first section."""
        return next(iter(self.methods))

    def licence_for(self, data: str) -> str | None:
        """The licence of a network that is trained with this recipe on the data set `data`."""
        return self.licence if self.data in (None, data) else None

    def description_for(self, data: str) -> str | None:
        """What the recipe says of a network that is trained with it on the data set `data`."""
        return self.description if self.data in (None, data) else None


def nearest_recipe(network: AnyNetwork, source: str, *, latents: bool) -> tuple[str, Recipe]:
    """The shipped recipe for networks that are most alike to one, by its name.

    Args:
        network: what is to be distilled.
        source: the name of its file: of two recipes that are as near the one that it speaks of.
        latents: whether it draws an autoencoder's latents, and not pixels.
    """

    def distance(file: Path) -> tuple[float, ...]:
        recipe = load_recipe(file.stem)
        meant = recipe.network
        family = re.split(r"[\d-]", file.stem)[0]  # "cifar10-cond" is for CIFAR-10
        return (
            (recipe.autoencoder is not None) != latents,
            abs(math.log(meant.img_resolution / network.img_resolution)),
            bool(meant.label_dim) != bool(network.label_dim),
            abs(meant.img_channels - network.img_channels),
            abs(meant.label_dim - network.label_dim),
            meant.preconditioning != network.preconditioning,
            family not in source.lower(),
        )

    # By stem: "fashion" before "fashion-sida", which is for the same networks.
    nearest = min(sorted(RECIPES.glob("*.toml"), key=lambda file: file.stem), key=distance).stem
    return nearest, load_recipe(nearest)


def fits(recipe: Recipe, network: AnyNetwork) -> bool:
    """Whether a recipe is for networks that draw such images of so many classes."""
    sizes = ("img_resolution", "img_channels", "label_dim")
    return all(getattr(recipe.network, size) == getattr(network, size) for size in sizes)


RECIPE_SECTIONS: dict[str, type[BaseModel]] = {
    "teacher": TeacherConfig,
    "regression": RegressionConfig,
}
RECIPE_ENTRIES = (
    "description", "features", "licence", "data", "autoencoder", "network", *RECIPE_SECTIONS,
)  # fmt: skip


def load_recipe(name: str) -> Recipe:
    """Read a recipe by the name of a shipped one ("fashion") or the path of a .toml file.

    Raises:
        UserError: there is none, or an entry is unknown, missing or out of range (what stands in
            the methods' sections is not looked at).
    """
    path = Path(name) if name.lower().endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        raise UserError(_missing(name))
    try:
        content = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    _put_todays_precisions(content)
    _check_sections(str(path), content)
    methods = _method_sections(path, content)
    shared = {name: value for name, value in content.items() if name not in methods}
    try:
        return Recipe.model_validate(shared | {"methods": methods})
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}") from None


def _missing(name: str) -> str:
    """Say that a recipe is not there: a file that was meant, or the name of a shipped one."""
    shipped = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
    if not name.lower().endswith(".toml"):
        if Path(f"{name}.toml").is_file():
            return f"no recipe {name!r} is shipped: for the file say {name}.toml"
        return f"no recipe {name!r}: name a .toml file or one of: {shipped}"
    path = Path(name)
    if path.exists():
        return f"the recipe {name} is no file: name a .toml file or one of: {shipped}"
    return (
        f"the recipe file {name} is missing: there is none in {path.parent.resolve()}; shipped "
        f"recipes are named without .toml: {shipped}"
    )


def _put_todays_precisions(content: dict[str, Any]) -> None:
    """Replace former words for a precision, in place, with one notice for each word."""
    sections = [s for s in content.values() if isinstance(s, dict) and "precision" in s]
    todays = {word: _noticed(word) for word in {str(s["precision"]) for s in sections}}
    for section in sections:
        section["precision"] = todays[str(section["precision"])]


def _check_sections(recipe: str, content: Mapping[str, Any]) -> None:
    """Refuse a section of any recipe that is no section, or has an entry that nobody knows."""
    for name in ("network", *RECIPE_SECTIONS):
        if name not in content:
            continue
        entries = content[name]
        if not isinstance(entries, dict):
            raise UserError(
                f"{recipe}: {name} is a section: write a line [{name}] and its entries below"
            )
        try:
            kind = RECIPE_SECTIONS[name] if name in RECIPE_SECTIONS else family_of(entries)
        except ValueError as error:
            raise UserError(f"{recipe}: {name}: {error}") from None
        _refuse_unknown(recipe, name, kind, entries)


def _method_sections(path: Path, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections that are no others', by name; raise UserError unless there is one."""
    holds = (
        f"a recipe may hold {', '.join(RECIPE_ENTRIES)} and a section of each method of "
        "distillation"
    )
    others = {name: value for name, value in content.items() if name not in RECIPE_ENTRIES}
    for name, value in others.items():
        if not isinstance(value, dict):
            raise UserError(f"{path}: unknown entry {name}, and no section [{name}]: {holds}")
    if not others:
        raise UserError(f"{path} has no section of a method of distillation: add one, say [sid]")
    return others


def checked_section(
    recipe: str, name: str, kind: type[Checked], entries: Mapping[str, Any]
) -> Checked:
    """Check what stands in the section `name` of a recipe, by its own name or path.

    Raises:
        UserError: an entry is unknown, missing or out of range.
    """
    _refuse_unknown(recipe, name, kind, entries)
    # A recipe of this section alone, so that pydantic says where in the file an error is.
    whole = create_model("Recipe", **{name: (kind, ...)})  # type: ignore[call-overload]
    try:
        section: Checked = getattr(whole.model_validate({name: entries}), name)
    except ValidationError as error:
        raise UserError(f"{recipe}: {first_error(error)}") from None
    return section


def _refuse_unknown(
    recipe: str, section: str, kind: type[BaseModel], entries: Mapping[str, Any]
) -> None:
    """Name the first entry that a section does not know, and those that it knows."""
    for name in entries:
        if name not in kind.model_fields:
            raise UserError(
                f"{recipe}: unknown entry {section}.{name}: [{section}] may hold "
                f"{', '.join(sorted(kind.model_fields))}"
            )


def override(section: Checked, **changes: Any) -> Checked:
    """Return a section with the entries of `changes` that are not None replaced.

    Raises:
        UserError: the section has no such entry, or a value is out of range.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    known = type(section).model_fields
    if unknown := [name for name in given if name not in known]:
        raise UserError(
            f"{unknown[0]} changes nothing here: what may be set is {', '.join(sorted(known))}"
        )
    if "precision" in given:
        given["precision"] = _noticed(given["precision"])
    try:
        return type(section).model_validate(section.model_dump() | given)
    except ValidationError as error:
        raise UserError(str(first_error(error))) from None


def _noticed(word: Any) -> Any:
    """Today's word for what somebody typed, with a notice where that is another one."""
    today = current_precision(word)
    if today != word and os.environ.get("RANK", "0") == "0":  # of several processes, once
        print(f"precision {word} is now called {today}: write that", file=sys.stderr)
    return today
