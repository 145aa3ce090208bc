"""The batcher's invariants, against a model of it, under every interleaving Hypothesis finds.

The computation ends when a rule says so, so there is no clock and nothing to wait for.
"""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.batching import Batcher, ClosedError, ComputeError, QueueFullError


@dataclass(eq=False)
class Submit:
    """One call of submit: what the model expects of it, and what came of it."""

    number: int
    expected: str | None = None
    task: asyncio.Task = field(init=False)

    def outcome(self) -> str | None:
        if not self.task.done():
            return None
        if self.task.cancelled():
            return "cancelled"
        error = self.task.exception()
        return type(error).__name__ if error else self.task.result()


class Batching(RuleBasedStateMachine):
    """Rules act at once or in bursts between two turns of the loop; the model follows in order."""

    @initialize(limit=st.integers(1, 4), size=st.integers(1, 6))
    def start(self, limit, size):
        self.loop = asyncio.new_event_loop()
        self.limit, self.size = limit, size
        self.batcher = Batcher(self.compute, max_batch_size=limit, queue_size=size)
        self.submits: list[Submit] = []
        self.burst: list = []  # what the loop has not run yet, in order
        self.queue: list[Submit] = []
        self.running: list[Submit] = []
        self.gate: asyncio.Future | None = None
        self.computed: list[list[int]] = []
        self.expected_batches: list[list[int]] = []

    async def compute(self, items):
        assert self.gate is None, "one batch at a time"
        self.computed.append(items)
        self.gate = self.loop.create_future()
        try:
            how = await self.gate
        finally:
            self.gate = None
        if how == "raise":
            raise OSError("the engine broke")
        if how == "cancel":
            raise asyncio.CancelledError  # as a future of a shut-down executor does
        results = [f"result {item}" for item in items]
        return results if how == "return" else results[1:]

    @rule(count=st.integers(1, 5))
    def submit(self, count):
        for _ in range(count):
            submit = Submit(len(self.submits))
            submit.task = self.loop.create_task(self.batcher.submit(submit.number))
            self.submits.append(submit)
            self.burst.append(submit)

    @precondition(lambda self: any(not submit.expected for submit in self.submits))
    @rule(data=st.data())
    def cancel(self, data):
        pending = [submit for submit in self.submits if not submit.expected]
        submit = data.draw(st.sampled_from(pending), label="cancelled")
        submit.task.cancel()
        submit.expected = "cancelled"
        if submit in self.burst:  # cancelled before it ran at all
            self.burst.remove(submit)
        elif submit in self.queue:  # its place is free once the cancelled task had its turn
            self.burst.append(("leaves", submit))

    @precondition(lambda self: self.gate is not None and not self.gate.done())
    @rule(how=st.sampled_from(["return", "return", "raise", "cancel", "short"]))
    def finish(self, how):
        self.gate.set_result(how)
        self.burst.append(how)

    @rule()
    def settle(self):
        for _ in range(6):
            self.loop.run_until_complete(asyncio.sleep(0))
        for event in self.burst:
            match event:
                case Submit() if len(self.queue) < self.size:
                    self.queue.append(event)
                case Submit():
                    event.expected = "QueueFullError"
                case ("leaves", submit):
                    self.queue = [other for other in self.queue if other is not submit]
                case how:
                    for submit in self.running:
                        won = how == "return"
                        result = f"result {submit.number}" if won else "ComputeError"
                        submit.expected = submit.expected or result
                    self.dispatch()
        self.burst.clear()
        if not self.running:
            self.dispatch()

    def dispatch(self):
        self.running = []
        while self.queue and len(self.running) < self.limit:
            submit = self.queue.pop(0)
            if submit.expected != "cancelled":
                self.running.append(submit)
        if self.running:
            self.expected_batches.append([submit.number for submit in self.running])

    @invariant()
    def nothing_differs_from_the_model(self):
        if self.burst:
            return
        self.settle()
        assert [submit.outcome() for submit in self.submits] == [s.expected for s in self.submits]
        assert self.computed == self.expected_batches
        assert self.batcher.waiting == len(self.queue)
        assert (self.gate is not None) == bool(self.running)
        if not self.running:
            assert asyncio.all_tasks(self.loop) == set(), "an idle batcher costs nothing"

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        self.settle()
        self.loop.run_until_complete(self.batcher.close())
        self.settle()
        for submit in self.submits:
            assert submit.outcome() == (submit.expected or "ClosedError")
        assert asyncio.all_tasks(self.loop) == set()
        self.loop.close()


Batching.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestBatching = Batching.TestCase


class Gate:
    """A computation that ends when the test lets it."""

    def __init__(self):
        self.open = asyncio.Event()
        self.batches: list[list[int]] = []

    async def __call__(self, items):
        self.batches.append(items)
        await self.open.wait()
        return items


def test_what_waits_when_the_engine_frees_up_is_the_next_batch():
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch_size=3, queue_size=9)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.01)
        others = [asyncio.create_task(batcher.submit(number)) for number in range(1, 6)]
        await asyncio.sleep(0.01)
        gate.open.set()
        assert await asyncio.gather(first, *others) == [0, 1, 2, 3, 4, 5]
        assert gate.batches == [[0], [1, 2, 3], [4, 5]]

    asyncio.run(scenario())


def test_draining_finishes_what_was_accepted_and_takes_no_more():
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch_size=1, queue_size=9)
        accepted = [asyncio.create_task(batcher.submit(number)) for number in range(3)]
        await asyncio.sleep(0)
        draining = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(ClosedError):
            await batcher.submit(3)
        assert not draining.done()
        gate.open.set()
        await draining
        assert await asyncio.gather(*accepted) == [0, 1, 2]
        await batcher.close()

    asyncio.run(scenario())


def test_a_computation_that_ignores_its_cancel_holds_no_submit_at_close():
    async def scenario():
        release = asyncio.Event()

        async def stubborn(items):
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            return items

        batcher = Batcher(stubborn, max_batch_size=1, queue_size=9)
        waiters = [asyncio.create_task(batcher.submit(number)) for number in range(2)]
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(batcher.close())
        ended = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(error) for error in ended] == [ClosedError, ClosedError]
        release.set()
        await closing

    asyncio.run(scenario())


def test_closing_before_the_first_batch_started_resolves_it():
    async def scenario():
        batcher = Batcher(Gate(), max_batch_size=1, queue_size=9)
        waiter = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0)  # the item is queued, its worker has not run yet
        await batcher.close()
        with pytest.raises(ClosedError):
            await waiter

    asyncio.run(scenario())


def test_each_failed_submit_has_an_exception_of_its_own_and_the_reason():
    async def scenario():
        async def broken(_):
            raise OSError("out of memory")

        batcher = Batcher(broken, max_batch_size=2, queue_size=9)
        first, second = await asyncio.gather(
            batcher.submit(0), batcher.submit(1), return_exceptions=True
        )
        assert isinstance(first, ComputeError)
        assert first is not second
        assert "OSError: out of memory" in str(first)
        assert isinstance(first.__cause__, OSError)

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once_and_a_cancel_makes_room():
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch_size=1, queue_size=1)
        running = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.01)
        waiting = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFullError):
            await batcher.submit(2)
        waiting.cancel()
        await asyncio.sleep(0)
        admitted = asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0.01)
        gate.open.set()
        assert await asyncio.gather(running, admitted) == [0, 3]
        assert gate.batches == [[0], [3]]

    asyncio.run(scenario())


@pytest.mark.parametrize("limits", [{"max_batch_size": 0}, {"queue_size": 0}])
def test_limits_below_one_are_refused(limits):
    with pytest.raises(ValueError, match="at least 1"):
        Batcher(Gate.__call__, **({"max_batch_size": 1, "queue_size": 1} | limits))
