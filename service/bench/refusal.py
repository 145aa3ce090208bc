"""A load that gets nothing but refusals: when that is plain, and what the server said."""

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from service.bench.target import BenchError

_ENOUGH: Final = 10  # answers, all of them refusals, after which no better one is waited for
_LATER: Final = (429, 503)  # may pass: there is no room now, or no engine
_LONGEST = 300  # characters of what another server says


class AllRefusedError(BenchError):
    """The server answered, and refused every request; the message has one of its answers."""


def is_hopeless(statuses: Sequence[int]) -> bool:
    """Whether a load may end early, by the statuses of all its answers so far.

    True once, when the last of the first ten has come. The requests of a load differ in their
    seeds, so what is wrong with ten of them (a key, a class, the path) is wrong with all.
    """
    return len(statuses) == _ENOUGH and all(
        status >= 300 and status not in _LATER for status in statuses
    )


def all_refused(url: str, answers: int, status: int, body: bytes) -> AllRefusedError:
    """The error that shows one of them, its status and its body's own words."""
    words = " ".join(_words(body).split())
    shown = "".join(letter if letter.isprintable() else "?" for letter in words)[:_LONGEST]
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
    answer = f"{status} {phrase}".rstrip() + (f": {shown}" if shown else "")
    return AllRefusedError(f"{url} refused every request; the first of {answers} answers: {answer}")


def _words(body: bytes) -> str:
    """The sentence of a problem (RFC 9457), or whatever the body holds."""
    text = body.decode("utf-8", "replace")
    try:
        return str(json.loads(text)["detail"])
    except (ValueError, KeyError, TypeError):
        return text
