"""A timer for an event loop that is precise to some 0.1 ms."""

import asyncio
import ctypes
import math
import os
import sys
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1


class _Itimerspec(ctypes.Structure):
    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class Alarm:
    """Calls `ring` at the time last set.

    Event loops count whole milliseconds, which is as long as a small model takes to draw: sent by
    their timers, every request would seem half a millisecond slower than it is. Linux has
    timerfd for this (`os.timerfd_create`, from Python 3.13 on); elsewhere the loop's timer serves.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._fd = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None)
            self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0:
            loop.add_reader(self._fd, self._expired)

    def set(self, when: float) -> None:
        """Ring at `when`, in `perf_counter` seconds; at once if that is past."""
        delay = max(when - time.perf_counter(), 1e-9)
        if self._fd >= 0:
            seconds, fraction = divmod(delay, 1)
            spec = _Itimerspec(0, 0, int(seconds), math.ceil(fraction * 999_999_999))
            self._libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None)
        else:
            # Rounded up, for too early means to be set again, over and over.
            self._timer = self._loop.call_later(math.ceil(delay * 1000) / 1000, self._ring)

    def close(self) -> None:
        """Never ring again."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._timer is not None:
            self._timer.cancel()

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # it was set anew in the same turn of the loop
        self._ring()
