"""Whether and when a request is tried again: pure, but for the clock and the dice.

Drawing is a pure function of class and seed, so that a second try is always safe.
"""

import random
from time import monotonic
from typing import Final

from .errors import AnswerError, ClientError, UnreachableError

_AGAIN: Final = (429, 503)
_SHORTEST, _LONGEST = 0.1, 5.0  # seconds between tries where the server names none
_JITTER = 0.25  # of the pause, on top of it, so that clients do not come back together


def pause(error: ClientError, tries: int) -> float | None:
    """Seconds to wait after a failure: never less than the server asked for. None: give up.

    Args:
        error: how the latest try failed.
        tries: how many failed before it.
    """
    seconds = min(_LONGEST, _SHORTEST * 2.0 ** min(tries, 10))
    if isinstance(error, AnswerError):
        if error.status not in _AGAIN:
            return None
        if error.retry_after is not None:
            seconds = error.retry_after
    elif not (isinstance(error, UnreachableError) and error.again):
        return None
    return seconds * (1 + random.uniform(0, _JITTER))


class Attempts:
    """The tries of one request, which begin now.

    Args:
        patience: seconds after which no further try begins.
    """

    def __init__(self, patience: float) -> None:
        self._until = monotonic() + patience
        self._tries = 0

    def pause_after(self, error: ClientError) -> float:
        """Seconds to wait before the next try; raises `error` if there is to be none."""
        seconds = pause(error, self._tries)
        if seconds is None or monotonic() + seconds > self._until:
            raise error
        self._tries += 1
        return seconds
