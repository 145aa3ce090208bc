"""Why images that were asked for are not drawn: one exception for each reason."""

from service.engines import EngineError
from service.exceptions import RefusedError


class QueueFullError(RefusedError):
    """No room; `retry_after` seconds from now what waits will have been computed."""

    status, kind, reason = 429, "queue-full", "queue_full"

    def __init__(self, retry_after: float) -> None:
        super().__init__("too many requests wait for this model; try again later")
        self.retry_after = retry_after


class EngineFullError(QueueFullError):
    """No room in the engine's own queue (Triton's); for a client the same as in ours."""

    reason = "engine_busy"


class DeadlineError(RefusedError):
    """Not computed by the deadline, or refused at once because it could not have been."""

    status, kind, reason = 504, "deadline", "deadline"


class ClosedError(RefusedError):
    """The server takes no more work, or was closed before it computed this."""

    status, kind, reason = 503, "draining", "draining"
    public = "the server is shutting down; try another, or again later"


class EngineDownError(RefusedError, EngineError):
    """The engine is down and being restarted; nothing was computed."""

    status, kind, reason = 503, "engine-down", "engine_down"
    public = "the model's engine is down; try again later"


class ComputeError(RefusedError):
    """The computation of an item's batch failed; the reason is chained as __cause__."""

    status, kind = 503, "engine-failed"
    public = "the engine failed to draw the image; try again later"
