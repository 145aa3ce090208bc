"""Which requests go before which where not all can be served at once."""

from enum import IntEnum


class Priority(IntEnum):
    """Who goes first: the smaller number. Called a priority, for a class is what is drawn."""

    INTERACTIVE = 0
    BULK = 1
    BACKGROUND = 2

    def __str__(self) -> str:
        return self.name.lower()


PRIORITIES = {str(priority): priority for priority in Priority}
"""By the names that headers, files of keys, metrics and logs have for them, the first one first."""
PRIORITY_NAMES = "interactive, bulk or background"
"""The same for a sentence that says what was expected."""
