"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """What was wrong, what was expected and what to do, in one line for a person to read."""


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
