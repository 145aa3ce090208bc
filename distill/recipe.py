"""A recipe: network, length and rates of a training in one small TOML file (distill/recipes/).

Every recipe has the sections that stand here, and one of its method of distillation, which is
kept as data: methods stand above, and check their own (`distill.methods.registry`).
"""

import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from distill.errors import UserError
from distill.networks import AnyNetwork, family_of
from distill.text_files import read_text
from service.bundle import Precision, first_error

RECIPES = Path(__file__).parent / "recipes"

# What these words do: `distill.training.precision`.
TrainingPrecision = Literal[Precision, "tf32"]

# Understood until 0.2; runs that were begun with these words can be resumed for as long.
_FORMER_WORDS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

Decay = Annotated[float, Field(ge=0, lt=1)]
Frequency = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]

Section = TypeVar("Section", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class LoopConfig(_Section):
    """What every training needs to know.

    Attributes:
        total_images: stop after this many images.
        batch: images a step, of all processes together.
        microbatch: images a network call, at most; gradients add up over as many calls as the
            batch takes. It decides the random draws, the number of processes does not.
        precision: see `distill.training.precision`.
        lr: Adam's learning rate.
        betas: Adam's decay rates of the two moments.
        adam_eps: added to the root of the second moment; None means 1e-8, with float16 1e-6.
        augment: the probability of each augmentation, see `distill.data.augment`.
        ema_halflife: images after which a weight's share in the average has halved.
        noise_mean: mean of ln sigma of the noise levels at which a denoiser learns; -1.2 is EDM's
            for CIFAR-10. What an image shares over all its pixels, such as its mean colour, is
            decided at levels that grow with its side.
        noise_std: their standard deviation.
        checkpoint_every: images between two checkpoints.
        seed: start of every random stream; the same seed repeats the run (on a CPU to the bit).
    """

    total_images: int = Field(gt=0)
    batch: int = Field(gt=0)
    microbatch: int = Field(default=64, gt=0)
    precision: TrainingPrecision = "float32"
    lr: float = Field(gt=0)
    betas: tuple[Decay, Decay]
    adam_eps: float | None = Field(default=None, gt=0)
    augment: Probability = 0.0
    ema_halflife: float = Field(gt=0)
    noise_mean: float = -1.2
    noise_std: float = Field(default=1.2, gt=0)
    checkpoint_every: int = Field(gt=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _divides(self) -> "LoopConfig":
        if self.batch % self.images_per_call:
            raise ValueError(
                f"a batch of {self.batch} is no multiple of the micro-batch of {self.microbatch}"
            )
        return self

    @property
    def images_per_call(self) -> int:
        """Images in one micro-batch."""
        return min(self.batch, self.microbatch)

    @property
    def eps(self) -> float:
        """Adam's eps (facts, section 2)."""
        return self.adam_eps or (1e-6 if self.precision == "float16" else 1e-8)


class SingleNetworkConfig(LoopConfig):
    """What a training of one network needs to know.

    Attributes:
        lr: its highest value; it rises over `warmup` images and falls to 0 on half a cosine.
        warmup: images over which the learning rate rises.
    """

    betas: tuple[Decay, Decay] = (0.9, 0.99)
    warmup: int = Field(default=10_000, ge=0)


class TeacherConfig(SingleNetworkConfig):
    """How to train a diffusion teacher (EDM, arXiv 2206.00364)."""


class RegressionConfig(SingleNetworkConfig):
    """How a generator starts: one step learns the teacher's noise-image pairs (arXiv 2101.02388).

    Attributes:
        pairs: how many the teacher draws.
        steps: of Heun's method a pair takes: 2 steps - 1 evaluations.
        sigma_init: the noise level at which they begin, and at which the generator denoises.
    """

    pairs: int = Field(default=20_000, gt=0)
    steps: int = Field(default=10, gt=1)
    sigma_init: float = Field(default=40.0, gt=0.002)

    @model_validator(mode="after")
    def _has_no_noise_to_choose(self) -> "RegressionConfig":
        for name in ("augment", "noise_mean", "noise_std"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} changes nothing in a regression on pairs, whose noise and images "
                    "are given: leave it out"
                )
        return self


class DistillationConfig(LoopConfig):
    """What every distillation needs to know; a method's section adds what its losses need.

    The defaults are those of SiD's paper (arXiv 2404.04057) for CIFAR-10.

    Attributes:
        sigma_init: noise level at which the generator denoises pure noise; 2.5 is the paper's.
            For a recipe that names none 'sid-distill run' computes a fitting one, see
            `distill.training.start_level`.
        dropout: of the fake score and the generator while they learn; None keeps the teacher's.
        class_frequencies: how often each class is drawn, up to a factor; None means alike.
        generator_betas: Adam's for the generator; None means `betas`.
        fake_lr: learning rate of the fake-score network; None means `lr`.
        cooldown: the last images of the run, over which both learning rates fall on a line to
            0; the paper has none and trains far longer.
    """

    lr: float = Field(default=1e-5, gt=0)
    fake_lr: float | None = Field(default=None, gt=0)
    cooldown: int = Field(default=0, ge=0)
    batch: int = Field(default=256, gt=0)
    betas: tuple[Decay, Decay] = (0.0, 0.999)
    ema_halflife: float = Field(default=500_000, gt=0)
    sigma_init: float = Field(default=2.5, gt=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    class_frequencies: tuple[Frequency, ...] | None = None
    generator_betas: tuple[Decay, Decay] | None = None


class Recipe(_Section):
    """A network, its teacher's training and its distillation.

    Attributes:
        description: what it is for and how long it takes.
        features: the shipped feature extractor over which a distance means something here.
        licence: of networks that are trained on the recipe's data (SPDX or a sentence); None:
            not known, and publish asks for it.
        data: the name of the data set that the licence is about, so that other images are not
            published under it; None: whatever the recipe is used for.
        network: the teacher's shape.
        teacher: how the teacher is trained; None where it is released and imported.
        regression: how the generator starts, for 'sid-distill regress'; None where it starts from
            the teacher's weights.
        method: the name of the one further section, that of the method of distillation.
        method_entries: what stands in it, not checked yet: `distill.methods.registry`.
    """

    description: str
    features: str | None = None
    licence: str | None = Field(default=None, pattern=r"\S")
    data: str | None = None
    network: AnyNetwork
    teacher: TeacherConfig | None = None
    regression: RegressionConfig | None = None
    method: str
    method_entries: dict[str, Any]

    def licence_for(self, data: str) -> str | None:
        """The licence of a network that is trained with this recipe on the data set `data`."""
        return self.licence if self.data in (None, data) else None


RECIPE_SECTIONS: dict[str, type[BaseModel]] = {
    "teacher": TeacherConfig,
    "regression": RegressionConfig,
}
RECIPE_ENTRIES = ("description", "features", "licence", "data", "network", *RECIPE_SECTIONS)


def load_recipe(name: str) -> Recipe:
    """Read a recipe by the name of a shipped one ("fashion") or the path of a .toml file.

    Raises:
        UserError: there is none, or an entry is unknown, missing or out of range (what stands in
            the method's section is not looked at).
    """
    path = Path(name) if name.lower().endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in RECIPES.glob("*.toml")))
        raise UserError(f"no recipe {name!r}: name a .toml file or one of: {shipped}")
    try:
        content = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    _put_todays_precisions(content)
    if isinstance(content.get("network"), dict):
        try:
            family = family_of(content["network"])
        except ValueError as error:
            raise UserError(f"{path}: network: {error}") from None
        _refuse_unknown(str(path), "network", family, content["network"])
    for section, kind in RECIPE_SECTIONS.items():
        if isinstance(content.get(section), dict):
            _refuse_unknown(str(path), section, kind, content[section])
    method = _method_named(path, content)
    content |= {"method": method, "method_entries": content.pop(method)}
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error)}") from None


def _put_todays_precisions(content: dict[str, Any]) -> None:
    """Replace former words for a precision, in place, with one notice for each word."""
    sections = [s for s in content.values() if isinstance(s, dict) and "precision" in s]
    todays = {word: _noticed(word) for word in {str(s["precision"]) for s in sections}}
    for section in sections:
        section["precision"] = todays[str(section["precision"])]


def _method_named(path: Path, content: dict[str, Any]) -> str:
    """The name of the one section that is no other's; raise UserError unless it is one."""
    holds = (
        f"a recipe may hold {', '.join(RECIPE_ENTRIES)} and one section more, that of its method "
        "of distillation"
    )
    others = {name: value for name, value in content.items() if name not in RECIPE_ENTRIES}
    for name, value in others.items():
        if not isinstance(value, dict):
            raise UserError(f"{path}: unknown entry {name}: {holds}")
    if not others:
        raise UserError(f"{path} has no section of a method of distillation: add one, say [sid]")
    if len(others) > 1:
        raise UserError(f"{path}: sections {', '.join(f'[{name}]' for name in others)}: {holds}")
    return next(iter(others))


def checked_section(
    recipe: str, name: str, kind: type[Section], entries: Mapping[str, Any]
) -> Section:
    """Check what stands in the section `name` of a recipe, by its own name or path.

    Raises:
        UserError: an entry is unknown, missing or out of range.
    """
    _refuse_unknown(recipe, name, kind, entries)
    # A recipe of this section alone, so that pydantic says where in the file an error is.
    whole = create_model("Recipe", **{name: (kind, ...)})  # type: ignore[call-overload]
    try:
        section: Section = getattr(whole.model_validate({name: entries}), name)
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


def override(section: Section, **changes: Any) -> Section:
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


def current_precision(word: Any) -> Any:
    """Today's word for a precision that a recipe or an older run names; others as they are."""
    return _FORMER_WORDS.get(word, word) if isinstance(word, str) else word


def _noticed(word: Any) -> Any:
    """Today's word for what somebody typed, with a notice where that is another one."""
    today = current_precision(word)
    if today != word and os.environ.get("RANK", "0") == "0":  # of several processes, once
        print(f"precision {word} is now called {today}: write that", file=sys.stderr)
    return today
