"""Goodput at three times the peak, beside the peak: raw, and with the client's share taken out.

    .venv/bin/python tests/compare/overload.py --rounds 3

A closed loop of 64 connections finds the peak of models/fashion, an open loop then sends so many
times that rate, and both are done again in each round. Client and server share this machine's
processors, and a client that sends three times as much takes more of them. So beside the plain
ratio stands that of the images per processor that the client left to the server.
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from service.bench import Report, Target, closed, generate_body, open_loop  # noqa: E402
from service.resources import available_cpus  # noqa: E402
from tests.compare.over_triton import MODEL, gateway  # noqa: E402


class Run(NamedTuple):
    """One load: images per second, and the processors that its client took."""

    images: float
    client: float

    @property
    def per_processor(self) -> float:
        """Images per second for each processor that was left to the server."""
        return self.images / (available_cpus() - self.client)


def main() -> None:
    """Measure in turn, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=float, default=3, help="the peak, is sent")
    parser.add_argument("--duration", type=float, default=5, help="seconds of each load")
    parser.add_argument("--warmup", type=float, default=1, help="seconds before each load counts")
    options = parser.parse_args()
    timing = {"warmup": options.warmup, "duration": options.duration}
    print(
        "| peak, images/s | client | sent | goodput | client | to peak | to peak, per processor |"
    )
    print("|---|---|---|---|---|---|---|")
    ratios = []
    with gateway() as url:
        target = Target(url, body=generate_body(MODEL.name))
        for _ in range(options.rounds):
            peak = run_of(closed(target, 64, **timing))
            rate = options.times * peak.images
            over = run_of(open_loop(target, rate, arrivals="even", **timing))
            ratios.append((over.images / peak.images, over.per_processor / peak.per_processor))
            print(
                f"| {peak.images:.0f} | {peak.client:.2f} | {rate:.0f} | {over.images:.0f} "
                f"| {over.client:.2f} | {ratios[-1][0]:.2f} | {ratios[-1][1]:.2f} |",
                flush=True,
            )
    plain, fair = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"\nmedians: {plain:.2f} of the peak; {fair:.2f} per processor left to the server")


def run_of(report: Report) -> Run:
    """What counts of a report."""
    # The generator counts what it used from the start of its warm-up.
    return Run(report.images_per_second, report.cpu_seconds / (report.warmup + report.duration))


if __name__ == "__main__":
    main()
