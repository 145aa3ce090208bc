"""How many connections a server may have open, and what happens to those beyond that."""

import errno
import os
import resource
from collections.abc import Callable
from time import monotonic
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)

_MOST = 10_000  # an idle one takes some 10 KB
_OWN_FILES = 128  # descriptors for what else the server opens: models, logs, Triton, traces
_SPARE = 16  # connections beyond the limit that may be open for as long as it takes to answer
_QUIET_SECONDS = 60.0  # between two log lines that say the same


class ConnectionsError(Exception):
    """More connections are wanted than the process may have; the message is one line."""


class Closable(Protocol):
    """A connection that can be cut off."""

    def abort(self) -> None:
        """End it at once."""


def make_room(wanted: int | None) -> int:
    """The number of connections that may be open; raises the limit on open files if that helps.

    Args:
        wanted: how many; None: as many as there is room for, up to 10,000.

    Raises:
        ConnectionsError: so many do not fit within the hard limit on open files.
    """
    files = _raise_file_limit((wanted or _MOST) + _OWN_FILES)
    room = max(files - _OWN_FILES, files // 4, 1)
    if wanted is None:
        return min(_MOST, room)
    if wanted > room:
        raise ConnectionsError(
            f"SID_MAX_CONNECTIONS={wanted}: this process may open {files} files, which leaves room "
            f"for {room} connections; raise its hard limit (ulimit -Hn), or ask for fewer"
        )
    return wanted


def _raise_file_limit(needed: int) -> int:
    """Raise the soft limit on open files towards the hard one, and return what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or soft >= needed:
        return needed if soft == unlimited else soft
    higher = needed if hard == unlimited else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (higher, hard))
    except (OSError, ValueError):  # the system has a bound of its own
        return soft
    return higher


class Room:
    """Who is within the limit on connections, and who came beyond it.

    Those beyond are not cut off at once, as a client could not tell that from a fault: each may
    ask once, and is refused or (probes) answered. There are few of them; the next one takes the
    place of the oldest.

    Args:
        limit: connections that may be open.
        on_refused: called for each connection beyond them that gets nothing.
    """

    def __init__(self, limit: int, on_refused: Callable[[], None]) -> None:
        self.limit = limit
        self._on_refused = on_refused
        self._beyond: dict[Closable, None] = {}  # in the order in which they came
        self._quiet_until = 0.0

    def enter(self, connection: Closable, count: int) -> bool:
        """Let a new connection in, one of `count` that are open; returns False beyond the limit."""
        if count - len(self._beyond) <= self.limit:
            return True
        if len(self._beyond) >= _SPARE:
            oldest = next(iter(self._beyond))
            del self._beyond[oldest]
            self.refuse()
            oldest.abort()
        self._beyond[connection] = None
        return False

    def leave(self, connection: Closable) -> None:
        """Forget a connection that has ended."""
        self._beyond.pop(connection, None)

    def refuse(self) -> None:
        """Count a connection that is refused."""
        self._on_refused()
        if (now := monotonic()) >= self._quiet_until:
            self._quiet_until = now + _QUIET_SECONDS
            log.warning("too many connections: further ones are refused", limit=self.limit)


class FileWatch:
    """Notices that the process is out of file descriptors; asked every second.

    Nobody else says so: the event loop (libuv) then accepts connections and drops them.
    """

    def __init__(self) -> None:
        self._quiet_until = 0.0

    async def look(self) -> None:
        """Try to open a file, and log it if that fails, once a minute."""
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            if (now := monotonic()) >= self._quiet_until:
                self._quiet_until = now + _QUIET_SECONDS
                log.error(
                    "out of file descriptors: new connections are dropped",
                    limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                )
