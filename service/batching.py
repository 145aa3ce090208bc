"""Continuous batching: while one batch is computed, the next gathers in the queue.

There is no window and no timer: a batch is whatever waits when the engine frees up, up to the
limit. Alone, a request starts at once; under load, batches grow by themselves.

What holds, whatever is cancelled or fails (tests/service/test_batching.py):
every submit ends exactly once, with its own result or one exception; first in, first out; a
cancelled item that still waits is never computed, and a cancel never touches its batch-mates;
a batch never exceeds the limit; the queue is bounded; a failing computation fails its batch
only; an idle batcher costs nothing; closing resolves everything.

One event loop owns a batcher, so between two awaits nothing else runs and no lock is needed.
The module knows no HTTP, no engine and no clock.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueueFullError(Exception):
    """The queue holds as many items as it may."""


class ClosedError(Exception):
    """The batcher takes no more items, or was closed before it computed this one."""


class ComputeError(Exception):
    """The computation of the item's batch failed; the reason is chained as __cause__."""


class Batcher(Generic[Item, Result]):
    """Groups items that are submitted one by one and computes them batch by batch.

    Args:
        compute: awaited with 1 to `max_batch_size` items, one call at a time; returns as many
            results, in order. It must not block the event loop.
        max_batch_size: largest batch.
        queue_size: how many items may wait, those in computation not counted.
    """

    def __init__(
        self,
        compute: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        *,
        max_batch_size: int,
        queue_size: int,
    ) -> None:
        if max_batch_size < 1 or queue_size < 1:
            raise ValueError("max_batch_size and queue_size must be at least 1")
        self._compute = compute
        self._max_batch_size = max_batch_size
        self._queue_size = queue_size
        # Ordered by arrival; keyed by future so that a cancelled item leaves in O(1).
        self._queue: OrderedDict[asyncio.Future[Result], Item] = OrderedDict()
        self._running: dict[asyncio.Future[Result], Item] = {}
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many items wait in the queue."""
        return len(self._queue)

    async def submit(self, item: Item) -> Result:
        """Queue `item` and return its result.

        Cancelling the caller withdraws the item if it still waits. If its batch is being
        computed, that goes on for the others and only this result is dropped.

        Raises:
            QueueFullError: the queue is full; nothing was queued.
            ClosedError: the batcher was closed before or while the item waited.
            ComputeError: the batch failed.
        """
        if self._closed:
            raise ClosedError
        if len(self._queue) >= self._queue_size:
            raise QueueFullError
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue[future] = item
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        try:
            return await future
        finally:
            self._queue.pop(future, None)  # still there only if the caller was cancelled

    async def drain(self) -> None:
        """Take no more items and return when every accepted submit has ended.

        Cancelling it (a grace period that ran out) stops the waiting, not the work.
        """
        self._closed = True
        if pending := self._pending():
            await asyncio.wait(pending)

    async def close(self) -> None:
        """Take no more items and end the waiting and running ones with ClosedError."""
        self._closed = True
        # Resolved before the worker has ended, so that a computation that hangs holds nobody.
        for future in self._pending():
            future.set_exception(ClosedError())
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])

    async def _work(self) -> None:
        """Compute batches until the queue is empty; a later submit starts the next worker."""
        while batch := self._take():
            self._running = batch
            await self._run(batch)
        self._running = {}
        self._worker = None

    def _pending(self) -> list[asyncio.Future[Result]]:
        return [future for future in (*self._running, *self._queue) if not future.done()]

    def _take(self) -> dict[asyncio.Future[Result], Item]:
        """Remove the next batch from the queue, oldest first, leaving cancelled items out."""
        batch: dict[asyncio.Future[Result], Item] = {}
        while self._queue and len(batch) < self._max_batch_size:
            future, item = self._queue.popitem(last=False)
            if not future.done():
                batch[future] = item
        return batch

    async def _run(self, batch: dict[asyncio.Future[Result], Item]) -> None:
        """Compute one batch and resolve its futures; only a cancel of the worker escapes."""
        try:
            results = await self._compute(list(batch.values()))
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except asyncio.CancelledError as error:
            # A compute whose executor was shut down raises this too, and that is a failure.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            self._fail(batch, error)
        except Exception as error:
            self._fail(batch, error)
        else:
            for future, result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    def _fail(self, batch: dict[asyncio.Future[Result], Item], error: BaseException) -> None:
        for future in batch:
            if not future.done():
                # One exception each: a raised exception object belongs to a single traceback.
                failure = ComputeError(f"{type(error).__name__}: {error}")
                failure.__cause__ = error
                future.set_exception(failure)
