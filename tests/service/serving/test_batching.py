"""The batcher's invariants, under every interleaving that Hypothesis finds, on a simulated clock.

A computation ends when a rule says so and time passes when a rule says so: nothing is waited for.
Who may start, who is refused and who makes room is decided here anew, from what was submitted.
"""

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.priority import Priority
from service.serving import waiting
from service.serving.batching import Batcher
from service.serving.exceptions import ClosedError, ComputeError, QueueFullError
from tests.service.waiting import turns

PASSES = waiting.PASSES


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
    shared: bool  # the deadline does not end the wait, and others may join it
    priority: Priority
    place: int = -1  # grows in the order in which they came to wait with their priority
    task: asyncio.Task = field(init=False)
    refusal: str | None = None  # what the batcher's state at its turn called for
    ran: bool = False
    cancelled: bool = False
    failed: bool = False  # a batch with one of its items failed
    shed: bool = False  # it had to make room
    passed: bool = False  # it had ended, and the batcher has taken note of that
    computed: list[int] = field(default_factory=list)  # its items that reached the computation

    @property
    def items(self):
        return [(self.number, index) for index in range(self.count)]

    @property
    def over(self):
        """Nobody wants it any more, whether or not the batcher has heard of that."""
        return self.failed or self.task.cancelling() > 0  # its deadline cancels it too

    @property
    def left(self):
        return self.count - len(self.computed)

    @property
    def queued(self):
        gone = self.shed or self.passed or self.task.done()
        return self.ran and not self.refusal and not gone and self.left > 0

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

    @initialize(
        limit=st.integers(1, 4),
        size=st.integers(1, 8),
        concurrency=st.integers(1, 3),
        passes=st.integers(1, 3),
    )
    def start(self, limit, size, concurrency, passes):
        waiting.PASSES = passes  # fewer than in earnest, so that a short run of steps has them
        self.passes = dict.fromkeys(Priority, 0)  # batches of others since, while it waited
        self.places = 0
        self.most = size
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
        self.started([self.submits[number] for number, _ in items])
        for number, index in items:
            submit = self.submits[number]
            assert not submit.cancelled, "a cancelled item that waited is never computed"
            assert not submit.failed, "what failed already is not computed further"
            assert not submit.shed, "what had to make room is not computed further"
            assert not submit.task.done()
            assert index == len(submit.computed), "each item once, in order"
            submit.computed.append(index)
            for one in self.waiting(submit.priority):
                assert one.place >= submit.place, "first in, first out"
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

    def started(self, submits):
        """A batch of these has just left the queue: may it, and whom did it pass over?"""
        (priority,) = {submit.priority for submit in submits}
        counts = {other: self.batcher.waiting_of(other) for other in Priority}
        for one in self.queue(priority):
            one.passed = one.over and one.place < submits[-1].place
        if any(self.waiting(higher) for higher in Priority if higher < priority):
            assert self.passes[priority] >= waiting.PASSES, "a lower one delays no higher one"
        for other in Priority:
            passed = counts[other] and other != priority
            self.passes[other] = self.passes[other] + 1 if passed else 0
            assert self.passes[other] <= waiting.PASSES + 1, "nothing starves"

    def waiting(self, priority):
        """What waits with a priority and is wanted still, oldest first."""
        return [one for one in self.queue(priority) if not one.over]

    def queue(self, priority):
        """The same with what has ended, of which the batcher has not heard yet."""
        queued = [one for one in self.submits if one.queued and one.priority == priority]
        if not self.batcher.waiting_of(priority):  # it has, in search of something to start
            for one in queued:
                one.passed = one.over
            queued = [one for one in queued if not one.passed]
        return sorted(queued, key=lambda one: one.place)

    async def call(self, submit):
        """What `submit` must do is decided by what it finds, in the same turn of the loop."""
        for priority in Priority:
            self.queue(priority)  # takes note of what the batcher has passed over
        submit.ran = True
        idle = not self.batcher.waiting and not self.runs
        seconds = self.batcher.expected_seconds(submit.count, submit.priority)
        late = submit.deadline is not None and self.loop.now + seconds > submit.deadline
        # What free slots take in the next turn does not count: a batch of one priority each.
        alone = self.batcher.waiting == self.batcher.waiting_of(submit.priority)
        free = max(0, self.concurrency - len(self.runs)) * (self.limit if alone else 1)
        missing = self.batcher.waiting + submit.count - self.size - free
        lower = [priority for priority in reversed(Priority) if priority > submit.priority]
        yielding = [one for other in lower for one in reversed(self.queue(other)[1:])]
        full = missing > sum(one.left for one in yielding) and missing > 0
        if submit.count == 1:
            assert full == (self.batcher.full_for(submit.priority) is not None)
            larger = any(one.count > self.size for one in self.submits)  # which no server lets in
            assert not full or larger or self.batcher.full_for(Priority.BACKGROUND) is not None
        if full:
            submit.refusal = "QueueFullError"
        elif late and not idle:
            submit.refusal = "DeadlineError"
        else:
            for one in yielding:
                if missing > 0:
                    one.shed = True
                    missing -= one.left
            self.come_to_wait(submit)
        key = submit.number if submit.shared else None
        return await self.batcher.submit(
            submit.items, submit.deadline, priority=submit.priority, shared=key
        )

    def come_to_wait(self, submit):
        submit.place = self.places
        self.places += 1

    @rule(
        counts=st.lists(st.integers(1, 3), min_size=1, max_size=5),
        patience=st.none() | st.floats(0.001, 3),
        shared=st.booleans(),
        priorities=st.lists(st.sampled_from(Priority), min_size=5, max_size=5),
    )
    def submit(self, counts, patience, shared, priorities):
        for count, priority in zip(counts, priorities, strict=False):
            deadline = None if patience is None else self.loop.now + patience
            submit = Submit(len(self.submits), count, deadline, shared, priority)
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

    @precondition(lambda self: any(one.shared and one.queued for one in self.submits))
    @rule(data=st.data(), priority=st.sampled_from(Priority))
    def join(self, data, priority):
        shared = [one for one in self.submits if one.shared and one.queued]
        submit = data.draw(st.sampled_from(shared), label="joined")
        waits = submit in self.queue(submit.priority)
        self.batcher.promote(submit.number, priority)
        if waits and priority < submit.priority:
            submit.priority = priority
            self.come_to_wait(submit)
            if len(self.runs) < self.concurrency:
                # Of what free slots were to take in the next turn, they may now take less.
                self.most = max(self.most, self.batcher.waiting)
        self.settled = False

    @rule(concurrency=st.integers(1, 4))
    def resize(self, concurrency):
        """An engine went down, or is back."""
        self.loop.call_soon(self.resize_now, concurrency)
        self.settled = False

    def resize_now(self, concurrency):
        self.batcher.resize(concurrency)
        self.concurrency = concurrency
        self.most = max(self.most, self.batcher.waiting)  # some counted on slots that are gone

    @precondition(lambda self: any(not run.gate.done() for run in self.runs))
    @rule(
        data=st.data(),
        how=st.sampled_from(["return", "return", "return", "raise", "cancel", "short"]),
    )
    def finish(self, data, how):
        running = [run for run in self.runs if not run.gate.done()]
        data.draw(st.sampled_from(running), label="finished").gate.set_result(how)
        self.settled = False

    @rule(batches=st.integers(2, 12))
    def finish_several(self, batches):
        """One after the other, each with what waits when it ends."""
        for _ in range(batches):
            self.settle()
            if not self.runs:
                return
            self.runs[0].gate.set_result("return")
        self.settle()

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
                assert not submit.shed
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
                    ("QueueFullError", submit.shed),
                }

    @invariant()
    def no_place_is_free_while_an_item_waits(self):
        if not self.settled:
            return
        accepted = [one for one in self.submits if one.ran and not one.refusal]
        live = [one for one in accepted if not one.task.done()]
        waiting = sum(one.left for one in live)
        assert self.batcher.waiting == waiting <= self.most
        if waiting <= self.size:
            self.most = self.size
        assert not waiting or len(self.runs) >= self.concurrency, "more after it was made smaller"
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
        waiting.PASSES = PASSES
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


def test_of_ten_batches_one_is_of_each_priority_that_waits():
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch_size=1, queue_size=99)
        first = asyncio.create_task(batcher.submit(["first"]))
        await turns()
        waiting = [
            asyncio.create_task(batcher.submit([str(priority)], priority=priority))
            for priority in reversed(Priority)
            for _ in range(20)
        ]
        await turns()
        gate.open.set()
        await asyncio.gather(first, *waiting)
        return "".join(name[:2] for (name,) in gate.batches[1:])

    drawn = asyncio.run(scenario())
    assert drawn == (
        "in" * 8 + "buba" + "in" * 7 + "buba" + "in" * 5  # all interactive ones in 24 batches
        + "bu" * 3 + "ba" + "bu" * 8 + "ba" + "bu" * 7 + "ba" * 16
    )  # fmt: skip


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


def test_slots_that_come_are_used_at_once_and_those_that_go_end_with_their_batch():
    async def scenario():
        gate = Gate()
        batcher = Batcher(gate, max_batch_size=1, queue_size=9)
        accepted = [asyncio.create_task(batcher.submit([number])) for number in range(5)]
        await turns()
        assert gate.batches == [[0]]
        batcher.resize(3)
        await turns()
        assert gate.batches == [[0], [1], [2]]
        batcher.resize(1)
        gate.open.set()
        assert await asyncio.gather(*accepted) == [[0], [1], [2], [3], [4]]
        with pytest.raises(ValueError, match="at least 1"):
            batcher.resize(0)

    asyncio.run(scenario())


@pytest.mark.parametrize("limits", [{"max_batch_size": 0}, {"queue_size": 0}, {"concurrency": 0}])
def test_limits_below_one_are_refused(limits):
    with pytest.raises(ValueError, match="at least 1"):
        Batcher(Gate.__call__, **({"max_batch_size": 1, "queue_size": 1} | limits))
