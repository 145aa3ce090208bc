"""What happened to each request, noted at the least cost and judged afterwards."""

from array import array
from collections.abc import Iterator


class Samples:
    """Every request of one load, the warm-up included. All times are `perf_counter` seconds.

    Attributes:
        due, sent, done, status, timing: of each answered request, when it should have been
            sent, when it was, when its answer ended, its HTTP status and its Server-Timing.
        errors: of each request without an answer, when it was due and what became of it.
        late: when each request was due that was still unanswered at the end.
        not_sent: when each request was due that found no free connection.
        refusal: status and body of the first answer that was none of 2xx.
    """

    def __init__(self) -> None:
        self.due = array("d")
        self.sent = array("d")
        self.done = array("d")
        self.status = array("H")
        self.timing: list[bytes | None] = []
        self.errors: list[tuple[float, str]] = []
        self.late = array("d")
        self.not_sent = array("d")
        self.refusal: tuple[int, bytes] | None = None

    def answered(
        self, due: float, sent: float, done: float, status: int, timing: bytes | None
    ) -> None:
        """Note an answer that has arrived whole."""
        self.due.append(due)
        self.sent.append(sent)
        self.done.append(done)
        self.status.append(status)
        self.timing.append(timing)

    def failed(self, due: float, kind: str) -> None:
        """Note that a request ended without an answer."""
        self.errors.append((due, kind))

    def answers(self) -> Iterator[tuple[float, float, float, int, bytes | None]]:
        """Each answer as it was noted."""
        return zip(self.due, self.sent, self.done, self.status, self.timing, strict=True)

    def __len__(self) -> int:
        return len(self.due) + len(self.errors) + len(self.late)
