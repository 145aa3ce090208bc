"""The answer to requests for images while the queue is full: 429, made of as little as can be.

Under a flood most requests end so. On the usual way each is given a trace and a log line, is
parsed and validated before anybody looks at the queue, which costs far more than the answer: time
that the images of the others need (docs/results/serving.md). `door.py` asks here first.
"""

import asyncio
import math
import re
from time import monotonic

import structlog
from prometheus_client import Counter

from service.http.cors import answer_headers
from service.http.middleware import Fields, new_request_id, sent_key, sent_request_id
from service.http.problems import problem
from service.http.security import Keys, priority_for
from service.observability.metrics import Metrics
from service.priority import Priority
from service.serving.catalogue import Catalogue
from service.serving.exceptions import QueueFullError
from service.serving.served_model import ServedModel

log = structlog.get_logger(__name__)

PATH = b"/generate"
_QUIET_SECONDS = 1.0  # between two log lines
# A model's name, or its tag, of which the name is the first part.
_IN_BODY = re.compile(rb'"model"\s*:\s*"([^":]*)')
_IN_QUERY = re.compile(rb"(?:^|&)model=([A-Za-z0-9_.-]*)")


class FullQueue:
    """Answers 429 to requests for images while the queue has no room for a single one.

    And none that a lower priority could make.

    Only where nothing but the queue decides. Whoever brings no known key, where keys are asked for,
    or asks whether a copy is still right, goes the usual way, and so does a request of which it is
    not plain at a glance which model is meant. An answer here has the body and headers of one on
    the usual way, and is counted as one, but it has no trace and no time that a histogram could
    show, and one log line a second stands for all.

    Args:
        catalogue: what is served.
        keys: the known keys; None: no key is asked for.
        allowed_origins: whose pages may read the answers (`cors.origins`).
        metrics: where the requests are counted.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        keys: Keys | None,
        allowed_origins: frozenset[str],
        metrics: Metrics,
    ) -> None:
        self._catalogue = catalogue
        self._keys = keys
        self._allowed_origins = allowed_origins
        self._metrics = metrics
        self._counters: dict[str, Counter] = {}  # by model
        self._answers: dict[int, tuple[QueueFullError, bytes, bytes]] = {}  # by Retry-After
        self._let_in = 0
        self._unlogged = 0
        self._quiet_until = 0.0

    def may_refuse(self) -> bool:
        """Whether there is a request for an image that would be refused now.

        If not, the request for which that was asked has to be begun with.
        """
        for model in self._catalogue.models.values():
            # What has room for the lowest priority has room for all.
            if model.full_for(Priority.BACKGROUND, self._let_in) is not None:
                return True
        self._count_in()
        return False

    def refusal(self, method: bytes, query: bytes, headers: Fields, body: bytes) -> bytes | None:
        """Refuse a request for images if nothing but the queue decides about it.

        Args:
            method: of a request for PATH.
            query: what follows the question mark in its target.
            headers: their names in lower case.
            body: all of it.

        Returns:
            The rest of an answer of status 429, behind the headers that are the server's own. It
            has to be sent, for it is counted here. None: the request goes the usual way.
        """
        if (priority := self._priority(method, headers)) is None:
            return None  # refused elsewhere, or needs no image
        posted = method == b"POST"
        model = self._meant(_named_in_body(body) if posted else _named(_IN_QUERY.findall(query)))
        if model is None or (seconds := model.full_for(priority, self._let_in)) is None:
            self._count_in()
            return None
        refusal, head, content = self._answer(seconds)
        self._count(model, refusal, priority)
        further = b""
        if priority is not Priority.INTERACTIVE:
            further = b"x-priority: %b\r\n" % str(priority).encode("ascii")
        if self._allowed_origins:
            origin = dict(headers).get(b"origin", b"").decode("latin-1")
            for field in answer_headers(self._allowed_origins, origin).items():
                further += "{}: {}\r\n".format(*field).encode("latin-1")
        request_id = sent_request_id(headers) or new_request_id()
        return b"%bx-request-id: %b\r\n%b\r\n%b" % (
            head, request_id.encode("ascii"), further, content,
        )  # fmt: skip

    def _count_in(self) -> None:
        """Count a request that is begun with, until it had its turn to queue an image.

        Of many that come at once, the application begins with the first when the last was read.
        """
        if not self._let_in:
            asyncio.get_running_loop().call_soon(self._all_are_in)
        self._let_in += 1

    def _all_are_in(self) -> None:
        self._let_in = 0

    def _priority(self, method: bytes, headers: Fields) -> Priority | None:
        """That of a request for which only the queue decides; None for any other."""
        sent = dict(reversed(headers))  # of one that is sent twice, the first counts
        if method != b"POST" and (method != b"GET" or b"if-none-match" in sent):
            return None
        ceiling = Priority.INTERACTIVE
        if self._keys is not None:
            key = sent_key(headers)
            if key is None or (known := self._keys.find(key)) is None:
                return None
            ceiling = known.ceiling
        named = sent.get(b"x-priority")
        return priority_for(None if named is None else named.decode("latin-1"), ceiling)

    def _meant(self, name: str | None) -> ServedModel | None:
        """The model of that name, or the default for ""; None: not known here."""
        if name is None:
            return None
        models, name = self._catalogue.models, name or self._catalogue.default or ""
        return models.get(name)

    def _answer(self, retry_after: float) -> tuple[QueueFullError, bytes, bytes]:
        """The refusal, the headers that all such answers have, and the body."""
        whole = math.ceil(retry_after)  # the header has no finer ones
        if (answer := self._answers.get(whole)) is None:
            refusal = QueueFullError(whole)
            response = problem(refusal)
            head = b"".join(b"%b: %b\r\n" % field for field in response.raw_headers)
            answer = self._answers[whole] = (refusal, head, bytes(response.body))
        return answer

    def _count(self, model: ServedModel, refusal: QueueFullError, priority: Priority) -> None:
        model.metrics.reject(refusal, priority)
        if (counter := self._counters.get(model.name)) is None:
            path, status = PATH.decode("ascii"), str(refusal.status)
            counter = self._metrics.requests.labels(path, model.name, status)
            self._counters[model.name] = counter
        counter.inc()
        self._unlogged += 1
        if (now := monotonic()) >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            log.warning(
                "queue full: requests were refused", model=model.name, requests=self._unlogged
            )
            self._unlogged = 0


def _named_in_body(body: bytes) -> str | None:
    """The model that a body names, "" for none; None: that is not plain."""
    if b"\\" in body or (mentions := body.count(b'"model"')) > 1:
        return None
    names = _IN_BODY.findall(body)
    return _named(names) if len(names) == mentions else None


def _named(names: list[bytes]) -> str | None:
    if len(names) > 1:
        return None
    return names[0].decode("utf-8", "replace") if names else ""
