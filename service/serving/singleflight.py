"""Identical work that is asked for at the same time is done once."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from copy import copy
from types import FunctionType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Shares the result of work in progress between all who ask for the same key.

    It keeps nothing once the work has ended: that is for the caches in front of the server.
    """

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[T]] = {}
        self._waiters: dict[Hashable, int] = {}

    def is_running(self, key: Hashable) -> bool:
        """Whether work for this key is in progress, so that `run` would share it."""
        return key in self._tasks

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the result of `work()`, or of the same key's work that is in progress.

        A caller that is cancelled leaves the others alone; when the last one leaves, the work is
        cancelled. An exception of the work reaches every caller, each as an object of its own:
        raising one object in many places would grow its traceback with each.
        """
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(work())
            self._waiters[key] = 0
        self._waiters[key] += 1
        try:
            await asyncio.wait([task])
        finally:
            # A later flight of the same key may have begun: count only in our own.
            if self._tasks.get(key) is task:
                self._waiters[key] -= 1
                if task.done() or not self._waiters[key]:
                    del self._tasks[key], self._waiters[key]
                    task.cancel()
        if not task.cancelled() and (error := task.exception()) is not None:
            raise _copied(error)
        return task.result()


def _copied(error: BaseException) -> BaseException:
    """The same exception once more, with the traceback of the first so far."""
    kind = type(error)
    if isinstance(kind.__init__, FunctionType):
        # `copy` would call it with what it has given to Exception: a message, where ours take
        # figures.
        copied = kind.__new__(kind, *error.args)
        copied.__dict__.update(error.__dict__)
    else:  # of Python itself, some of which keep more than their arguments
        copied = copy(error)
    copied.__cause__, copied.__context__ = error.__cause__, error.__context__
    copied.__suppress_context__ = error.__suppress_context__
    return copied.with_traceback(error.__traceback__)
