"""Why pictures that were asked for are not drawn: one exception for each reason."""


class QueueFullError(Exception):
    """No room; `retry_after` seconds from now what waits will have been computed."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many requests wait for this model; try again later")
        self.retry_after = retry_after


class DeadlineError(Exception):
    """Not computed by the deadline, or refused at once because it could not have been."""


class ClosedError(Exception):
    """The batcher takes no more items, or was closed before it computed these."""


class ComputeError(Exception):
    """The computation of an item's batch failed; the reason is chained as __cause__."""
