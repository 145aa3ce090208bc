"""Put a load on a server and report: `closed` and `open_loop`, each in an event loop of its own."""

import asyncio
import gc
import math
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

from service.bench.loops import ClosedLoop, OpenLoop
from service.bench.report import Report, summarise
from service.bench.target import BenchError, Target

ARRIVALS = ("poisson", "even")

_MOST_REQUESTS = 10_000_000  # the schedule is made ahead, and kept in memory
_REACH_SECONDS = 5


def closed(
    target: Target,
    connections: int = 1,
    *,
    warmup: float = 1.0,
    duration: float = 5.0,
    timeout: float = 10.0,
) -> Report:
    """Keep `connections` requests under way: what can the server do?

    Args:
        target: what is sent, and where.
        connections: how many connections; each sends its next request when it has its answer.
        warmup: seconds of load before anything counts.
        duration: seconds that count.
        timeout: seconds that what is unanswered at the end is waited for.

    Raises:
        BenchError: the server is out of reach, or a number is out of range.
    """
    _check(warmup=warmup, timeout=timeout)
    check_positive(connections=connections, duration=duration)

    async def measure() -> Report:
        load = ClosedLoop(target, await _reach(target), connections)
        cpu, start = time.process_time(), time.perf_counter()
        end = start + warmup + duration
        load.start(end)
        await load.finish(end + timeout)
        return summarise(
            load.samples,
            (start + warmup, end),
            mode="closed",
            connections=connections,
            warmup=warmup,
            images=target.images,
            cpu_seconds=time.process_time() - cpu,
        )

    return _run(measure)


def open_loop(
    target: Target,
    rate: float,
    *,
    arrivals: str = "poisson",
    max_connections: int = 512,
    warmup: float = 1.0,
    duration: float = 5.0,
    timeout: float = 10.0,
) -> Report:
    """Send `rate` requests a second on a schedule: what would users feel?

    Latency counts from the time a request was due, not from when it could be sent: a server that
    stalls delays what comes after, too, and waiting for it must not hide that.

    Args:
        target: what is sent, and where.
        rate: requests a second.
        arrivals: "poisson" (as independent users send, the same times in every run) or "even".
        max_connections: how many connections may be opened; an arrival that finds all of them
            busy is reported as not sent.
        warmup, duration, timeout: as for `closed`.

    Raises:
        BenchError: the server is out of reach, or a number is out of range.
    """
    _check(warmup=warmup, timeout=timeout)
    check_arrivals(arrivals)
    check_positive(rate=rate, duration=duration, max_connections=max_connections)

    async def measure() -> Report:
        address = await _reach(target)
        offsets = schedule(rate, warmup + duration, arrivals)
        load = OpenLoop(target, address, max_connections)
        cpu, start = time.process_time(), time.perf_counter()
        end = start + warmup + duration
        load.start(start, offsets)
        await load.finish(end + timeout)
        return summarise(
            load.samples,
            (start + warmup, end),
            mode="open",
            rate=rate,
            arrivals=arrivals,
            connections=load.peak,
            warmup=warmup,
            images=target.images,
            cpu_seconds=time.process_time() - cpu,
        )

    return _run(measure)


def schedule(rate: float, seconds: float, arrivals: str) -> list[float]:
    """When requests are due, in seconds from the start, ascending.

    Raises:
        BenchError: more requests than anybody means.
    """
    if rate * seconds > _MOST_REQUESTS:
        raise BenchError(f"rate: {rate:g}/s for {seconds:g} s is more than {_MOST_REQUESTS:,}")
    if arrivals == "even":
        return [i / rate for i in range(math.ceil(rate * seconds))]
    gap = random.Random(0).expovariate
    times = [gap(rate)]
    while times[-1] < seconds:
        times.append(times[-1] + gap(rate))
    return times[:-1]


def check_arrivals(arrivals: str) -> None:
    """Raise BenchError when there are no such arrivals."""
    if arrivals not in ARRIVALS:
        raise BenchError(f"arrivals: {arrivals} is not one of {', '.join(ARRIVALS)}")


def check_positive(**numbers: float) -> None:
    """Raise BenchError, by name, when a number is not a positive one."""
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise BenchError(f"{name}: {value} is not a finite number above 0")


def _run(measure: Callable[[], Coroutine[Any, Any, Report]]) -> Report:
    try:
        import uvloop
    except ImportError:  # not for Windows
        factory = None
    else:
        factory = uvloop.new_event_loop
    # A full collection takes milliseconds, which would be charged to the server.
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(measure())
    finally:
        gc.enable()


async def _reach(target: Target) -> tuple[str, int]:
    """The IP address and port that answer, so that no connection asks for the name again."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_REACH_SECONDS):
            transport, _ = await loop.create_connection(asyncio.Protocol, target.host, target.port)
    except TimeoutError as error:
        raise BenchError(f"{target.url}: no connection within {_REACH_SECONDS} s") from error
    except (OSError, UnicodeError) as error:  # the latter: no name that DNS could know
        reason = getattr(error, "strerror", None) or error
        raise BenchError(f"{target.url}: {reason}") from error
    host, port = transport.get_extra_info("peername")[:2]
    transport.close()
    return host, port


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise BenchError(f"{name}: {value} is not 0 or more")
