"""API keys and what each may ask for: pure logic, no HTTP (service/http/middleware.py has that).

A key is 256 random bits, so the file holds its plain SHA-256: nobody can guess such a key, with
or without the hash. Slow hashes (bcrypt, argon2) protect passwords, which people choose and others
guess; here they would only make every request slow.
"""

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from time import monotonic_ns
from typing import Any, NamedTuple

from service.bundle.text import TextError, decode_text
from service.exceptions import RefusedError
from service.priority import PRIORITIES, Priority

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_SECOND = 1_000_000_000  # in nanoseconds


class KeysError(Exception):
    """A file of keys, or the name for a new one, that cannot be used; the message is one line."""


class RateLimitedError(RefusedError):
    """The key has used up its rate.

    Args:
        retry_after: seconds until the same request would be granted.
    """

    status, kind, reason = 429, "rate-limited", "rate_limited"

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"this key has used up its rate; try again in {math.ceil(retry_after)} s")
        self.retry_after = retry_after


class BurstError(RefusedError):
    """A request for more images than a bucket can ever hold; the message says how many."""

    status, kind, param = 413, "above-burst", "n"


class NewKey(NamedTuple):
    """A key that was just made: the secret, and the line of the file that lets it in."""

    secret: str
    line: str


class KnownKey(NamedTuple):
    """What is known of a key that is let in: whose it is, and the priority it has at most."""

    name: str
    ceiling: Priority


class Keys:
    """The keys that are let in, each known by its hash.

    Args:
        entries: each key by its SHA-256. Several keys may share a name, and with it a rate, so
            that a client can change its key without an interruption, or have one for each
            priority.
    """

    def __init__(self, entries: Mapping[bytes, KnownKey]) -> None:
        self._entries = dict(entries)

    def __len__(self) -> int:
        return len(self._entries)

    def replace(self, keys: "Keys") -> None:
        """From now on let in these keys and no others; a request that was let in goes on."""
        self._entries = keys._entries

    def find(self, key: bytes) -> KnownKey | None:
        """What is known of a key, or None for one that is not let in."""
        digest = hashlib.sha256(key).digest()
        matched = None
        # All of them and in constant time, so that the time taken says nothing about the file.
        for digest_of_key, known in self._entries.items():
            if hmac.compare_digest(digest, digest_of_key):
                matched = known
        return matched


def priority_for(sent: str | None, ceiling: Priority) -> Priority | None:
    """What a request has that sends this X-Priority, or none, with a key of this ceiling.

    Who asks for more than the key has is not refused, so that an operator may lower a key without
    breaking the programs that use it. None: there is no such priority.
    """
    if sent is None:
        return ceiling
    named = PRIORITIES.get(sent.strip().lower())
    return None if named is None else max(named, ceiling)


def new_key(name: str, ceiling: Priority = Priority.INTERACTIVE) -> NewKey:
    """Make a key for `name`; raises KeysError for a name that the file cannot hold.

    Args:
        name: whose it is.
        ceiling: the priority that its requests have at most.
    """
    if not _NAME.fullmatch(name):
        raise KeysError(f"{name!r}: a name is 1 to 64 letters, digits, dots, hyphens, underscores")
    secret = secrets.token_urlsafe(32)
    line = f"{name}:{hashlib.sha256(secret.encode('ascii')).hexdigest()}"
    return NewKey(secret, line if ceiling is Priority.INTERACTIVE else f"{line}:{ceiling}")


def load_keys(path: Path) -> Keys:
    """Read a file of keys: `name:sha256`, or `name:sha256:priority` for one that has a ceiling.

    Blank lines and `# comments` are skipped.

    Raises:
        KeysError: the file cannot be read, holds no key, or a line is wrong, which it names.
    """
    try:
        lines = decode_text(path.read_bytes()).splitlines()
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from error
    except TextError as error:
        raise KeysError(f"{path}: {error}") from error
    entries: dict[bytes, KnownKey] = {}
    for number, line in enumerate(lines, 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        name, _, rest = entry.partition(":")
        digest, colon, priority = rest.partition(":")
        if not (_NAME.fullmatch(name) and _SHA256.fullmatch(digest)):
            # The line is not quoted: what stands there may be the key itself.
            raise KeysError(f"{path}, line {number}: not `name:sha256`; `sid key NAME` prints one")
        if colon and priority not in PRIORITIES:
            wanted = ", ".join(PRIORITIES)
            raise KeysError(f"{path}, line {number}: the third part is a priority: {wanted}")
        known = KnownKey(name, PRIORITIES[priority] if colon else Priority.INTERACTIVE)
        if entries.setdefault(bytes.fromhex(digest), known) != known:
            raise KeysError(
                f"{path}, line {number}: this key has another name or priority further up"
            )
    if not entries:
        raise KeysError(f"{path}: holds no key, so nobody could get in; `sid key NAME` makes one")
    return Keys(entries)


class TokenBuckets:
    """One bucket of tokens for each client; a token is an image, and tokens come back in time.

    Whole nanoseconds and no floats, so that the promises hold exactly (tests/service/http/
    test_security.py): in any window of t seconds a client is granted at most burst + rate * t
    images; a refusal takes nothing; after the wait that a refusal names, the same is granted. A
    clock that goes backwards only makes clients wait for it.

    A bucket is the time at which it will be full again, and nothing else. There is one for each
    client that ever took something, so clients must come from a bounded set: the known keys.

    Args:
        rate: images per second that come back.
        burst: images that a full bucket holds.
        clock: nanoseconds; never the wall clock, which is set by people.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], int] = monotonic_ns) -> None:
        if not (rate > 0 and burst >= 1):
            raise ValueError("rate must be above 0 and burst at least 1")
        self.burst = burst
        self._image = math.ceil(_SECOND / Fraction(rate))  # rounded up: never more than the rate
        self._clock = clock
        self._full_at: dict[str, int] = {}

    def take(self, client: str, n: int) -> float:
        """Take n images' tokens; 0 if granted, else the seconds until they would be.

        More than `burst` can never be granted: the answer is infinity.
        """
        if n > self.burst:
            return math.inf
        now = self._clock()
        full_at = max(now, self._full_at.get(client, now)) + n * self._image
        wait = full_at - now - self.burst * self._image
        if wait > 0:
            return wait / _SECOND
        self._full_at[client] = full_at
        return 0.0


def charge(request: Mapping[str, Any], n: int) -> None:
    """Charge the client of a request for n images; does nothing where no rate is set.

    To be called once the request is known to be valid and before it costs anything. Nothing is
    given back if it fails later: a client that is refused by a full queue has to slow down too.

    Args:
        request: the ASGI scope, or the Request, which is a mapping of it. ApiKeys has put the
            client's name there, and the application's state holds the buckets.
        n: how many images it asks for.

    Raises:
        RateLimitedError: not now.
        BurstError: never, not even with a full bucket.
    """
    buckets: TokenBuckets | None = request["app"].state.buckets
    if buckets is None:
        return
    wait = buckets.take(request["state"]["client"], n)
    if wait == math.inf:
        raise BurstError(
            f"a key may ask for at most {buckets.burst} images at once, not {n}; "
            f"send several requests"
        )
    if wait:
        raise RateLimitedError(wait)
