"""Put a load on a server and report: `closed` and `open_loop`, each in an event loop of its own."""

import asyncio
import gc
import math
import random
import time
from collections.abc import Callable
from typing import Literal

from service.bench.base import Load
from service.bench.loops import ClosedLoop, OpenLoop
from service.bench.refusal import all_refused
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
        AllRefusedError: the server refused every request; early, if no other answer was to come.
        BenchError: the server is out of reach.
    """

    def begin(address: tuple[str, int], start: float, end: float) -> Load:
        load = ClosedLoop(target, address, connections)
        load.start(start, end)
        return load

    return _run(target, begin, warmup, duration, timeout, mode="closed")


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
    """Send `rate` requests per second on a schedule: what would users feel?

    Latency counts from the time a request was due, not from when it could be sent: a server that
    stalls delays what comes after, too, and waiting for it must not hide that.

    Args:
        target: what is sent, and where.
        rate: requests per second.
        arrivals: "poisson" (as independent users send, the same times in every run) or "even".
        max_connections: how many connections may be opened; an arrival that finds all of them
            busy is reported as not sent.
        warmup, duration, timeout: as for `closed`.

    Raises:
        AllRefusedError: as for `closed`.
        BenchError: the server is out of reach, or more requests are asked for than anybody means.
    """
    due = schedule(rate, warmup + duration, arrivals)

    def begin(address: tuple[str, int], start: float, end: float) -> Load:  # noqa: ARG001
        load = OpenLoop(target, address, max_connections)
        load.start(start, due)
        return load

    return _run(target, begin, warmup, duration, timeout, mode="open", rate=rate, arrivals=arrivals)


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


def _run(
    target: Target,
    begin: Callable[[tuple[str, int], float, float], Load],
    warmup: float,
    duration: float,
    timeout: float,
    *,
    mode: Literal["closed", "open"],
    rate: float | None = None,
    arrivals: str | None = None,
) -> Report:
    """Begin a load at an address, from one time to another, wait for its end and report."""

    async def measure() -> Report:
        address = await _reach(target)
        cpu, start = time.process_time(), time.perf_counter()
        end = start + warmup + duration
        load = begin(address, start, end)
        await load.finish(end + timeout)
        samples = load.samples
        if samples.refusal is not None and min(samples.status) >= 300:
            raise all_refused(target.url, len(samples.status), *samples.refusal)
        return summarise(
            samples,
            (start + warmup, end),
            mode=mode,
            rate=rate,
            arrivals=arrivals,
            connections=load.peak,
            warmup=warmup,
            images=target.images,
            cpu_seconds=time.process_time() - cpu,
        )

    # A full collection takes milliseconds, which would be charged to the server.
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(measure())
    finally:
        gc.enable()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # not for Windows
        return None
    return uvloop.new_event_loop


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
