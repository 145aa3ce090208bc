"""What the command says when it cannot go on, and when to ask again."""


class BulkError(Exception):
    """What was asked for cannot be drawn or written; the message is one line for people."""


class PostponedError(Exception):
    """Not now: nothing is wrong with what was asked for.

    Args:
        seconds: how long to ask for nothing.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"postponed by {seconds:g} s")
        self.seconds = seconds
