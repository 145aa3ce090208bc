"""Writes lines to a file descriptor without ever waiting for whoever reads it.

A pipe holds 64 KiB. When its reader stalls (a stopped log collector, a terminal with Ctrl-S), a
write blocks until it goes on, and on the event loop that freezes the server. So a thread writes,
from a queue with a bound; what finds the queue full is dropped and counted.
"""

import os
import select
import threading
from collections import deque
from collections.abc import Callable

_ATOMIC = select.PIPE_BUF  # what is written at once does not mix with other programs' lines
# The thread gathers for this long, so that it does not ask for the interpreter at every line.
_GATHER_SECONDS = 0.005


class LineWriter:
    """The queue and the thread of one descriptor; any thread may write.

    Args:
        descriptor: where the lines go.
        limit: bytes that may wait.
    """

    def __init__(self, descriptor: int, limit: int = 1 << 20) -> None:
        self._descriptor = descriptor
        self._limit = limit
        # Its lock is one that a thread may take twice: the garbage collector can run anywhere, and
        # an object's end can log.
        self._changed = threading.Condition()
        self._lines: deque[bytes] = deque()
        self._size = 0  # bytes that wait or are being written
        self._hurry = False
        self._thread: threading.Thread | None = None
        self._told = 0
        self.dropped = 0  # lines that did not get out
        self.notice: Callable[[int], bytes] | None = None  # the line that tells how many

    def write(self, line: bytes) -> None:
        """Queue a line, or drop it when too much waits already."""
        with self._changed:
            if self._size + len(line) > self._limit:
                self.dropped += 1
                return
            self._size += len(line)
            self._lines.append(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            elif len(self._lines) == 1:
                self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all is written, but not for longer than that; returns whether it is."""
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._size, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                self._changed.wait_for(lambda: self._hurry, _GATHER_SECONDS)
            while batch := self._next():
                written = self._write_out(b"".join(batch))
                if written and self.notice and (lost := self.dropped - self._told):
                    self._told += lost
                    written = self._write_out(self.notice(lost))
                with self._changed:
                    self._size -= sum(map(len, batch))
                    self.dropped += 0 if written else len(batch)
                    if not self._lines:
                        self._hurry = False
                    self._changed.notify_all()

    def _next(self) -> list[bytes]:
        """Lines that can be written at once: as many as stay together, but at least one."""
        batch: list[bytes] = []
        size = 0
        with self._changed:
            while self._lines and (not batch or size + len(self._lines[0]) <= _ATOMIC):
                batch.append(self._lines.popleft())
                size += len(batch[-1])
        return batch

    def _write_out(self, data: bytes) -> bool:
        """Write it all; a full disk or a closed pipe is no reason to end anything."""
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another program has set the pipe they share so
                select.select([], [self._descriptor], [])
            except OSError:
                return False
        return True
