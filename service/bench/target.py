"""Where the load goes, and the bytes of its requests."""

import json
from collections.abc import Sequence
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8000"
SEED_MARK = "{seed}"


class BenchError(Exception):
    """A load that cannot be made: a bad option or a server out of reach; the message says why."""


def generate_body(
    model: str | None = None, class_label: str | None = None, images: int | None = None
) -> str:
    """The JSON body of `POST /generate`, its seed left open; what is None is left out."""
    given = {"model": model, "class_label": class_label, "n": images}
    fields = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in given.items() if v is not None]
    return "{" + ", ".join([*fields, f'"seed": {SEED_MARK}']) + "}"


class Target:
    """One server and what is asked of it: every `request()` has the next seed.

    Share one target between loads and no two of their requests are equal.

    Args:
        url: http://host:port, and a path that goes before `path` if the server has one.
        path: where requests are posted to.
        body: JSON text; None asks for the server's default model and a random class.
        headers: more lines of the form `Name: value`; Host and Content-Type replace ours.
        images: how many images one good answer holds.
        seed: the first seed. It replaces {seed} wherever that stands in path, body and headers.

    Raises:
        BenchError: the URL, a header or the body cannot be sent.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        path: str = "/generate",
        body: str | None = None,
        headers: Sequence[str] = (),
        images: int = 1,
        seed: int = 0,
    ) -> None:
        self.host, self.port, authority, prefix = _split(url)
        self.url = f"http://{authority}{prefix}{path}"
        self.body = generate_body() if body is None else body
        self.images = images
        _check_json(self.body)
        self._body = self.body.encode()
        self._head = _head(authority, prefix + path, headers)
        self._seed = seed
        self._digits = 0
        self._pieces: list[bytes] = []

    def request(self) -> bytes:
        """The next request, ready to be written."""
        digits = b"%d" % self._seed
        self._seed += 1
        if len(digits) != self._digits:
            self._prepare(len(digits))
        return digits.join(self._pieces)

    def _prepare(self, digits: int) -> None:
        """Cut the request at its marks: all that changes from one to the next is the seed."""
        mark = SEED_MARK.encode()
        length = len(self._body.replace(mark, digits * b"0"))
        request = self._head + b"Content-Length: %d\r\n\r\n" % length + self._body
        self._pieces = request.split(mark)
        self._digits = digits


def _split(url: str) -> tuple[str, int, str, str]:
    """Host, port, Host header and path prefix of a base URL."""
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        raise BenchError(f"{url}: {error}") from error
    if parts.scheme != "http" or not parts.hostname or not parts.netloc.isascii():
        raise BenchError(f"{url}: not of the form http://host:port (TLS is not spoken here)")
    if parts.query or parts.fragment or parts.username is not None:
        raise BenchError(f"{url}: only host, port and path belong here; see --path and --header")
    return parts.hostname, port, parts.netloc, parts.path.rstrip("/")


def _head(authority: str, path: str, headers: Sequence[str]) -> bytes:
    """Request line and headers, all but the length."""
    if not path.startswith("/") or not path.isprintable() or " " in path or not path.isascii():
        raise BenchError(f"{path!r}: a path begins with / and has no blanks")
    for line in headers:
        name, colon, _ = line.partition(":")
        named = colon and name and not set(name) & set(" \t")
        if not named or not line.isascii() or not line.isprintable():
            raise BenchError(f"{line!r}: a header has the form 'Name: value', in ASCII")
    given = {line.partition(":")[0].lower() for line in headers}
    ours = {"Host": authority, "Content-Type": "application/json"}
    lines = [f"{name}: {value}" for name, value in ours.items() if name.lower() not in given]
    request_line = f"POST {path} HTTP/1.1"
    return "".join(f"{line}\r\n" for line in (request_line, *lines, *headers)).encode("ascii")


def _check_json(body: str) -> None:
    try:
        json.loads(body.replace(SEED_MARK, "0"))
    except json.JSONDecodeError as error:
        raise BenchError(f"the body is not JSON: {error}: {body}") from error
