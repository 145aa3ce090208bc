"""How many requests to keep under way: enough that the server never idles, and no more.

A server that always finds the next batches in its queue is busy; whatever waits beyond that only
delays other clients. So the window grows by one while the images queue for no longer than two
batches take, and shrinks by one when they queue for longer. A 429 halves it.

What was sent before the last change tells nothing of the present size, so it changes nothing:
otherwise each of many answers would move it, always a round trip too late. Pure: times are given.
"""

_FIRST = 2
_LEAST = 2  # one is drawn while the other is on its way; only a 429 leaves fewer
_QUEUE_PER_ENGINE = 2.0


class Window:
    """The window of one bulk run; `size` is how many requests may be under way."""

    def __init__(self) -> None:
        self.size = _FIRST
        self._changed_at = float("-inf")

    def answered(self, sent: float, now: float, queue: float, engine: float) -> None:
        """A request was answered.

        Args:
            sent: when it was sent, in seconds on any clock.
            now: the same clock.
            queue: how long its slowest image waited for its batch.
            engine: how long its slowest batch was computed; in the same unit as `queue`.
        """
        if sent < self._changed_at:
            return
        if queue <= _QUEUE_PER_ENGINE * engine:
            self.size += 1
            self._changed_at = now
        elif self.size > _LEAST:
            self.size -= 1
            self._changed_at = now

    def refused(self, sent: float, now: float) -> None:
        """A request was refused by a 429; requests refused together halve the window once."""
        if sent < self._changed_at:
            return
        self.size = max(1, self.size // 2)
        self._changed_at = now
