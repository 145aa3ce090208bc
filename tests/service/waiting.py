"""Waiting for what happens, instead of for a time: the bounds are for defects, not for slowness."""

import asyncio
import re
import time
from collections.abc import Callable

import httpx

DEFECT_SECONDS = 60.0  # what has not happened by then never will, however busy the machine is


def until(condition: Callable[[], object], seconds: float = DEFECT_SECONDS) -> None:
    """Block until something is true; AssertionError if it never is."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not happen"
        time.sleep(0.01)


async def happens(condition: Callable[[], object]) -> None:
    """Wait on the event loop until something is true; TimeoutError if it never is."""
    async with asyncio.timeout(DEFECT_SECONDS):
        while not condition():  # noqa: ASYNC110 what is waited for has no event
            await asyncio.sleep(0.001)


async def turns(count: int = 20) -> None:
    """Let every task that can go on do so, as often as any chain of them is long.

    Where nothing but the event loop is at work, it takes no time for things to happen, but turns.
    """
    for _ in range(count):
        await asyncio.sleep(0)


async def metrics_show(http: httpx.AsyncClient, line: str) -> None:
    """Wait until the server shows a line of metrics that begins with this pattern."""
    pattern = re.compile(f"^{line}", re.MULTILINE)
    async with asyncio.timeout(DEFECT_SECONDS):
        while not pattern.search((await http.get("/metrics")).text):
            pass
