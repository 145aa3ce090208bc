"""When requests arrive at one gateway of several, for each shape that can be planned."""

import math
from collections.abc import Iterator
from itertools import islice
from random import Random

SHAPES = ("poisson", "steady", "bursts")

BURST = 10
"""Requests of one burst, which come at the same instant, as a page with ten images sends them."""


def arrivals(shape: str, rate: float, replicas: int, count: int, random: Random) -> list[float]:
    """When requests arrive at one of the gateways, in ascending seconds.

    Each request goes to a gateway at random, as a Service of Kubernetes sends connections: what is
    even for all of them together is not even for one.

    Args:
        shape: one of SHAPES. poisson: independently of each other; steady: evenly; bursts: ten at
            once, at times that are independent of each other.
        rate: requests per second to all gateways together.
        replicas: how many gateways there are.
        count: how many requests to this one are wanted.
        random: where chance comes from.
    """
    make = {"poisson": _poisson, "steady": _steady, "bursts": _bursts}[shape]
    return list(islice(make(rate, 1 / replicas, random), count))


def _poisson(rate: float, share: float, random: Random) -> Iterator[float]:
    now = 0.0
    while True:
        now += random.expovariate(1.0) / (rate * share)
        yield now


def _steady(rate: float, share: float, random: Random) -> Iterator[float]:
    """Every request that is for another gateway is passed over, so gaps are geometric."""
    passed_over = math.log1p(-share) if share < 1 else -math.inf
    number = 0
    while True:
        number += 1 + int(math.log(1 - random.random()) / passed_over)
        yield number / rate


def _bursts(rate: float, share: float, random: Random) -> Iterator[float]:
    """A binomial part of each burst, of those bursts that have a request for this gateway."""
    parts = range(1, BURST + 1)
    chances = [math.comb(BURST, n) * share**n * (1 - share) ** (BURST - n) for n in parts]
    now, bursts = 0.0, rate / BURST * sum(chances)
    while True:
        now += random.expovariate(1.0) / bursts
        (part,) = random.choices(parts, chances)
        yield from (now for _ in range(part))
