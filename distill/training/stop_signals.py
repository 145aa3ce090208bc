"""Ending a training by Ctrl-C or SIGTERM: after its step, or at once by a second one."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


@contextmanager
def stop_requested(insists: bool) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGINT or SIGTERM came.

    If `insists`, the first is answered at once on standard error, for a step can take long, and a
    second one kills. Not under torchrun, which passes on what the terminal has already sent to
    every process.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        if insists:
            # First, for a second one may come while the first is answered. What ignored it, such as
            # a shell in whose background this runs, does not make a second one harmless.
            before = previous[number]
            signal.signal(number, signal.SIG_DFL if before is signal.SIG_IGN else before)
            if len(received) == 1:
                # Not by print: the signal may have come while the progress bar was being written.
                with suppress(OSError):
                    # On a terminal in the bar's place, which is drawn anew below it.
                    begin = b"\r\x1b[K" if os.isatty(2) else b"\n"
                    os.write(2, begin + b"stopping after this step; once more: at once, unsaved\n")

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        previous[number] = signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
