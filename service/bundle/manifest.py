"""The schema of a bundle's manifest.json: what a model is, what it holds, how good it is.

The publisher of `distill` writes it, the gateway trusts nothing else about a model. This is format
2; manifests of format 1 are read too, and become the same object (`format1`).
"""

import re
import unicodedata
from collections.abc import Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from service.bundle import format1
from service.bundle.golden import Golden
from service.bundle.graphs import BASELINE, PLAN, Graph, Precision
from service.bundle.inputs import (
    IMAGES,
    ClassInput,
    ExtraInput,
    Input,
    InputError,
    NoiseInput,
    Value,
)
from service.bundle.schema import ManifestPart, field_paths
from service.bundle.seeds import SEED_CONTRACT
from service.bundle.validation import shown, shown_as_json
from service.exceptions import RefusedError

MANIFEST_NAME = "manifest.json"
_NAMES_SHOWN = 20
_NOT_PLAIN = set("\\\0")  # Windows' separator, and what no file name can hold

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ClassLabelError(RefusedError, ValueError):
    """A class label that the model does not have; the message says which it has."""

    status, kind = 422, "class-out-of-range"


class Quality(ManifestPart):
    """Measured quality of the generator, its teacher's beside it."""

    distance: str = Field(description="Full name of the distance; lower is better.")
    images: int = Field(ge=1, description="Generated images that were compared.")
    reference: str = Field(description="What they were compared with.")
    generator: float = Field(description="Distance of the generator.")
    teacher: float = Field(description="Distance of its teacher.")
    teacher_evaluations: int = Field(ge=1, description="Network evaluations of the teacher.")
    accuracy: float | None = Field(
        default=None, ge=0, le=1, description="Share of generated images classified as asked."
    )
    real_accuracy: float | None = Field(
        default=None, ge=0, le=1, description="The same classifier's accuracy on real images."
    )


class Manifest(ManifestPart):
    """One model: identity, inputs, classes, files with their digests, quality, golden images."""

    format: Literal[2] = Field(default=2, description="Version of this schema.")
    requires: list[str] = Field(
        default_factory=list,
        description="Fields that whoever reads this has to know, as paths (`golden.images.seed`), "
        "or it would serve something else. Other fields that it does not know it ignores.",
    )
    name: Name = Field(description="Name of the model and of its folder.")
    version: int = Field(ge=1, description="Version, and the sub-folder that holds the graph.")
    inputs: list[Input] = Field(
        description="What the graph takes: one noise, a class if there are classes, and labels and "
        "vectors that requests may name.",
    )
    images: Annotated[
        tuple[PositiveInt, PositiveInt, Literal[1, 3]],
        Field(
            strict=False, description="[H, W, C] of an image in pixels; C is 1, grey, or 3, RGB."
        ),
    ]
    classes: list[str] = Field(description="Class names by index; empty: unconditional.")
    sigma_init: float = Field(gt=0, description="The graph multiplies its latents by this.")
    steps: int = Field(
        default=1,
        ge=1,
        description="Network evaluations an image takes, one after the other in one call of the "
        "graph; left out: 1.",
    )
    seed_contract: Literal["philox4x32-cuda"] = SEED_CONTRACT
    files: dict[str, Sha256] = Field(description="Relative path -> SHA-256, in hexadecimal.")
    licence: str = Field(min_length=1, description="SPDX identifier or a sentence.")
    description: str
    training: dict[str, str | int | float] = Field(
        default_factory=dict, description="Facts: data, teacher, recipe, images seen, ..."
    )
    quality: Quality | None = None
    graphs: dict[str, Graph] = Field(
        default_factory=dict,
        description="File name in the version's folder -> its precision, and how far its images "
        "are from float32 torch's.",
    )
    golden: Golden | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_a_format_that_is_read(cls, fields: Any) -> Any:
        """Refuse what cannot be understood before the rest is looked at; lift format 1 to 2."""
        if not isinstance(fields, dict):
            return fields
        stated = fields.get("format", 2)
        # By its type too: to Python true and 1.0 are equal to 1, and neither is a format.
        if type(stated) is not int or stated not in (1, 2):
            raise PydanticCustomError(
                "format",
                "format {stated}: this release reads 1 and 2; take a later one",
                {"stated": shown_as_json(stated)},
            )
        required = fields.get("requires")
        known = set(field_paths(cls))
        unknown = (
            [path for path in required if not isinstance(path, str) or path not in known]
            if isinstance(required, list)
            else []
        )
        if unknown:
            raise PydanticCustomError(
                "requires",
                "it requires whoever reads it to understand {unknown}, and this release does not: "
                "take a later one",
                {"unknown": ", ".join(map(shown, unknown))},
            )
        return format1.to_format_2(fields) if stated == 1 else fields

    @field_validator("inputs")
    @classmethod
    def _of_one_image(cls, inputs: list[Input]) -> list[Input]:
        names = [one.name for one in inputs]
        if len(set(names)) < len(names):
            raise ValueError("two of them have the same name")
        if IMAGES in names:
            raise ValueError(f"none can be called {IMAGES}, which is the graph's output")
        if sum(isinstance(one, NoiseInput) for one in inputs) != 1:
            raise ValueError("exactly one of them has to be of the kind noise")
        if sum(isinstance(one, ClassInput) for one in inputs) > 1:
            raise ValueError("at most one of them can be of the kind class; others are labels")
        return inputs

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str]) -> list[str]:
        keys = [_key(name) for name in classes]
        if not all(keys):
            raise ValueError("a class name is empty")
        if len(set(keys)) < len(keys):
            raise ValueError("class names must differ, and by more than upper and lower case")
        return classes

    @field_validator("graphs", mode="before")
    @classmethod
    def _known(cls, graphs: Any) -> Any:
        """Leave out graphs in a precision that no engine here computes in.

        They are a later version's, or in int8, of which no model's images passed the gate. Their
        files are verified as all are, and the bundle's other graphs are served.
        """
        if not isinstance(graphs, dict):
            return graphs
        known = get_args(Precision)
        return {
            name: graph
            for name, graph in graphs.items()
            if not isinstance(graph, dict) or graph.get("precision", known[0]) in known
        }

    @field_validator("files")
    @classmethod
    def _inside_the_folder(cls, files: dict[str, str]) -> dict[str, str]:
        for path in files:
            pure = PurePosixPath(path)
            odd = pure.is_absolute() or ".." in pure.parts or str(pure) != path
            if odd or _NOT_PLAIN & set(path):
                raise ValueError(f"{path!r} is not a plain path relative to the bundle")
            if path == MANIFEST_NAME:
                raise ValueError("the manifest cannot hold its own digest")
        return files

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        graphs = {f"{self.version}/{BASELINE}", f"{self.version}/{PLAN}"}
        if not graphs & set(self.files):
            raise ValueError(f"files must hold {' or '.join(sorted(graphs))}")
        for name in self.graphs:
            if f"{self.version}/{name}" not in self.files:
                raise ValueError(
                    f"graphs speaks of {name}, but files holds no {self.version}/{name}"
                )
        takes_class = any(isinstance(one, ClassInput) for one in self.inputs)
        if takes_class and not self.classes:
            raise ValueError("inputs has one of the kind class, and classes is empty")
        if self.classes and not takes_class:
            raise ValueError("classes are named, and inputs has none of the kind class")
        for image in self.golden.images if self.golden else []:
            self.check_class(image.class_label)
        return self

    @model_serializer(mode="wrap")
    def _without_a_single_step(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A manifest that says nothing of steps has one, as all had before there were others.
        fields: dict[str, Any] = serialize(self)
        if self.steps == 1:
            fields.pop("steps", None)
        return fields

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one image's noise, (C, H, W) for most: that of the input, not the image."""
        return next(one.shape for one in self.inputs if isinstance(one, NoiseInput))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C), the shape of one image."""
        return self.images

    @property
    def signature(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Of each of the graph's inputs and its output the type and the shape of one image's."""
        inputs = {one.name: (one.dtype, one.shape) for one in self.inputs}
        return inputs | {IMAGES: ("uint8", self.images)}

    @cached_property
    def extra_inputs(self) -> dict[str, ExtraInput]:
        """The labels and vectors, which requests may name."""
        return {one.name: one for one in self.inputs if isinstance(one, ExtraInput)}

    def resolve_inputs(self, values: Mapping[str, object]) -> dict[str, Value]:
        """The value of each label and vector: the one of `values`, or the input's default.

        Raises:
            InputError: the model has no such input, or it does not take the value; the message
                says what there is.
        """
        extra = self.extra_inputs
        for name in values:
            if name not in extra:
                takes = "; ".join(f"{one.name}, {one.takes}" for one in extra.values())
                raise InputError(
                    f"{self.name} has no input {shown(name)!r} that a request can name: it has "
                    f"{takes or 'none'}"
                )
        return {
            name: one.check(values[name]) if name in values else one.default
            for name, one in extra.items()
        }

    @cached_property
    def _index(self) -> dict[str, int]:
        return {_key(name): index for index, name in enumerate(self.classes)}

    def class_name(self, index: int | None) -> str | None:
        """The name of a class index; None for None."""
        return None if index is None else self.classes[index]

    def resolve_class(self, label: int | str) -> int:
        """Return the class index of an index or a name.

        Whatever the way that a label came by (JSON, a query, a prompt, a command line), and
        whether it is a number or its digits, it means the same:

        1. a whole number as it is usually written (7, not 07) that is an index: that class;
        2. else a name, without regard to case, outer blanks and the spelling of accents;
        3. else digits of any form: an index.

        So an index is never misread, and answers, addresses and file names hold indices. Names of
        digits are for people; where they differ from their indices, see `misleading_names`.

        Raises:
            ClassLabelError: there is no such class; the message states range and names.
        """
        text = str(label).strip()
        number = int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else None
        if number is not None and text == str(number) and 0 <= number < len(self.classes):
            return number
        label_index = self._index.get(_key(text))
        if label_index is not None:
            return label_index
        if number is None and isinstance(label, str):
            raise ClassLabelError(f"no class is named {label!r}: {self._choices()}")
        index = label if number is None else number
        assert isinstance(index, int)
        self.check_class(index)
        return index

    def unmistakable(self, index: int) -> str | int:
        """A class's name, or its index where `resolve_class` takes the name for another class."""
        name = self.classes[index]
        return name if self.resolve_class(name) == index else index

    def misleading_names(self) -> dict[str, str]:
        """Class names that are other classes' indices: name -> the class that it is taken for."""
        taken = {name: self.classes[self.resolve_class(name)] for name in self.classes}
        return {name: other for name, other in taken.items() if name != other}

    def check_class(self, index: int | None) -> None:
        """Raise ClassLabelError unless `index` is a class (None when unconditional)."""
        if index is None and not self.classes:
            return
        if index is None or not 0 <= index < len(self.classes):
            raise ClassLabelError(f"class_label {index} is out of range: {self._choices()}")

    def _choices(self) -> str:
        if not self.classes:
            return f"{self.name} is unconditional, so leave the class out"
        names = ", ".join(self.classes[:_NAMES_SHOWN])
        more = ", ..." if len(self.classes) > _NAMES_SHOWN else ""
        return f"{self.name} has 0 to {len(self.classes) - 1} ({names}{more})"


def _key(name: str) -> str:
    """What two spellings of one class name share: macOS writes accents as letters of their own."""
    return unicodedata.normalize("NFC", name).strip().casefold()
