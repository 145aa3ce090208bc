"""What pydantic finds wrong, as one line for a person: of manifests, recipes and settings alike."""

import json
from typing import Any, NamedTuple

from pydantic import ValidationError

_SHOWN = 64  # characters of a value; a name of an input is no longer


class FirstError(NamedTuple):
    """The first of the errors; as text "place: message".

    Attributes:
        place: names and indices with dots between them; empty for what concerns the whole.
        message: what was expected.
        value: what stood there.
    """

    place: str
    message: str
    value: Any

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


def first_error(error: ValidationError) -> FirstError:
    """Take the first error out of what pydantic raised."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")  # pydantic's, before our own words
    return FirstError(".".join(map(str, first["loc"])), message, first["input"])


def shown(value: object) -> str:
    """A value that is refused, as a message quotes it: at most so long that it stays one line."""
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def shown_as_json(value: object) -> str:
    """The same in JSON, so that "3" and 3 differ in the message, and null is not called None."""
    return shown(json.dumps(value, ensure_ascii=False, default=str))
