"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """What was wrong, what was expected and what to do, in one line for a person to read."""


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def how_to_install(extra: str) -> str:
    """What to do where an extra of pyproject.toml is missing, for the package is on no index."""
    return f"`.venv/bin/pip install -e '.[{extra}]'` in the checkout"
