"""What a client raises. Every message is one sentence for a person."""

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """A request that brought no image; its subclasses say whether a server answered it."""


class AnswerError(ClientError):
    """The server answered, and not with what was asked for.

    Attributes:
        status: HTTP status.
        kind: last part of the problem's type, such as `queue-full`; empty if what answered does
            not speak as SiD Serve does (a proxy, another server).
        detail: what was wrong; the exception's message.
        members: the whole problem: some kinds say more, such as `most` images per request.
        retry_after: seconds after which the server says it is worth another try; None: unsaid.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        members: Mapping[str, Any],
        retry_after: float | None,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.members, self.retry_after = dict(members), retry_after


class UnreachableError(ClientError):
    """No answer came.

    Attributes:
        again: whether the same request is worth another try: the connection failed, which a
            server that restarts mends. Not after the time for an answer ran out.
    """

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again
