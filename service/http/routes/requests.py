"""What a request for images may say: as JSON, and as a query."""

import re
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from service.bundle import SEED_MAX
from service.http.problems import UNKNOWN_FIELD

_EXACT = 2**53  # above it a float may not be the number that was written
_INPUT = "input."  # before the name of a label in a query


def _whole(value: object) -> object:
    """Take 7.0 for 7, as JSON Schema and the languages without integers do."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    return value


def _digits(value: object) -> object:
    """Take digits only: 7, and not what Python also reads as 7, each another URL to cache."""
    if isinstance(value, str) and not re.fullmatch(r"-?[0-9]{1,20}", value, re.ASCII):
        raise ValueError("must be a whole number in digits")
    return value


def _decimal(value: object) -> object:
    """Take a plain decimal number from 0 to 1, for the same reason; ten digits are plenty."""
    if isinstance(value, str) and not re.fullmatch(r"0|1|[01]\.[0-9]{1,10}", value, re.ASCII):
        raise ValueError("must be a number from 0 to 1 with at most ten decimals, such as 0.25")
    return value


def _label(value: object) -> object:
    """Take digits only, as `_digits`; what else there may be of an input needs a body."""
    if isinstance(value, list):
        raise PydanticCustomError("label", "an input is named once, and here it is named twice")
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,9}", value, re.ASCII):
        raise PydanticCustomError(
            "label", "GET takes labels only, in digits (input.NAME=3); POST takes vectors too"
        )
    return value


Digits = Annotated[int, BeforeValidator(_digits)]
Decimal = Annotated[float, BeforeValidator(_decimal)]
WholeNumber = Annotated[StrictInt, BeforeValidator(_whole)]
Label = Annotated[int, BeforeValidator(_label)]
# Described here, checked by the domain, whose message says what the model takes.
InputValue = Annotated[
    Any,
    WithJsonSchema(
        {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "number"}}]}
    ),
]


class GenerateRequest(BaseModel):
    """What to draw. Everything may be left out; the answer reports what was chosen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: StrictStr | None = Field(
        default=None,
        description="Which model. Left out: the default, which GET /models tells. "
        "`name:version:digest:graph`, as X-Model reports it, means this very graph of these very "
        "weights or none; `name:version:digest` these weights, by whichever graph is served.",
    )
    class_label: WholeNumber | StrictStr | None = Field(
        default=None,
        description="Class index, or class name in any case; a whole number, also in quotes, is "
        "an index if there is one, else a name. Left out: each image's seed modulo the number of "
        "classes.",
        examples=["Dress", 3],
    )
    seed: WholeNumber | None = Field(
        default=None,
        description="The same model, class and seed give the same bytes. Seeds that are equal "
        "modulo 2^32 give the same noise. Left out: a random seed.",
        # Described here, checked by the domain, whose message says the range.
        json_schema_extra={"minimum": 0, "maximum": SEED_MAX},
        examples=[7],
    )
    n: WholeNumber = Field(
        default=1, ge=1, description="How many images; image i has the seed `seed` + i."
    )
    toward: WholeNumber | None = Field(
        default=None,
        description="A second seed: the image lies on the way from `seed`'s to this one's, "
        "`mix` of the arc between their noise. Image i goes from `seed` + i to `toward` + i; a "
        "class left out is that of `seed`.",
        json_schema_extra={"minimum": 0, "maximum": SEED_MAX},
        examples=[8],
    )
    mix: StrictFloat | None = Field(
        default=None,
        ge=0,
        le=1,
        description="How far to go `toward` the second seed: 0 is the first seed's image, 1 the "
        "second's. Left out: 0.5.",
        examples=[0.25],
    )
    inputs: dict[str, InputValue] | None = Field(
        default=None,
        description="What else the model takes, by name, as `inputs` of GET /models/{name} lists "
        "it: of a `label` a whole number, of a `vector` a list of numbers. One that is left out "
        "has its default. Most models take nothing else.",
        examples=[{}],
    )


class GenerateQuery(BaseModel):
    """What to draw, as a query; the seed is required, so that the answer is a pure function.

    Labels of the model's `inputs` are parameters of their own, `input.style=3`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Label]

    model: str | None = Field(default=None, description="As in POST.")
    class_label: str | None = Field(default=None, description="Class index or name, as in POST.")
    seed: Digits = Field(
        description="As in POST.", json_schema_extra={"minimum": 0, "maximum": SEED_MAX}
    )
    n: Digits = Field(default=1, ge=1, description="As in POST.")
    toward: Digits | None = Field(
        default=None,
        description="As in POST.",
        json_schema_extra={"minimum": 0, "maximum": SEED_MAX},
    )
    mix: Decimal | None = Field(default=None, ge=0, le=1, description="As in POST.")

    @model_validator(mode="before")
    @classmethod
    def _extra_names_inputs(cls, query: Any) -> Any:
        """Refuse parameters that are neither a field nor `input.NAME`."""
        names = query if isinstance(query, dict) else ()
        unknown = [x for x in names if x not in cls.model_fields and not x.startswith(_INPUT)]
        if unknown:
            known = {"known": [*cls.model_fields, f"{_INPUT}NAME"]}
            error = PydanticCustomError(UNKNOWN_FIELD, "no such field", known)
            errors = [
                InitErrorDetails(type=error, loc=(name,), input=query[name]) for name in unknown
            ]
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return query

    @property
    def inputs(self) -> dict[str, int]:
        """The labels that `input.NAME` names. No field: OpenAPI has no word for such a name."""
        named = self.__pydantic_extra__ or {}
        return {name.removeprefix(_INPUT): value for name, value in named.items()}
