"""Continuous batching: while batches are computed, the next one gathers in the queue.

There is no window and no timer: a batch is whatever waits when the engine has room, up to the
limit. Alone, a request starts at once; under load, batches grow by themselves. What waits is
shared between the slots that the engine has free. Who goes first, and who yields to whom when the
queue is full, is in waiting.py: within a priority it is first in, first out.

What holds, whatever is cancelled, late or broken (tests/service/serving/test_batching.py):
every submit ends exactly once, with its own results or one exception; what waiting.py promises of
priorities; a cancelled, shed or expired item that still waits is never computed, and never touches
its batch-mates; a batch that nobody waits for any more is cancelled, and never exceeds the limit;
the queue is bounded; a failing computation fails its batch only; an idle batcher costs nothing;
closing resolves everything.

One event loop owns a batcher, so between two awaits nothing else runs and no lock is needed.
The module knows no HTTP and no engine; its only clock is the event loop's.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from contextlib import nullcontext
from typing import Any, Generic, Literal, TypeVar

from service.priority import Priority
from service.serving.exceptions import ClosedError, ComputeError, DeadlineError, QueueFullError
from service.serving.waiting import Batch, Ticket, Waiting

Item = TypeVar("Item")
Result = TypeVar("Result")

# Why a batch starts: a slot was free when its first item came; a slot came free and less, or
# at least as much, waited as a batch may hold.
Reason = Literal["idle", "freed", "full"]

_LATEST = 0.2  # weight of the latest batch in the running mean of durations


class Batcher(Generic[Item, Result]):
    """Groups items that are submitted few at a time and computes them batch by batch.

    Args:
        compute: awaited with a batch and why it starts; returns as many results, in order.
            Cancelled when nobody waits for any of the batch.
        max_batch_size: largest batch.
        queue_size: how many items may wait while all slots are taken.
        concurrency: how many batches may be in computation at a time (see `resize`).
    """

    def __init__(
        self,
        compute: Callable[[list[Item], Reason], Awaitable[Sequence[Result]]],
        *,
        max_batch_size: int,
        queue_size: int,
        concurrency: int = 1,
    ) -> None:
        if min(max_batch_size, queue_size, concurrency) < 1:
            raise ValueError("max_batch_size, queue_size and concurrency must be at least 1")
        self._compute = compute
        self._max_batch_size = max_batch_size
        self._queue_size = queue_size
        self._concurrency = concurrency
        self._waiting: Waiting[Item, Result] = Waiting()
        self._shared: dict[Hashable, Ticket[Item, Result]] = {}  # by the key of each that has one
        self._tickets: set[Ticket[Item, Result]] = set()
        self._workers: set[asyncio.Task[None]] = set()
        self._running: dict[asyncio.Task[None], Batch[Item, Result]] = {}  # of which worker
        self._batch_seconds = 0.0  # running mean; 0 until a batch has ended
        self._closed = False

    def resize(self, concurrency: int) -> None:
        """Have so many batches at a time from now on; what is being computed goes on."""
        if concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        self._concurrency = concurrency
        self._start_workers(self._why_freed)

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return self._waiting.count

    def waiting_of(self, priority: Priority) -> int:
        """How many items of a priority wait."""
        return self._waiting.counts[priority]

    def expected_seconds(self, more: int = 0, priority: Priority = Priority.INTERACTIVE) -> float:
        """Seconds until what waits will have been computed, with `more` items behind it.

        The mean duration of recent batches times the batches to come: too low while load rises.
        What is of a lower priority than `priority` is not waited for, so it does not count.
        """
        batches = len(self._running)
        for higher in range(priority + 1):
            items = self._waiting.counts[higher] + (more if higher == priority else 0)
            batches -= -items // self._max_batch_size
        return self._batch_seconds * -(-batches // self._concurrency)

    def full_for(self, priority: Priority, ahead: int = 0) -> float | None:
        """As long as `submit` would refuse a single item for want of room: seconds, else None.

        `ahead` is how many others are about to be submitted before it.
        """
        full = not self._closed and self._is_full(self._missing(ahead + 1, priority), priority)
        return self.expected_seconds(0, priority) if full else None

    def _admit(self, count: int, deadline: float | None, priority: Priority) -> None:
        if self._closed:
            raise ClosedError
        missing = self._missing(count, priority)
        if self._is_full(missing, priority):
            raise QueueFullError(self.expected_seconds(0, priority))
        # An idle engine always tries: after one slow batch nothing else would correct the estimate.
        if deadline is not None and (self.waiting or self._running):
            seconds = self.expected_seconds(count, priority)
            if asyncio.get_running_loop().time() + seconds > deadline:
                took = f"the queue leaves no time: it would take about {seconds * 1000:.0f} ms"
                raise DeadlineError(took)
        if missing > 0:
            for ticket in self._waiting.shed(missing, priority):
                self._end(ticket, QueueFullError(self.expected_seconds(0, ticket.priority)))

    def _missing(self, count: int, priority: Priority) -> int:
        """How many items would wait for which there is no room, with so many more."""
        waiting = self._waiting.count
        # What free slots will take in the loop's next turn does not count as waiting. A batch is of
        # one priority: where several wait, one item is all that a slot takes for certain.
        alone = waiting == self._waiting.counts[priority]
        room = self._queue_size + self._free * (self._max_batch_size if alone else 1)
        return waiting + count - room

    def _is_full(self, missing: int, priority: Priority) -> bool:
        return missing > 0 and missing > self._waiting.sheddable(priority)

    def submit(
        self,
        items: Sequence[Item],
        deadline: float | None = None,
        *,
        priority: Priority = Priority.INTERACTIVE,
        shared: Hashable | None = None,
    ) -> Coroutine[Any, Any, list[Result]]:
        """Queue `items` or refuse them, at once; they may be computed in pieces.

        Not a coroutine function, so that this is one step: what is admitted is in the queue, and
        what is refused has cost nothing. What it returns has to be awaited by the task that
        called it, or by a new one that is left to start.

        Args:
            items: what to compute.
            deadline: a time of the event loop's clock by which the results are wanted.
            priority: what they go before, and what makes room for them when the queue is full.
            shared: a key under which others may join the wait (`promote`), with deadlines of
                their own, so that this one only decides whether the items are queued, and does
                not end the wait. None: nobody joins.

        Returns:
            A coroutine that returns the results, in order. Cancelling it, or reaching the
            deadline, withdraws what still waits. What is being computed goes on for its
            batch-mates, if any. It raises ClosedError (the batcher was closed while the items
            waited), QueueFullError (they made room for a higher priority), DeadlineError (the
            deadline came first) or ComputeError (a batch with one of the items failed).

        Raises:
            ClosedError, QueueFullError, DeadlineError: refused; nothing was queued.
        """
        self._admit(len(items), deadline, priority)
        ticket: Ticket[Item, Result] = Ticket(items, priority, shared)
        self._tickets.add(ticket)
        self._waiting.add(ticket)
        if shared is not None:
            self._shared[shared] = ticket
        self._start_workers()
        return self._results(ticket, deadline if shared is None else None)

    def promote(self, shared: Hashable, priority: Priority) -> None:
        """Have what waits under a key go before what this priority goes before, if it does not."""
        if (ticket := self._shared.get(shared)) is not None:
            self._waiting.promote(ticket, priority)

    async def _results(self, ticket: Ticket[Item, Result], deadline: float | None) -> list[Result]:
        try:
            async with asyncio.timeout_at(deadline) if deadline else nullcontext():
                error = await ticket.future
        except TimeoutError:
            raise DeadlineError("the image was not drawn in time") from None
        finally:
            self._tickets.discard(ticket)
            self._waiting.remove(ticket)
            if ticket.key is not None and self._shared.get(ticket.key) is ticket:
                del self._shared[ticket.key]  # it was not that of a later ticket
            if len(ticket.results) < len(ticket.items):
                self._abandon()
        if error:
            raise error
        return [ticket.results[index] for index in range(len(ticket.items))]

    async def drain(self) -> None:
        """Take no more items and return when every accepted submit has ended.

        Cancelling it stops the waiting, not the work.
        """
        self._closed = True
        if self._tickets:
            await asyncio.wait([ticket.future for ticket in self._tickets])

    async def close(self) -> None:
        """Take no more items and end the waiting and running ones with ClosedError."""
        self._closed = True
        # Resolved before the workers have ended: a computation that hangs holds nobody.
        for ticket in self._tickets:
            self._end(ticket, ClosedError())
        for worker in (workers := list(self._workers)):
            worker.cancel()
        if workers:
            await asyncio.wait(workers)

    @property
    def _free(self) -> int:
        return max(0, self._concurrency - len(self._running))  # it may have been resized

    @property
    def _why_freed(self) -> Reason:
        """Why a batch starts for which a slot came free."""
        return "full" if self.waiting >= self._max_batch_size else "freed"

    def _start_workers(self, reason: Reason = "idle") -> None:
        """Have a worker for each free slot that an item can fill; it ends when none waits."""
        slots = min(self.waiting, self._free)
        for _ in range(slots - (len(self._workers) - len(self._running))):
            self._workers.add(asyncio.create_task(self._work(reason)))

    async def _work(self, reason: Reason) -> None:
        try:
            while self._free and (batch := self._waiting.take(self._free, self._max_batch_size)):
                await self._run(batch, reason)
                reason = self._why_freed
        finally:
            # Here and not in a callback: the next submit must see that it has to start another.
            self._workers.discard(asyncio.current_task())

    def _abandon(self) -> None:
        """Cancel the batches that nobody waits for any more."""
        for worker, batch in self._running.items():
            if _is_over(batch) and not worker.cancelling():
                worker.cancel()

    async def _run(self, batch: Batch[Item, Result], reason: Reason) -> None:
        """Compute one batch and resolve its tickets; only a cancel of the worker escapes."""
        loop, worker = asyncio.get_running_loop(), asyncio.current_task()
        assert worker is not None
        started = loop.time()
        self._running[worker] = batch
        try:
            results = await self._compute([ticket.items[index] for ticket, index in batch], reason)
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except asyncio.CancelledError as error:
            # The worker's end, but for `_abandon`'s cancel, or one that the computation itself
            # raised, as one whose executor was shut down does.
            if worker.cancelling() and not (_is_over(batch) and worker.uncancel() == 0):
                raise
            self._fail(batch, error)
        except Exception as error:
            self._fail(batch, error)
        else:
            change = loop.time() - started - self._batch_seconds
            self._batch_seconds += change * (_LATEST if self._batch_seconds else 1)
            for (ticket, index), result in zip(batch, results, strict=True):
                ticket.results[index] = result
                if len(ticket.results) == len(ticket.items):
                    self._end(ticket)
        finally:
            del self._running[worker]

    def _fail(self, batch: Batch[Item, Result], error: BaseException) -> None:
        for ticket, _ in batch:
            # One exception each: a raised exception object belongs to a single traceback.
            failure = ComputeError(f"{type(error).__name__}: {error}")
            failure.__cause__ = error
            self._end(ticket, failure)

    def _end(self, ticket: Ticket[Item, Result], error: Exception | None = None) -> None:
        """Resolve a ticket, once; what of it still waits is passed over from now on."""
        if not ticket.future.done():
            ticket.future.set_result(error)


def _is_over(batch: Batch[Any, Any]) -> bool:
    return all(ticket.future.done() for ticket, _ in batch)
