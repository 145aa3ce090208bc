"""The batcher's invariants, under every interleaving that Hypothesis finds, on a simulated clock.

A computation ends when a rule says so and time passes when a rule says so: nothing is waited for.
"""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.serving.batching import Batcher
from service.serving.exceptions import ClosedError, ComputeError, QueueFullError
from tests.service.waiting import turns


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until it is told to move."""

    now = 1000.0

    def time(self):
        return self.now

    def settle(self):
        for _ in range(8):
            self.run_until_complete(asyncio.sleep(0))


@dataclass(eq=False)
class Submit:
    """One call of submit: what it asked, what it met when it ran, what came of it."""

    number: int
    count: int
    deadline: float | None
    shared: bool  # the deadline does not end the wait
    task: asyncio.Task = field(init=False)
    refusal: str | None = None  # what the batcher's state at its turn called for
    ran: bool = False
    cancelled: bool = False
    failed: bool = False  # a batch with one of its items failed
    computed: list[int] = field(default_factory=list)  # its items that reached the computation

    @property
    def items(self):
        return [(self.number, index) for index in range(self.count)]

    def outcome(self):
        if not self.task.done():
            return None
        if self.task.cancelled():
            return "cancelled"
        error = self.task.exception()
        return type(error).__name__ if error else self.task.result()


@dataclass(eq=False)
class Run:
    """One call of the computation, and the gate that ends it."""

    items: list
    gate: asyncio.Future


class Batching(RuleBasedStateMachine):
    """Rules act at once or in bursts between two turns of the loop; invariants judge the trace."""

    @initialize(limit=st.integers(1, 4), size=st.integers(1, 8), concurrency=st.integers(1, 3))
    def start(self, limit, size, concurrency):
        self.loop = SimulatedLoop()
        self.limit, self.size, self.concurrency = limit, size, concurrency
        self.batcher = Batcher(
            self.compute, max_batch_size=limit, queue_size=size, concurrency=concurrency
        )
        self.submits: list[Submit] = []
        self.runs: list[Run] = []
        self.settled = True

    async def compute(self, items, reason):
        run = Run(items, self.loop.create_future())
        self.runs.append(run)
        assert 1 <= len(items) <= self.limit
        assert len(self.runs) <= self.concurrency
        assert reason in ("idle", "freed", "full")
        for number, index in items:
            submit = self.submits[number]
            assert not submit.cancelled, "a cancelled item that waited is never computed"
            assert not submit.failed, "what failed already is not computed further"
            assert not submit.task.done()
            assert index == len(submit.computed), "each item once, in order"
            submit.computed.append(index)
            earlier = [one for one in self.submits[:number] if one.ran and not one.refusal]
            for one in earlier:
                over = one.task.done() or one.cancelled or one.failed
                assert over or len(one.computed) == one.count, "first in, first out"
        try:
            how = await run.gate
        finally:
            self.runs.remove(run)
        if how != "return":
            for number, _ in items:
                self.submits[number].failed = True
        if how == "raise":
            raise OSError("the engine broke")
        if how == "cancel":
            raise asyncio.CancelledError  # as a future of a shut-down executor does
        results = [f"result {item}" for item in items]
        return results if how == "return" else results[1:]

    async def call(self, submit):
        """What `submit` must do is decided by what it finds, in the same turn of the loop."""
        submit.ran = True
        waiting, idle = self.batcher.waiting, not self.batcher.waiting and not self.runs
        late = submit.deadline is not None and (
            self.loop.now + self.batcher.expected_seconds(submit.count) > submit.deadline
        )
        free = (self.concurrency - len(self.runs)) * self.limit  # is taken in the next turn
        if waiting + submit.count > self.size + free:
            submit.refusal = "QueueFullError"
        elif late and not idle:
            submit.refusal = "DeadlineError"
        return await self.batcher.submit(submit.items, submit.deadline, shared=submit.shared)

    @rule(
        counts=st.lists(st.integers(1, 3), min_size=1, max_size=5),
        patience=st.none() | st.floats(0.001, 3),
        shared=st.booleans(),
    )
    def submit(self, counts, patience, shared):
        for count in counts:
            deadline = None if patience is None else self.loop.now + patience
            submit = Submit(len(self.submits), count, deadline, shared)
            self.submits.append(submit)
            submit.task = self.loop.create_task(self.call(submit))
        self.settled = False

    @precondition(lambda self: any(not submit.task.done() for submit in self.submits))
    @rule(data=st.data())
    def cancel(self, data):
        pending = [submit for submit in self.submits if not submit.task.done()]
        submit = data.draw(st.sampled_from(pending), label="cancelled")
        submit.task.cancel()
        submit.cancelled = True
        self.settled = False

    @precondition(lambda self: any(not run.gate.done() for run in self.runs))
    @rule(
        data=st.data(),
        how=st.sampled_from(["return", "return", "return", "raise", "cancel", "short"]),
    )
    def finish(self, data, how):
        running = [run for run in self.runs if not run.gate.done()]
        data.draw(st.sampled_from(running), label="finished").gate.set_result(how)
        self.settled = False

    @rule(seconds=st.floats(0.001, 2))
    def time_passes(self, seconds):
        self.settle()
        self.loop.now += seconds
        self.settle()

    @rule()
    def settle(self):
        self.loop.settle()
        self.settled = True

    @invariant()
    def every_submit_ended_as_it_should(self):
        if not self.settled:
            return
        for submit in self.submits:
            outcome = submit.outcome()
            ends = None if submit.shared else submit.deadline
            expired = ends is not None and ends <= self.loop.now
            if outcome is None:
                assert not submit.refusal
                assert not submit.cancelled
                assert not submit.failed
                assert not expired, "a deadline ends the wait"
            elif isinstance(outcome, list):
                assert outcome == [f"result {item}" for item in submit.items]
            elif outcome == "cancelled":
                assert submit.cancelled
            elif submit.refusal:
                assert outcome == submit.refusal
                assert not submit.computed
            else:
                assert (outcome, True) in {
                    ("ComputeError", submit.failed),
                    ("DeadlineError", expired),
                }

    @invariant()
    def no_place_is_free_while_an_item_waits(self):
        if not self.settled:
            return
        accepted = [one for one in self.submits if one.ran and not one.refusal]
        live = [one for one in accepted if not one.task.done()]
        waiting = sum(one.count - len(one.computed) for one in live)
        assert self.batcher.waiting == waiting <= self.size
        assert not waiting or len(self.runs) == self.concurrency
        if not live and not self.runs:
            assert asyncio.all_tasks(self.loop) == set(), "an idle batcher costs nothing"

    @invariant()
    def nothing_is_computed_for_nobody(self):
        if self.settled:
            for run in self.runs:
                assert not all(self.submits[number].task.done() for number, _ in run.items)

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        self.settle()
        open_still = [submit for submit in self.submits if not submit.task.done()]
        self.loop.run_until_complete(self.batcher.close())
        self.loop.settle()
        assert {submit.outcome() for submit in open_still} <= {"ClosedError"}
        for submit in self.submits:
            submit.outcome()  # asks for the exception, which asyncio would write of otherwise
        assert asyncio.all_tasks(self.loop) == set()
        self.loop.close()


Batching.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestBatching = Batching.TestCase


class Gate:
    """A computation that ends when the test lets it."""

    def __init__(self):
        self.open = asyncio.Event()
        self.batches: list[list[int]] = []

    async def __call__(self, items, _reason):
        self.batches.append(items)
        await self.open.wait()
        return items


def test_what_waits_when_the_engine_frees_up_is_the_next_batch():
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch_size=3, queue_size=9)
        first = asyncio.create_task(batcher.submit([0]))
        await turns()
        others = [asyncio.create_task(batcher.submit([number])) for number in range(1, 6)]
        await turns()
        gate.open.set()
        assert await asyncio.gather(first, *others) == [[0], [1], [2], [3], [4], [5]]
        assert gate.batches == [[0], [1, 2, 3], [4, 5]]

    asyncio.run(scenario())


def test_draining_finishes_what_was_accepted_and_takes_no_more():
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch_size=1, queue_size=9)
        accepted = [asyncio.create_task(batcher.submit([number])) for number in range(3)]
        await asyncio.sleep(0)
        draining = asyncio.create_task(batcher.drain())
        await asyncio.sleep(0)
        with pytest.raises(ClosedError):
            await batcher.submit([3])
        assert not draining.done()
        gate.open.set()
        await draining
        assert await asyncio.gather(*accepted) == [[0], [1], [2]]
        await batcher.close()

    asyncio.run(scenario())


def test_a_computation_that_ignores_its_cancel_holds_no_submit_at_close():
    async def scenario():
        release = asyncio.Event()

        async def stubborn(items, _):
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
            return items

        batcher = Batcher(stubborn, max_batch_size=1, queue_size=9)
        waiters = [asyncio.create_task(batcher.submit([number])) for number in range(2)]
        await turns()
        closing = asyncio.create_task(batcher.close())
        ended = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(error) for error in ended] == [ClosedError, ClosedError]
        release.set()
        await closing

    asyncio.run(scenario())


def test_closing_before_the_first_batch_started_resolves_it():
    async def scenario():
        batcher = Batcher(Gate(), max_batch_size=1, queue_size=9)
        waiter = asyncio.create_task(batcher.submit([0]))
        await asyncio.sleep(0)  # the item is queued, its worker has not run yet
        await batcher.close()
        with pytest.raises(ClosedError):
            await waiter

    asyncio.run(scenario())


def test_each_failed_submit_has_an_exception_of_its_own_and_the_reason():
    async def scenario():
        async def broken(*_):
            raise OSError("out of memory")

        batcher = Batcher(broken, max_batch_size=2, queue_size=9)
        first, second = await asyncio.gather(
            batcher.submit([0]), batcher.submit([1]), return_exceptions=True
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
        running = asyncio.create_task(batcher.submit([0]))
        await turns()
        waiting = asyncio.create_task(batcher.submit([1]))
        await turns()
        with pytest.raises(QueueFullError):
            await batcher.submit([2])
        waiting.cancel()
        await asyncio.sleep(0)
        admitted = asyncio.create_task(batcher.submit([3]))
        await turns()
        gate.open.set()
        assert await asyncio.gather(running, admitted) == [[0], [3]]
        assert gate.batches == [[0], [3]]

    asyncio.run(scenario())


def test_what_is_admitted_is_queued_in_the_same_step_so_that_no_two_take_one_place():
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch_size=1, queue_size=1)
        running = asyncio.create_task(batcher.submit([0]))
        await asyncio.sleep(0.01)
        admitted = batcher.submit([1])
        assert batcher.waiting == 1
        with pytest.raises(QueueFullError):
            batcher.submit([2])
        gate.open.set()
        assert await asyncio.gather(running, admitted) == [[0], [1]]

    asyncio.run(scenario())


@pytest.mark.parametrize("limits", [{"max_batch_size": 0}, {"queue_size": 0}, {"concurrency": 0}])
def test_limits_below_one_are_refused(limits):
    with pytest.raises(ValueError, match="at least 1"):
        Batcher(Gate.__call__, **({"max_batch_size": 1, "queue_size": 1} | limits))
