"""What `sid plan` foretells beside what happens: p99 at five loads, by simulation and measured.

Each round measures the service curve anew (`sid bench --curve`), has the simulation foretell what
becomes of each load, and puts the same load on a real gateway: the very same times of arrival. A
load is a share of the peak of its own round's curve.
Gateway and client share this machine's processors, so the client's share counts too. Ratios are
taken within a round, for the machine's speed changes between them. The model is models/fashion.

    .venv/bin/python tests/compare/plan_replay.py --rounds 4
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from service.bench import Target, generate_body, open_loop  # noqa: E402
from service.bench.load import schedule  # noqa: E402
from service.bench.stats import percentile  # noqa: E402
from service.plan.curve import Curve, read_curve  # noqa: E402
from service.plan.simulation import Gateway, simulate  # noqa: E402
from service.plan.times import ServiceTimes, gateway_times  # noqa: E402
from tests.compare.over_triton import MODEL, gateway  # noqa: E402

QUEUE = 128
WITHIN = 0.25  # of the measured p99
CHANCES = 5  # simulations of each load, of which the median counts


class Figures(NamedTuple):
    """What becomes of one load: milliseconds of good answers, and the share that was refused."""

    p50: float
    p99: float
    refused: float


def measured_curve(seconds: float) -> Curve:
    """The curve of this machine now, measured in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "curve.json"
        command = [sys.executable, "-m", "service.cli", "bench", "--curve", str(file)]
        command += ["--model", MODEL.name, "--duration", str(seconds), "--warmup", "0.3"]
        subprocess.run(command, cwd=ROOT, check=True)
        return read_curve(file)


def simulated(curve: Curve, due: Sequence[float], warmup: float) -> Figures:
    """What the simulation foretells of requests at these times."""
    times, settings = as_measured(curve)
    outcomes = [
        simulate(settings, times, due, counted_from=warmup, random=Random(number))
        for number in range(CHANCES)
    ]
    figures = (
        Figures(
            1000 * percentile(one.latencies, 50),
            1000 * percentile(one.latencies, 99),
            one.refused / (one.refused + len(one.latencies)),
        )
        for one in outcomes
    )
    return Figures(*map(statistics.median, zip(*figures, strict=True)))


def as_measured(curve: Curve) -> tuple[ServiceTimes, Gateway]:
    """The gateway below, whose client takes its share of the processors."""
    settings = Gateway.measured(curve, curve.slots, curve.batches[-1], QUEUE)
    return gateway_times(curve, with_client=True), replace(settings, beside_client=True)


def happened(url: str, rate: float, warmup: float, seconds: float) -> Figures:
    """The same on a real gateway."""
    target = Target(url, body=generate_body(MODEL.name))
    report = open_loop(target, rate, warmup=warmup, duration=seconds)
    if report.latency is None:
        sys.exit(f"none of {report.requests} requests was answered: is the load too short?")
    refused = 1 - report.latency.count / report.requests
    return Figures(1000 * report.latency.p50, 1000 * report.latency.p99, refused)


def main() -> None:
    """Replay, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.9, 1.2])
    parser.add_argument("--warmup", type=float, default=2, help="seconds before each load counts")
    parser.add_argument("--seconds", type=float, default=8, help="of each load")
    parser.add_argument("--cell", type=float, default=2, help="seconds of each cell of the curve")
    options = parser.parse_args()
    rounds: dict[float, list[tuple[Figures, Figures]]] = defaultdict(list)
    rates: dict[float, list[float]] = defaultdict(list)
    for number in range(options.rounds):
        curve = measured_curve(options.cell)
        times, settings = as_measured(curve)
        peak = settings.peak(times)
        if not number:
            print(f"{curve.machine.processor}, {curve.machine.cores} cores, {curve.bundle}")
        print(f"round {number + 1}: load of the machine before it {curve.machine.load:g}, ", end="")
        print(f"peak {peak:.0f} images/s")
        with gateway(SID_QUEUE_SIZE=str(QUEUE)) as url:
            for load in options.loads:
                rate = load * peak
                rates[load].append(rate)
                due = schedule(rate, options.warmup + options.seconds, "poisson")
                before = simulated(curve, due, options.warmup)
                after = happened(url, rate, options.warmup, options.seconds)
                rounds[load].append((before, after))
                ratio = before.p99 / after.p99
                print(f"  {load:.0%}: p99 foretold {ratio:.2f} of the measured", flush=True)
    report(rounds, rates)


def report(
    rounds: dict[float, list[tuple[Figures, Figures]]], rates: dict[float, list[float]]
) -> None:
    """Medians over the rounds, and of the ratios within a round."""
    print("\n| of the peak | requests/s | p50, p99 foretold | measured | refused | p99, ratio |")
    print("|---|---|---|---|---|---|")
    near = 0
    for load, pairs in rounds.items():
        before, after = (
            Figures(*map(statistics.median, zip(*side, strict=True)))
            for side in zip(*pairs, strict=True)
        )
        ratio = statistics.median(mine.p99 / its.p99 for mine, its in pairs)
        near += abs(ratio - 1) <= WITHIN
        rate = statistics.median(rates[load])
        print(
            f"| {load:.0%} | {rate:.0f} | {before.p50:.1f}, {before.p99:.1f} ms "
            f"| {after.p50:.1f}, {after.p99:.1f} ms "
            f"| {before.refused:.1%} foretold, {after.refused:.1%} | {ratio:.2f} |"
        )
    print(f"\n{near} of {len(rounds)} foretold within {WITHIN:.0%} of the measured p99.")


if __name__ == "__main__":
    main()
