"""Threads that compute for the event loop and never keep the process from ending."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from time import monotonic
from typing import Any, TypeVar

from service.engines import EngineError

T = TypeVar("T")


# How long a thread that leaves the engine waits for the event loop to hand over the interpreter
# (sys.setswitchinterval): Python's 5 ms is a fifth of a batch.
SWITCH_SECONDS = 0.0002

# How long a call that was told to end, or nearly has, is waited for.
_LAST_CALL_SECONDS = 1.0


class _DaemonThread(threading.Thread):
    """A class of its own, so that `left_behind` knows them."""


def left_behind() -> bool:
    """Whether a thread still runs: if all were stopped, it hangs in a native call.

    The interpreter cannot end in order around such a call: should it return meanwhile, it aborts.
    """
    return any(isinstance(thread, _DaemonThread) for thread in threading.enumerate())


class DaemonThreads:
    """A fixed number of threads that run calls, first come first served.

    Not a ThreadPoolExecutor: the interpreter waits for an executor's threads when it exits, so one
    native call that hangs would hold the process for ever. These are daemons.

    Args:
        count: how many calls run at a time.
        name: prefix of the threads' names, for profilers.

    Raises:
        EngineError: the system has no room for so many.
    """

    def __init__(self, count: int, name: str) -> None:
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._ending = threading.Lock()
        self._ended = False
        self._threads = [
            _DaemonThread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]
        for number, thread in enumerate(self._threads):
            try:
                thread.start()
            except RuntimeError as error:
                for _ in range(number):
                    self._calls.put(None)
                raise EngineError(
                    f"{name}: this machine starts only {number} of {count} threads ({error}): "
                    "lower SID_CONCURRENCY, or raise its limit of processes or memory"
                ) from error

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return `function(*arguments)`, computed by one of the threads.

        Cancelled before a thread took it, the call is never made; after that it goes on and its
        result is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def call() -> None:
            if future.cancelled():
                return
            try:
                outcome, error = function(*arguments), None
            except BaseException as caught:
                outcome, error = None, caught
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(_resolve, future, outcome, error)

        self._calls.put(call)
        return await future

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """The same for another thread than an event loop's, which waits.

        Raises:
            EngineError: the threads were told to end.
        """
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        with self._ending:  # or the call would come behind the end, and be waited for for ever
            if self._ended:
                raise EngineError("the engine was closed")
            self._calls.put(call)
        return future.result()

    def end(self) -> None:
        """Have the threads end after the calls that they were given."""
        with self._ending:
            self._ended = True
            for _ in self._threads:
                self._calls.put(None)

    async def stop(self) -> None:
        """`end` them and wait a moment for it; one that hangs is left behind."""
        self.end()
        until = monotonic() + _LAST_CALL_SECONDS
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(0, until - monotonic()))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


async def run_aside(function: Callable[..., T], *arguments: Any) -> T:
    """Return `function(*arguments)`, computed in a thread of its own.

    Unlike `asyncio.to_thread`'s, it does not keep the process from ending where it hangs, or has
    much left to do, when this is cancelled.
    """
    thread = DaemonThreads(1, function.__name__)
    try:
        return await thread.run(function, *arguments)
    finally:
        await thread.stop()


def _resolve(future: asyncio.Future[Any], outcome: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(outcome)
    else:
        future.set_exception(error)
