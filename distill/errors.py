"""The one exception that a user's mistake raises."""


class UserError(Exception):
    """What was wrong, what was expected and what to do, in one line for a person to read."""
