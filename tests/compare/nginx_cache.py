"""nginx's cache before the gateway, under a skewed load of seeds: hit ratio and images/s.

The images that are asked for follow Zipf's law: the one of rank r is asked for in proportion to
1/r^skew. All are pinned, so each is drawn at most once as long as the cache holds it. In turn
within each round: the gateway alone, nginx with an empty cache, and the same nginx under another
load of the same law, with what it has kept by then. The configuration is deploy/nginx/sid.conf, the
model models/fashion, and all share this machine's processors with the client.

    .venv/bin/python tests/compare/nginx_cache.py --rounds 3 --seconds 10
"""

import argparse
import re
import statistics
import sys
import tempfile
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from service.bench import Target, closed  # noqa: E402
from tests.compare.over_triton import gateway  # noqa: E402
from tests.deploy.nginx import NGINX, proxying  # noqa: E402

_MANY = 1 << 18  # requests that are drawn ahead; a longer load begins again


class Skewed(Target):
    """GET of pinned images whose seeds follow Zipf's law."""

    def __init__(self, url: str, tag: str, images: int, skew: float, draw: int) -> None:
        super().__init__(url)
        ranks = np.arange(1, images + 1, dtype=np.float64)
        shares = ranks**-skew / np.sum(ranks**-skew)
        seeds = np.random.default_rng(draw).choice(images, size=_MANY, p=shares)
        authority = url.removeprefix("http://")
        self._requests = [
            f"GET /generate?model={tag}&seed={seed} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
            for seed in seeds.tolist()
        ]
        self._next = 0

    def request(self) -> bytes:
        """The next one."""
        self._next = (self._next + 1) % _MANY
        return self._requests[self._next]


class Figures(NamedTuple):
    """What one load showed."""

    images_per_s: float
    p50_ms: float
    p99_ms: float
    requests: float
    hits: float  # share of the answers that the gateway never heard of


def measure(
    front: str, behind: str, options: argparse.Namespace, skew: float, draw: int
) -> Figures:
    """Load `front` for a while; `behind` is the gateway, which counts what reaches it."""
    target = Skewed(front, tag_of(behind), options.images, skew, draw)
    before = answers(behind)
    report = closed(target, options.connections, warmup=0, duration=options.seconds)
    assert set(report.statuses) == {200}, report.statuses
    assert not report.errors, report.errors
    assert report.latency is not None
    reached = answers(behind) - before
    return Figures(
        report.images_per_second,
        1000 * report.latency.p50,
        1000 * report.latency.p99,
        report.requests,
        1 - reached / report.requests,
    )


def tag_of(url: str) -> str:
    """The pinned name of a gateway's default model."""
    answer = urllib.request.urlopen(f"{url}/generate?seed=0", timeout=30)
    return str(answer.headers["X-Model"])


def answers(url: str) -> float:
    """How many GETs of images the gateway has answered."""
    text = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode()
    lines = re.findall(r'^sid_requests_total\{.*route="/generate".*\} (\S+)', text, re.MULTILINE)
    return sum(map(float, lines))


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each load")
    parser.add_argument("--images", type=int, default=10_000, help="images that are asked for")
    parser.add_argument("--skews", type=float, nargs="+", default=[0.8, 1.0, 1.2])
    parser.add_argument("--connections", type=int, default=64)
    options = parser.parse_args()
    if NGINX is None:
        sys.exit("nginx is not installed (Debian: apt-get install nginx-light)")
    figures: dict[tuple[float, str], list[Figures]] = defaultdict(list)
    with gateway() as behind:
        for turn in range(options.rounds):
            for skew in options.skews:
                with tempfile.TemporaryDirectory() as folder:
                    alone = measure(behind, behind, options, skew, 2 * turn)
                    figures[skew, "the gateway alone"].append(alone)
                    with proxying(Path(folder), [behind.removeprefix("http://")]) as front:
                        for number, way in enumerate(("nginx, empty at first", "nginx, going on")):
                            its = measure(front, behind, options, skew, 2 * turn + number)
                            figures[skew, way].append(its)
    print("| skew | way | requests | hits | images/s | p50, p99 ms |\n|---|---|---|---|---|---|")
    for (skew, way), rounds in figures.items():
        middle = Figures(*map(statistics.median, zip(*rounds, strict=True)))
        print(
            f"| {skew:g} | {way} | {middle.requests:,.0f} | {middle.hits:.1%} "
            f"| {middle.images_per_s:,.0f} | {middle.p50_ms:.1f}, {middle.p99_ms:.1f} |"
        )


if __name__ == "__main__":
    main()
