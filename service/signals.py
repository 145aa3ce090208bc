"""The signals of a server: those that end it, SIGHUP, and what they mean while it starts."""

import asyncio
import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass
class EarlySignals:
    """Those that came before the server was up.

    Attributes:
        end: SIGINT or SIGTERM.
        hang_up: SIGHUP.
    """

    end: bool = False
    hang_up: bool = False


@contextmanager
def starting() -> Iterator[EarlySignals]:
    """Have SIGINT and SIGTERM cancel this task, and notice SIGHUP.

    Models may take long to load, and process 1 of a container ignores signals without a handler:
    it would be killed at the end of its platform's patience, and never read a revoked key.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    signals = EarlySignals()

    def handle(number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP:
            signals.hang_up = True
            return
        signals.end = True
        loop.call_soon_threadsafe(task.cancel)

    with handling(dict.fromkeys((*ENDING, signal.SIGHUP), handle)):
        yield signals


@contextmanager
def handling(
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]],
) -> Iterator[None]:
    """Have these functions handle these signals until the end of the context."""
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def terminal_is_gone() -> bool:
    """Whether this process had a terminal, which has been closed."""
    try:
        os.tcgetpgrp(0)
    except OSError as error:
        return error.errno == errno.EIO
    return False
