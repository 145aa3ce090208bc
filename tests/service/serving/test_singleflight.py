"""Work that is asked for at the same time is done once, whoever leaves."""

import asyncio
import traceback

import pytest

from service.engines import EngineError
from service.http.security import RateLimitedError
from service.serving.exceptions import ComputeError, QueueFullError
from service.serving.singleflight import SingleFlight
from tests.service.waiting import turns


class Work:
    """Work that ends when the test lets it, and counts how it went."""

    def __init__(self):
        self.started = self.cancelled = 0
        self.end = asyncio.Event()
        self.error = None

    async def __call__(self):
        self.started += 1
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error:
            raise self.error
        return self.started


async def callers(in_flight, work, count, key="key"):
    tasks = [asyncio.create_task(in_flight.run(key, work)) for _ in range(count)]
    await turns()
    return tasks


def test_callers_at_the_same_time_share_and_later_ones_do_not():
    async def scenario():
        in_flight, work = SingleFlight(), Work()
        tasks = await callers(in_flight, work, 3)
        other = await callers(in_flight, work, 1, key="another")
        assert in_flight.is_running("key")
        work.end.set()
        assert await asyncio.gather(*tasks) == [2, 2, 2]
        assert await asyncio.gather(*other) == [2]
        assert not in_flight.is_running("key")
        assert await in_flight.run("key", work) == 3

    asyncio.run(scenario())


def test_the_first_caller_may_leave_and_only_the_last_ends_the_work():
    async def scenario():
        in_flight, work = SingleFlight(), Work()
        first, second, third = await callers(in_flight, work, 3)
        first.cancel()
        third.cancel()
        await turns()
        assert (work.started, work.cancelled) == (1, 0)
        second.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        await asyncio.sleep(0)
        assert (work.started, work.cancelled) == (1, 1)
        assert not in_flight.is_running("key")

    asyncio.run(scenario())


def test_after_everybody_left_the_next_caller_gets_work_of_its_own():
    async def scenario():
        in_flight, work = SingleFlight(), Work()
        (only,) = await callers(in_flight, work, 1)
        only.cancel()
        again = asyncio.create_task(in_flight.run("key", work))  # before the cancel had its turn
        await turns()
        work.end.set()
        assert await asyncio.wait_for(again, 5) in (1, 2)

    asyncio.run(scenario())


def frames(error):
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


@pytest.mark.parametrize(
    "error",
    [
        OSError(2, "No such file", "weights"),
        KeyError("key"),
        QueueFullError(1.5),
        RateLimitedError(2.5),
        EngineError("tiny: broken"),
        ComputeError(),
    ],
)
def test_a_failure_reaches_every_caller_as_an_exception_of_its_own(error):
    async def scenario():
        in_flight, work = SingleFlight(), Work()
        work.error = error
        error.__cause__ = ValueError("why")
        error.add_note("seen by the first")
        tasks = await callers(in_flight, work, 9)
        work.end.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    caught = asyncio.run(scenario())
    assert len({id(one) for one in [error, *caught]}) == 10
    for one in caught:
        assert type(one) is type(error)
        assert (one.args, str(one), vars(one)) == (error.args, str(error), vars(error))
        assert one.__cause__ is error.__cause__
        assert frames(one) == frames(caught[0]), "no longer for the last than for the first"
        assert "__call__" in frames(one), "it says where the work failed"
