"""The simulated gateway obeys the laws of queues, and its parts do what they say."""

import asyncio
import dataclasses
import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.plan.arrivals import BURST, SHAPES, arrivals
from service.plan.clock import SimulatedLoop
from service.plan.curve import Course
from service.plan.measure import ranks
from service.plan.simulation import Gateway, simulate
from service.plan.times import ServiceTimes, gateway_times, loop_costs
from service.priority import Priority
from tests.service.plan.curves import make_curve, two_cores, with_course, with_pauses, with_served

ENDLESS = 10**6  # a queue that nothing fills


def mean(values):
    return math.fsum(values) / len(values)


def run(gateway, curve, rate, *, shape="poisson", replicas=1, count=10_000, beside=0.0):
    due = arrivals(shape, rate, replicas, count, Random(0))
    return simulate(gateway, ServiceTimes(curve, beside), due, random=Random(1))


@pytest.mark.parametrize(("load", "count"), [(0.3, 10_000), (0.6, 10_000), (0.8, 60_000)])
def test_one_image_at_a_time_waits_as_long_as_queueing_theory_says(load, count):
    """M/D/1: independent arrivals, one server, the same time for each."""
    curve = make_curve(lambda *_: 10.0)
    outcome = run(Gateway(1, 1, ENDLESS), curve, load * 100, count=count)
    expected = 0.010 * (1 + load / (2 * (1 - load)))
    assert mean(outcome.latencies) == pytest.approx(expected, rel=0.04)
    assert outcome.utilisation == pytest.approx(load, rel=0.02)


def test_a_gateway_that_is_asked_once_an_hour_is_no_riddle_to_the_clock():
    """After years a clock in seconds is rounded to more than what is left of a batch."""
    due = [3600.0 * hour + n / 1000 for hour in range(10_000_000, 10_000_100) for n in range(3)]
    outcome = simulate(Gateway(3, 8, 9), ServiceTimes(two_cores(), 0), due, random=Random(1))
    assert len(outcome.latencies) == 300
    assert outcome.latencies[-1] < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_utilisation_is_the_rate_of_arrivals_times_the_time_of_service(shape):
    curve = make_curve(lambda *_: 10.0, slots=2)  # the slots do not slow each other down
    outcome = run(Gateway(2, 1, ENDLESS), curve, 120, shape=shape)
    assert outcome.utilisation == pytest.approx(120 * 0.010 / 2, rel=0.03)


def test_the_number_under_way_is_the_rate_times_the_time_it_takes():
    """Little's law; independent arrivals see the average (PASTA)."""
    for load in (0.4, 0.85):
        gateway = Gateway(3, 8, ENDLESS, loop_seconds=0.00035)
        rate = load * gateway.peak(ServiceTimes(two_cores(), 0.35))
        outcome = run(gateway, two_cores(), rate, count=15_000, beside=0.35)
        # As the loop ends with a request when its answer goes out, shortly after the batch.
        assert outcome.in_system == pytest.approx(rate * mean(outcome.latencies), rel=0.1)


@settings(deadline=None, max_examples=30)
@given(
    slots=st.integers(1, 3),
    limit=st.sampled_from([1, 2, 4, 8]),
    queue=st.integers(1, 40),
    load=st.floats(0.1, 3),
    shape=st.sampled_from(SHAPES),
    replicas=st.integers(1, 50),
)
def test_each_request_is_answered_or_refused_and_none_before_it_can_be(
    slots, limit, queue, load, shape, replicas
):
    times = ServiceTimes(two_cores(), 0.35)
    gateway = Gateway(slots, limit, queue, 0.00035, 0.0004)
    due = arrivals(shape, load * gateway.peak(times) * replicas, replicas, 200, Random(0))
    start = due[50]
    outcome = simulate(gateway, times, due, counted_from=start, random=Random(1))
    counted = sum(one >= start for one in due)
    assert len(outcome.latencies) + outcome.refused == counted
    fastest = two_cores().cells[0].milliseconds[0] / 1000
    assert all(one >= 0.00035 + 0.0004 + fastest for one in outcome.latencies)
    assert list(outcome.latencies) == sorted(outcome.latencies)
    assert 0 < outcome.utilisation <= 1 + 1e-9
    assert outcome == simulate(gateway, times, due, counted_from=start, random=Random(1))


def test_a_gateway_that_is_asked_too_much_draws_what_it_can_and_refuses_the_rest():
    curve = two_cores(spread=(1,) * 9)
    gateway = Gateway(3, 8, 64, 0.00035)
    times = ServiceTimes(curve, 0.35)
    peak = gateway.peak(times)
    due = arrivals("poisson", 1.5 * peak, 1, 10_000, Random(0))
    outcome = simulate(gateway, times, due, random=Random(1))
    assert len(outcome.latencies) / due[-1] == pytest.approx(peak, rel=0.03)
    assert outcome.refused / len(due) == pytest.approx(1 / 3, rel=0.05)
    assert outcome.percentile(99) == math.inf, "a refused request is none that was in time"
    assert outcome.latencies[-1] < 1.2 * (64 + 2 * 24) / peak, "the queue limits the wait"


def mixed(count):
    """A priority for each of so many requests: half of them are interactive."""
    return Random(2).choices([*Priority], [0.5, 0.3, 0.2], k=count)


@pytest.mark.parametrize("load", [0.5, 0.9, 1.6])
def test_lower_priorities_never_have_the_highest_answered_sooner(load):
    """Beside those who yield to them, the same requests wait for what is under way already."""
    curve = two_cores(spread=(1,) * 9)  # so that no luck of the engine's is in the comparison
    times, gateway = ServiceTimes(curve, 0.35), Gateway(3, 4, 64, 0.00035)
    due = arrivals("poisson", load * gateway.peak(times), 1, 8_000, Random(0))
    priorities = mixed(len(due))
    pairs = zip(due, priorities, strict=True)
    urgent = [when for when, priority in pairs if priority is Priority.INTERACTIVE]
    alone = simulate(gateway, times, urgent, random=Random(1))
    beside = simulate(gateway, times, due, priorities=priorities, random=Random(1)).most_urgent
    assert beside.refused >= alone.refused
    for percent in (50, 90, 99):
        assert beside.percentile(percent) >= 0.99 * alone.percentile(percent)
    assert beside.waited >= alone.waited


@pytest.mark.parametrize("load", [1.2, 1.7, 3])
def test_of_too_much_the_lowest_priority_is_refused_first(load):
    """What is shed to make room for others counts as refused, and everything is accounted for."""
    curve = two_cores()
    times, gateway = ServiceTimes(curve, 0.35), Gateway(3, 8, 64, 0.00035)
    due = arrivals("poisson", load * gateway.peak(times), 1, 8_000, Random(0))
    priorities = mixed(len(due))
    outcome = simulate(gateway, times, due, priorities=priorities, random=Random(1))
    parts = outcome.by_priority
    assert list(parts) == [*Priority]
    for priority, part in parts.items():
        assert len(part.latencies) + part.refused == priorities.count(priority)
    refused = [part.refused_share for part in parts.values()]
    assert refused == sorted(refused)
    assert refused[0] < refused[-1]
    assert outcome.refused == sum(part.refused for part in parts.values())
    assert outcome.refused_share == pytest.approx(1 - 1 / load, abs=0.06)


def test_slots_that_share_a_machine_do_no_more_than_one_that_has_it_alone():
    """Two slots, each half as fast while both work: what one computes, two compute."""
    curve = make_curve(lambda busy, _: 10.0 * busy, slots=2)
    alone = run(Gateway(1, 1, 5), curve, 300)
    both = run(Gateway(2, 1, 5), curve, 300)
    assert len(both.latencies) == pytest.approx(len(alone.latencies), rel=0.01)


def test_a_slow_event_loop_is_the_limit_of_a_fast_engine():
    curve = make_curve(lambda *_: 1.0, batches=(1, 64), cores=16)
    gateway = Gateway(1, 64, 100, loop_seconds=0.001)
    assert gateway.peak(ServiceTimes(curve, 1.0)) == pytest.approx(1000)
    busy = run(gateway, curve, 900, beside=1.0)
    assert busy.latencies
    assert not busy.refused
    assert busy.percentile(50) > 2 * run(gateway, curve, 10, beside=1.0).percentile(50)


SECONDS_APART = [float(n) for n in range(200)]


def test_a_batch_after_a_pause_takes_longer_and_one_that_follows_another_does_not():
    curve = with_pauses(make_curve(lambda _, batch: 10.0 * batch, batches=(1, 4)), longer=1.5)
    times, gateway = gateway_times(curve), Gateway.measured(curve, 1, 4, ENDLESS)
    lone = simulate(gateway, times, SECONDS_APART, random=Random(1))
    assert lone.latencies == pytest.approx([0.015] * 200, rel=1e-3)
    at_once = simulate(gateway, times, [0.0] * 400, random=Random(1))
    assert at_once.latencies[-1] == pytest.approx(400 * 0.010, rel=0.02)


def test_being_woken_costs_the_loop_what_a_lone_request_costs_more_than_one_of_many():
    curve = make_curve(lambda *_: 10.0, batches=(1, 8), loop_ms=0.2, lone_ms=0.7)
    curve = with_pauses(curve, lone_loop_ms=0.55)
    request, wake = loop_costs(curve)
    assert request + 2 * wake == pytest.approx(0.55)  # for itself, and for its image
    assert request + 2 * wake / 8 == pytest.approx(0.2)  # eight at a time, both ways
    times, gateway = gateway_times(curve), Gateway.measured(curve, 1, 8, ENDLESS)
    lone = simulate(gateway, times, SECONDS_APART, random=Random(1))
    assert lone.latencies == pytest.approx([0.0107] * 200, rel=1e-3), "as was measured"


def test_an_event_loop_is_woken_late_and_so_is_a_client_beside_it():
    curve = with_pauses(make_curve(lambda *_: 10.0), late=lambda busy: 2.0 + 3 * busy)
    times, gateway = gateway_times(curve), Gateway.measured(curve, 1, 1, ENDLESS)
    far = simulate(gateway, times, SECONDS_APART, random=Random(1))
    assert far.latencies == pytest.approx([0.012] * 200)
    beside = dataclasses.replace(gateway, beside_client=True)
    near = simulate(beside, times, SECONDS_APART, random=Random(1))
    assert near.latencies == pytest.approx([0.016] * 200), "to send, to take it in, to hear"
    # The second of two comes while the slot is busy, and does not delay the first.
    pairs = sorted([*SECONDS_APART, *(when + 0.005 for when in SECONDS_APART)])
    assert simulate(gateway, times, pairs, random=Random(1)).latencies[0] == pytest.approx(0.012)


def test_a_curve_where_pauses_make_no_difference_is_as_one_that_does_not_know_them():
    curve = two_cores()
    due = arrivals("poisson", 400.0, 1, 5_000, Random(0))
    before, after = (
        simulate(Gateway.measured(one, 3, 8, 99), gateway_times(one), due, random=Random(1))
        for one in (curve, with_pauses(curve))
    )
    for percent in (50, 99):
        assert after.percentile(percent) == pytest.approx(before.percentile(percent), rel=0.1)


def test_slow_batches_that_come_together_make_the_latest_later_and_no_batch_slower():
    singly = make_curve(lambda *_: 10.0, spread=(0.5, 0.6, 0.75, 1, 1.25, 1.4, 1.5, 1.7, 2))
    gateway = Gateway(1, 1, ENDLESS)
    outcomes = {spell: run(gateway, with_course(singly, spell=spell), 70) for spell in (0.001, 0.5)}
    alone = run(gateway, singly, 70)
    for spell, outcome in outcomes.items():
        assert outcome.utilisation == pytest.approx(alone.utilisation, rel=0.05), spell
    assert outcomes[0.001].percentile(99) == pytest.approx(alone.percentile(99), rel=0.15)
    assert outcomes[0.5].percentile(99) > 1.5 * alone.percentile(99)


def test_batches_take_as_long_as_was_measured_behind_http():
    curve = make_curve(lambda busy, batch: busy + batch, slots=3, batches=(1, 4), cores=3)
    before, after = (gateway_times(one) for one in (curve, with_served(curve, 1.1, 1.5, 2.0)))
    longer = {(1, 1): 1.1, (1, 3): 1.5, (1, 2): 1.3, (4, 1): 2.0, (4, 3): 2.0, (2, 1): 1.4}
    for (size, busy), factor in longer.items():
        assert after.mean(size, busy) == pytest.approx(factor * before.mean(size, busy))
        for rested in (False, True):
            seconds = [one.draw(size, 0.5, rested=rested)[busy - 1] for one in (before, after)]
            assert seconds[1] == pytest.approx(factor * seconds[0])


def test_an_engine_of_single_images_takes_as_long_as_where_most_wait():
    curve = make_curve(lambda busy, _: 10.0 * busy, slots=3, cores=3)
    slower = gateway_times(with_served(curve, 1.0, 1.0, 2.0))
    assert slower.mean(1, 1) == pytest.approx(0.010)
    assert slower.mean(1, 3) == pytest.approx(0.060)


def test_where_http_is_slower_than_the_engine_the_batches_that_there_were_count():
    curve = make_curve(lambda _, batch: 1.0 + batch, slots=2, batches=(1, 64))
    first, second, full = with_served(curve, 1.0).served
    small = full.model_copy(update={"batch": 9.0, "milliseconds": 2 * 10.0})
    times = gateway_times(curve.model_copy(update={"served": [first, second, small]}))
    assert times.mean(9, 2) == pytest.approx(2 * 0.010)
    assert times.mean(64, 2) == pytest.approx(2 * 0.065)


@pytest.mark.parametrize("count", [1, 2, 999, 5000])
def test_the_ranks_of_however_many_batches_are_those_of_a_course(count):
    """Of more than two thousand the slowest must not be rounded to 1."""
    taken = [0.010 + (7919 * n % count) * 1e-5 for n in range(count)]
    course = Course(began=list(range(count)), ranks=ranks(taken), seconds=count)
    assert math.fsum(course.ranks) / count == pytest.approx((count - 1) / count / 2, abs=0.001)
    assert course.ranks[taken.index(max(taken))] == max(course.ranks)


def test_the_event_loop_takes_the_engines_time_where_no_processor_is_idle():
    curve = make_curve(lambda _, batch: 10.0 * batch, slots=3, batches=(1, 4), cores=2)
    times = ServiceTimes(curve, 0.5)
    assert times.mean(4, 1) == pytest.approx(0.040), "the second core serves the loop"
    # Three batches of four on two cores, and twelve requests' half milliseconds with them.
    assert times.mean(4, 3) == pytest.approx(0.040 + 12 * 0.0005 / 2)
    assert times.mean(2, 1) == pytest.approx(0.020), "between measured sizes"


def test_batches_take_as_long_as_was_measured_from_the_fastest_to_the_slowest():
    times = ServiceTimes(two_cores(), 0)
    random = Random(0)
    drawn = sorted(times.draw(1, random.random())[0] for _ in range(20_000))
    measured = two_cores().cells[0].milliseconds
    for percent, milliseconds in ((10, measured[1]), (50, measured[3]), (90, measured[5])):
        assert drawn[len(drawn) * percent // 100] == pytest.approx(milliseconds / 1000, rel=0.02)
    assert measured[0] / 1000 <= drawn[0]
    assert drawn[-1] <= measured[-1] / 1000


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("replicas", [1, 7, 1000])
def test_each_gateway_gets_its_share_of_the_arrivals(shape, replicas):
    due = arrivals(shape, 500.0, replicas, 40_000, Random(0))
    assert due == sorted(due)
    assert len(due) / due[-1] == pytest.approx(500 / replicas, rel=0.03)


def test_bursts_come_whole_to_the_only_gateway_and_evenly_steady_requests():
    bursts = arrivals("bursts", 100.0, 1, 1000, Random(0))
    assert all(len(set(bursts[i : i + BURST])) == 1 for i in range(0, 1000, BURST))
    steady = arrivals("steady", 100.0, 1, 1000, Random(0))
    assert steady == pytest.approx([n / 100 for n in range(1, 1001)])


def test_the_clock_passes_by_itself_and_never_back():
    async def sleeper():
        loop = asyncio.get_running_loop()
        seen = []
        woken = loop.create_future()
        loop.at(3600.0, seen.append, "last")
        loop.at(5.0, seen.append, "second")
        loop.at(-1.0, seen.append, "first")
        loop.at(3600.0, woken.set_result, None)
        await woken
        return seen, loop.time()

    assert SimulatedLoop().run(sleeper()) == (["first", "second", "last"], 3600.0)


def test_who_waits_for_nothing_on_the_clock_is_told():
    async def forever():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="nothing is left to happen"):
        SimulatedLoop().run(forever())
