"""How long things take on a card, or on the CPU at toy size."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch

WARMUPS, REPEATS, FEWEST = 5, 20, 3


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(
    call: Callable[[], object], device: torch.device, *, budget: float = 10.0, toy: bool = False
) -> tuple[float, int]:
    """The median time from one call's end to the next one's, in the device's own clock.

    The calls follow each other as in a training or a server under load: nobody waits in between.

    Args:
        call: gives work to the device.
        device: which.
        budget: seconds for all of it, about: fewer than REPEATS are taken when they are long, but
            at least FEWEST.
        toy: two calls are enough.

    Returns:
        The median, in seconds, and over how many calls.
    """
    call()
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    one = time.perf_counter() - began
    fitting = int(budget / max(one, 1e-6))
    repeats = 2 if toy else max(FEWEST, min(REPEATS, fitting - WARMUPS))
    if not toy and fitting > REPEATS:
        for _ in range(WARMUPS - 2):
            call()
    return statistics.median(_times(call, device, repeats)), repeats


def _times(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    if device.type != "cuda":
        times = [time.perf_counter()]
        for _ in range(repeats):
            call()
            times.append(time.perf_counter())
        return [end - start for start, end in pairwise(times)]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    torch.cuda.synchronize(device)
    milliseconds = (start.elapsed_time(end) for start, end in pairwise(events))
    return [one / 1000 for one in milliseconds]


def on(toy: bool) -> torch.device:
    """Where everything is computed: the first card, or at toy size the CPU."""
    return torch.device("cpu" if toy else "cuda")
