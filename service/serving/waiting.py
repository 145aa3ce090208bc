"""What waits for a batch: who is next, who is passed over no longer, and who yields to others.

One queue for each priority, first in, first out. A batch is of one priority, because on processors
an image takes as long as its whole batch: less urgent batch-mates would hold up an urgent one.

What holds (tests/service/serving/test_batching.py):

- While something of a higher priority waits, no batch of a lower one starts, but for the floor.
- The floor: what has been passed over by `PASSES` batches in succession has the next one. So of
  any `PASSES` + 2 batches in succession one is of each priority that waits all the time, and of
  any `PASSES` + 1 at most one of each lower priority starts while a higher one waits.
- What is shed to make room is of a lower priority than what comes, the lowest first, and of one
  priority the newest. The oldest request of each is never shed, for the floor is there for it.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from service.priority import Priority

Item = TypeVar("Item")
Result = TypeVar("Result")

PASSES = 8
_ALL = tuple(Priority)


class Ticket(Generic[Item, Result]):
    """The items of one submit, how many have left the queue, and their results.

    Args:
        items: what to compute.
        priority: whom it goes before.
        key: under which others may join the wait; None: nobody may.
    """

    def __init__(
        self, items: Sequence[Item], priority: Priority, key: Hashable | None = None
    ) -> None:
        self.items = items
        self.priority = priority
        self.key = key
        self.taken = 0
        self.results: dict[int, Result] = {}
        # Resolves to the failure, if any: an exception that nobody retrieves would be logged.
        self.future: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    @property
    def left(self) -> int:
        """How many of its items wait still."""
        return len(self.items) - self.taken


Batch = list[tuple[Ticket[Item, Result], int]]
"""Which item of which ticket, all of one priority."""


class Waiting(Generic[Item, Result]):
    """The tickets of which items wait, by priority.

    Attributes:
        count: how many items wait.
        counts: how many of each priority.
    """

    def __init__(self) -> None:
        # Ordered by arrival; dictionaries so that a cancelled ticket leaves in O(1).
        self._queues: list[OrderedDict[Ticket[Item, Result], None]] = [
            OrderedDict() for _ in Priority
        ]
        self.count = 0
        self.counts = [0 for _ in Priority]
        self._passes = [0 for _ in Priority]  # batches in succession that each was passed over by

    def add(self, ticket: Ticket[Item, Result]) -> None:
        """Put a ticket behind all others of its priority."""
        self._queues[ticket.priority][ticket] = None
        self._count(ticket.priority, ticket.left)

    def remove(self, ticket: Ticket[Item, Result]) -> None:
        """Take out what waits of a ticket, if anything does."""
        if ticket in self._queues[ticket.priority]:
            del self._queues[ticket.priority][ticket]
            self._count(ticket.priority, -ticket.left)

    def promote(self, ticket: Ticket[Item, Result], priority: Priority) -> None:
        """Have what waits of a ticket go behind all others of a higher priority."""
        if priority < ticket.priority and ticket in self._queues[ticket.priority]:
            self.remove(ticket)
            ticket.priority = priority
            self.add(ticket)

    def take(self, slots: int, limit: int) -> Batch[Item, Result]:
        """Remove the next batch, oldest first: a fair share for each free slot.

        Args:
            slots: how many batches may start, this one among them.
            limit: the largest batch.
        """
        batch: Batch[Item, Result] = []
        while self.count and not batch:  # a priority may hold nothing but cancelled tickets
            priority = self._next()
            queue = self._queues[priority]
            size = min(-(-self.counts[priority] // slots), limit)
            while queue and len(batch) < size:
                ticket = next(iter(queue))
                if ticket.future.done():  # cancelled, and its submit had no turn yet to withdraw it
                    self.remove(ticket)
                    continue
                batch.append((ticket, ticket.taken))
                ticket.taken += 1
                if not ticket.left:
                    del queue[ticket]
            if batch:
                self._count(priority, -len(batch))
                for other in _ALL:
                    passed = self.counts[other] and other != priority
                    self._passes[other] = self._passes[other] + 1 if passed else 0
        return batch

    def sheddable(self, priority: Priority) -> int:
        """How many items `shed` may take away for something of this priority."""
        return sum(
            self.counts[lower] - next(iter(queue)).left
            for lower, queue in enumerate(self._queues)
            if lower > priority and queue
        )

    def shed(self, count: int, priority: Priority) -> list[Ticket[Item, Result]]:
        """Take out requests of lower priorities until at least `count` items fewer wait."""
        shed = []
        for queue in reversed(self._queues[priority + 1 :]):
            while count > 0 and len(queue) > 1:
                ticket = next(reversed(queue))
                count -= ticket.left
                self.remove(ticket)
                shed.append(ticket)
        return shed

    def _next(self) -> Priority:
        """The priority that has the next batch; something has to wait."""
        waiting = [priority for priority in _ALL if self.counts[priority]]
        longest = max(waiting, key=self._passes.__getitem__)
        return longest if self._passes[longest] >= PASSES else waiting[0]

    def _count(self, priority: Priority, more: int) -> None:
        self.counts[priority] += more
        self.count += more
