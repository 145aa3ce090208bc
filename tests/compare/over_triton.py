"""The gateway over Triton, beside calling Triton directly and beside the embedded engine.

One real Triton server computes for the first two. All run on the same processors, in turn within
each round, so that slow changes of the machine cancel out in the ratios. *direct* is a loop of
tritonclient.grpc.aio, one image per call, over prepared latents: no noise, no PNG, no HTTP.

    .venv/bin/python tests/compare/over_triton.py --rounds 5
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from service.bundle import load_manifest  # noqa: E402
from service.tools.triton_server import install, running  # noqa: E402
from tests.service.triton import free_ports  # noqa: E402

MODEL = ROOT / "models" / "fashion"
Figures = dict[str, float]


async def direct(grpc: int, connections: int, seconds: float, warmup: float) -> Figures:
    """So many calls of `infer` under way, one image each."""
    import tritonclient.grpc.aio as triton

    manifest = load_manifest(MODEL)
    random = np.random.default_rng(0)
    client = triton.InferenceServerClient(f"127.0.0.1:{grpc}")
    ready = []
    for label in range(10):
        latents = triton.InferInput("latents", [1, *manifest.latent_shape], "FP32")
        noise = random.standard_normal((1, *manifest.latent_shape), dtype=np.float32)
        latents.set_data_from_numpy(noise)
        class_label = triton.InferInput("class_labels", [1, 1], "INT64")
        class_label.set_data_from_numpy(np.array([[label]]))
        ready.append([latents, class_label])
    took: list[float] = []
    begin = time.perf_counter() + warmup
    end = begin + seconds

    async def loop(number: int) -> None:
        while (started := time.perf_counter()) < end:
            number += 1
            inputs = ready[number % 10]
            answer = await client.infer(manifest.name, inputs, str(manifest.version))
            assert answer.as_numpy("images").any()
            now = time.perf_counter()
            if begin <= started and now <= end:
                took.append(now - started)

    await asyncio.gather(*(loop(number) for number in range(connections)))
    await client.close()
    return {
        "images_per_s": len(took) / seconds,
        "p50_ms": 1000 * float(np.quantile(took, 0.5)),
        "p99_ms": 1000 * float(np.quantile(took, 0.99)),
    }


def direct_in_a_process(grpc: int, connections: int, seconds: float, warmup: float) -> Figures:
    """As `sid bench` has one."""
    command = [sys.executable, __file__, "--direct", str(grpc), "--connections", str(connections)]
    command += ["--duration", str(seconds), "--warmup", str(warmup)]
    return json.loads(subprocess.check_output(command))


def bench(url: str, connections: int, seconds: float, warmup: float) -> Figures:
    """Load on a gateway by `sid bench`."""
    sid = [sys.executable, "-m", "service.cli", "bench", url, "-c", str(connections)]
    sid += ["--class-label", "3", "--json", "-"]
    sid += ["--duration", str(seconds), "--warmup", str(warmup)]
    output = subprocess.check_output(sid, stderr=subprocess.DEVNULL, cwd=ROOT)
    (report,) = json.loads(output)["reports"]
    assert set(report["statuses"]) == {"200"}, report["statuses"]
    return {
        "images_per_s": report["images_per_second"],
        "p50_ms": 1000 * report["latency"]["p50"],
        "p99_ms": 1000 * report["latency"]["p99"],
    }


@contextmanager
def gateway(**environment: str) -> Iterator[str]:
    """A gateway in a process of its own; yields its URL."""
    sid = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--models", MODEL.parent]
    ours = {"SID_LOG_LEVEL": "warning", "SID_DEFAULT_MODEL": MODEL.name}
    env = os.environ | ours | environment
    process = subprocess.Popen(sid, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://[0-9.:]+", process.stdout.readline())
        assert found is not None, "the gateway did not start"
        yield found[0]
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=4, help="seconds of each load")
    parser.add_argument("--warmup", type=float, default=1, help="seconds before each load")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--direct", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.direct:
        import uvloop

        figures = uvloop.run(
            direct(options.direct, *options.connections, options.duration, options.warmup)
        )
        print(json.dumps(figures))
        return
    install()
    http, grpc, metrics = free_ports(3)
    ways: dict[str, Any] = {}
    rounds: dict[tuple[str, int], list[Figures]] = defaultdict(list)
    with ExitStack() as stack:
        stack.enter_context(running(MODEL.parent, http=http, grpc=grpc, metrics=metrics))
        over = stack.enter_context(gateway(SID_TRITON=f"127.0.0.1:{grpc}"))
        embedded = stack.enter_context(gateway())
        ways["direct"] = lambda c, s, w: direct_in_a_process(grpc, c, s, w)
        ways["gateway over Triton"] = lambda c, s, w: bench(over, c, s, w)
        ways["gateway, embedded"] = lambda c, s, w: bench(embedded, c, s, w)
        for number in range(options.rounds):
            for connections in options.connections:
                order = list(ways)
                for way in order[number % 3 :] + order[: number % 3]:
                    figures = ways[way](connections, options.duration, options.warmup)
                    rounds[way, connections].append(figures)
                    print(way, connections, {k: round(v, 2) for k, v in figures.items()})
    report(list(ways), rounds, options.connections)


def report(
    ways: list[str], rounds: dict[tuple[str, int], list[Figures]], connections: list[int]
) -> None:
    """Medians over the rounds, and medians of what is compared within a round."""

    def within(way: str, connections: int, figure: str, difference: bool = False) -> float:
        pairs = zip(rounds[way, connections], rounds["direct", connections], strict=True)
        return statistics.median(
            ours[figure] - base[figure] if difference else ours[figure] / base[figure]
            for ours, base in pairs
        )

    few, many = min(connections), max(connections)
    columns = [f"images/s at {c}" for c in connections]
    columns += [f"p50 at {few}", f"p99 at {few}", f"p99 at {many}"]
    print(f"\n| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for way in ways:

        def middle(connections: int, figure: str, way: str = way) -> str:
            return f"{statistics.median(one[figure] for one in rounds[way, connections]):.1f}"

        rates = [middle(c, "images_per_s") for c in connections]
        late = [middle(few, "p50_ms"), middle(few, "p99_ms"), middle(many, "p99_ms")]
        print(f"| {way} | {' | '.join(rates)} | {' | '.join(f'{one} ms' for one in late)} |")
    for way in ways[1:]:
        rates = [f"{within(way, c, 'images_per_s'):.2f}" for c in connections]
        late = [f"{within(way, few, figure, True):+.2f} ms" for figure in ("p50_ms", "p99_ms")]
        late.append(f"{within(way, many, 'p99_ms'):.2f}")
        print(f"| {way}, to direct | {' | '.join(rates)} | {' | '.join(late)} |")


if __name__ == "__main__":
    main()
