"""What all refusals of a request have in common: each is one class that says all about itself."""

import math
from collections.abc import Iterator, Mapping


class RefusedError(Exception):
    """A request does not get what it asked for.

    Each kind of refusal is a subclass, which stands where it is raised. HTTP's answers, the metric
    `sid_rejections` and the reference of errors are made from these attributes, so a further kind
    is a further class and nothing else.

    Attributes:
        status: HTTP status.
        kind: the last part of the problem's type, for programs.
        reason: as what `sid_rejections` counts it; "": it is no refusal for want of room, time,
            rate or an engine, and is not counted there.
        public: what the client is told in place of the message, which is for the log.
        param: the request's field that is to blame, where it is one.
        retry_after: seconds until it is worth to ask again; sent with 429 and 503.
        headers: additional headers of the answer.
        members: additional members of the problem's body.

    Args:
        message: a sentence for the person who sent the request.
        headers, members: see above.
    """

    status: int
    kind: str
    reason: str = ""
    public: str = ""
    param: str = ""
    retry_after: float = 1.0
    headers: Mapping[str, str] = {}
    members: Mapping[str, object] = {}

    def __init__(
        self, message: str = "", *, headers: Mapping[str, str] | None = None, **members: object
    ) -> None:
        super().__init__(message)
        if headers:
            self.headers = headers
        if members:
            self.members = members

    @property
    def retry_seconds(self) -> int:
        """`retry_after` as the header Retry-After has it: whole seconds, at least one."""
        return max(1, math.ceil(self.retry_after))


def refusals(base: type[RefusedError] = RefusedError) -> Iterator[type[RefusedError]]:
    """Every kind of refusal in the modules that are loaded."""
    for kind in base.__subclasses__():
        yield kind
        yield from refusals(kind)


def reasons() -> list[str]:
    """Every reason of a refusal that `sid_rejections` counts, sorted."""
    return sorted({kind.reason for kind in refusals() if kind.reason})
