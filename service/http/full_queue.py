"""Refusing at the door: a request whose images would find the queue full goes no further.

Under a flood most requests end as 429. On the usual way each is given a trace and a log line, is
parsed and validated before anybody looks at the queue, which costs far more than the answer: time
that the images of the others need (docs/results/serving.md).
"""

import re
from collections.abc import Mapping
from time import monotonic
from typing import Protocol

import structlog
from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.cors import answer_headers
from service.http.middleware import new_request_id, sent_key, sent_request_id
from service.http.problems import problem
from service.http.security import Keys, priority_for
from service.observability.metrics import Metrics
from service.priority import Priority
from service.serving.exceptions import QueueFullError
from service.serving.served_model import ServedModel

log = structlog.get_logger(__name__)

_PATH = "/generate"
_QUIET_SECONDS = 1.0  # between two log lines
# A model's name, or its tag, of which the name is the first part.
_IN_BODY = re.compile(rb'"model"\s*:\s*"([^":]*)')
_IN_QUERY = re.compile(rb"(?:^|&)model=([A-Za-z0-9_.-]*)")


class Models(Protocol):
    """What is served: `service.serving.catalogue.Catalogue`."""

    models: Mapping[str, ServedModel]
    default: str | None


class FullQueue:
    """ASGI: answers 429 to requests for images while the queue has no room for a single one.

    And none that a lower priority could make.

    Only where nothing but the queue decides. Whoever brings no known key, where keys are asked for,
    or asks whether a copy is still right, goes the usual way, and so does a request of which it is
    not plain at a glance which model is meant. An answer here has the body, headers and counts of
    one on the usual way, but no trace, and one log line a second stands for all.

    Args:
        app: the usual way.
        catalogue: what is served.
        keys: the known keys; None: no key is asked for.
        allowed_origins: whose pages may read the answers (`cors.origins`).
        metrics: where the requests are counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        catalogue: Models,
        keys: Keys | None,
        allowed_origins: frozenset[str],
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._catalogue = catalogue
        self._keys = keys
        self._allowed_origins = allowed_origins
        self._metrics = metrics
        self._timer = metrics.request_seconds.labels(_PATH)
        self._counters: dict[str, Counter] = {}  # by model
        self._answers: dict[int, tuple[list[tuple[bytes, bytes]], bytes]] = {}  # by Retry-After
        self._unlogged = 0
        self._quiet_until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if (
            scope.get("path") != _PATH
            # What has room for the lowest priority has room for all.
            or all(
                model.full_for(Priority.BACKGROUND) is None
                for model in self._catalogue.models.values()
            )
            or (priority := self._priority(scope)) is None
        ):
            await self._app(scope, receive, send)
            return
        first: Message | None = None
        if scope["method"] == "POST":
            first = await receive()
            name = _named_in_body(first)
        else:
            name = _named(_IN_QUERY.findall(scope["query_string"]))
        model = self._meant(name)
        if model is None or (seconds := model.full_for(priority)) is None:
            await self._app(scope, receive if first is None else _replay(first, receive), send)
            return
        refusal = QueueFullError(seconds)
        headers, body = self._answer(refusal)
        request_id = sent_request_id(scope) or new_request_id()
        further = [(b"x-request-id", request_id.encode("ascii"))]
        if priority is not Priority.INTERACTIVE:
            further.append((b"x-priority", str(priority).encode("ascii")))
        if self._allowed_origins:
            origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
            granted = answer_headers(self._allowed_origins, origin)
            further += [(name.lower().encode(), text.encode()) for name, text in granted.items()]
        start: Message = {
            "type": "http.response.start", "status": refusal.status, "headers": [*headers, *further]
        }  # fmt: skip
        await send(start)
        await send({"type": "http.response.body", "body": body})
        self._count(model, refusal, priority)

    def _priority(self, scope: Scope) -> Priority | None:
        """That of a request for which only the queue decides; None for any other."""
        ceiling = Priority.INTERACTIVE
        headers = dict(reversed(scope["headers"]))  # of one that is sent twice, the first counts
        if self._keys is not None:
            key = sent_key(scope)
            if key is None or (known := self._keys.find(key)) is None:
                return None
            ceiling = known.ceiling
        if scope["method"] == "GET":
            if b"if-none-match" in headers:
                return None
        elif scope["method"] != "POST":
            return None
        sent = headers.get(b"x-priority")
        return priority_for(None if sent is None else sent.decode("latin-1"), ceiling)

    def _meant(self, name: str | None) -> ServedModel | None:
        """The model of that name, or the default for ""; None: not known here."""
        if name is None:
            return None
        models, name = self._catalogue.models, name or self._catalogue.default or ""
        return models.get(name)

    def _answer(self, refusal: QueueFullError) -> tuple[list[tuple[bytes, bytes]], bytes]:
        seconds = refusal.retry_seconds
        if (answer := self._answers.get(seconds)) is None:
            response = problem(refusal)
            answer = self._answers[seconds] = (response.raw_headers, bytes(response.body))
        return answer

    def _count(self, model: ServedModel, refusal: QueueFullError, priority: Priority) -> None:
        model.metrics.reject(refusal, priority)
        if (counter := self._counters.get(model.name)) is None:
            counter = self._metrics.requests.labels(_PATH, model.name, str(refusal.status))
            self._counters[model.name] = counter
        counter.inc()
        self._timer.observe(0.0)  # it took no time that a histogram could show
        self._unlogged += 1
        if (now := monotonic()) >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            log.warning(
                "queue full: requests were refused", model=model.name, requests=self._unlogged
            )
            self._unlogged = 0


def _named_in_body(message: Message) -> str | None:
    """The model that the first part of a body names, "" for none; None: that is not plain."""
    body: bytes = message.get("body", b"")
    if message["type"] != "http.request" or message.get("more_body") or b"\\" in body:
        return None
    if (mentions := body.count(b'"model"')) > 1:
        return None
    names = _IN_BODY.findall(body)
    return _named(names) if len(names) == mentions else None


def _named(names: list[bytes]) -> str | None:
    if len(names) > 1:
        return None
    return names[0].decode("utf-8", "replace") if names else ""


def _replay(first: Message, receive: Receive) -> Receive:
    """A `receive` that begins with a message that was received already."""
    unread = True

    async def replay() -> Message:
        nonlocal unread
        if unread:
            unread = False
            return first
        return await receive()

    return replay
