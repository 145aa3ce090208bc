"""Where the processors' time goes while a gateway serves, beside a bare loop of the same session.

A closed loop of some connections asks a gateway of models/fashion for images, client and server on
this machine's processors. Of that time this program prints what is the client's, the event loop's,
the engine's threads' and nobody's; and for an image what its graph takes in a bare loop of the same
sessions (`session.run` in as many threads as there are processors, the best batch size), what its
noise takes and what its PNG file takes, each by itself. Each round measures all of it in turn.

    .venv/bin/python tests/compare/processor_time.py --rounds 5
"""

import argparse
import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from service.bench import Target, closed, generate_body  # noqa: E402
from service.bundle import load_bundle  # noqa: E402
from service.engines.onnx import OnnxEngine, open_session  # noqa: E402
from service.resources import available_cpus  # noqa: E402
from service.serving.encoding import PNG  # noqa: E402
from service.serving.jobs import resolve_jobs  # noqa: E402
from service.serving.pipeline import encode_files, graph_inputs  # noqa: E402
from tests.compare.bare_onnx import rate  # noqa: E402
from tests.compare.over_triton import MODEL, gateway  # noqa: E402

BATCH_SIZES = (4, 8, 16)
ROWS = {
    "served": "served, images/s",
    "bare": "bare loop, images/s",
    "ratio": "served to bare",
    "graph": "graph in the bare loop, us/image",
    "noise": "noise by itself, us/image",
    "files": "PNG files by themselves, us/image",
    "threads": "the engine's threads, us/image",
    "loop": "the event loop, us/image",
    "client": "the client, us/image",
    "idle": "nobody, us/image",
}
Figures = dict[str, float]


class Work:
    """The parts of the work on one batch, each to be done by itself."""

    def __init__(self) -> None:
        bundle = load_bundle(MODEL)
        engine = OnnxEngine(bundle, threads=1, concurrency=1)
        graph = bundle.graph(engine.filename)
        self.sessions = [open_session(graph, 1) for _ in range(available_cpus())]
        self._manifest = bundle.manifest
        self._tag = bundle.tag

    def measure(self, seconds: float) -> Figures:
        """Images per second of the bare loop, and microseconds of processor time for an image."""
        bare = max(self._bare(size, seconds) for size in BATCH_SIZES)
        jobs = self._jobs(8)
        images = self.sessions[0].run(["images"], graph_inputs(jobs, self._manifest))[0]
        return {
            "bare": bare,
            "graph": 1e6 * len(self.sessions) / bare,
            "noise": cost(lambda: graph_inputs(jobs, self._manifest), seconds) / 8,
            "files": cost(lambda: encode_files(images, jobs, self._tag), seconds) / 8,
        }

    def _bare(self, size: int, seconds: float) -> float:
        return rate(self.sessions, graph_inputs(self._jobs(size), self._manifest), seconds)

    def _jobs(self, count: int) -> list[Any]:
        return resolve_jobs(self._manifest, None, 0, count, PNG)


def cost(call: Callable[[], object], seconds: float) -> float:
    """Microseconds of processor time of one call."""
    calls, began, cpu = 0, time.perf_counter(), time.thread_time()
    while time.perf_counter() - began < seconds:
        call()
        calls += 1
    return 1e6 * (time.thread_time() - cpu) / calls


def served(url: str, pid: int, connections: int, warmup: float, seconds: float) -> Figures:
    """What a load gets, and microseconds for an image of each that works, or does not."""
    before: dict[str, float] = {}
    alarm = threading.Timer(warmup, lambda: before.update(spent(pid)))
    alarm.start()
    target = Target(url, body=generate_body(MODEL.name))
    report = closed(target, connections, warmup=warmup, duration=seconds)
    after = spent(pid)
    alarm.join()
    images = report.images_per_second * (after["at"] - before["at"])
    taken = {name: 1e6 * (after[name] - before[name]) / images for name in after}
    client = 1e6 * report.cpu_seconds_per_request
    idle = available_cpus() * taken["at"] - taken["loop"] - taken["threads"] - client
    return {
        "served": report.images_per_second,
        "threads": taken["threads"],
        "loop": taken["loop"],
        "client": client,
        "idle": idle,
    }


def spent(pid: int) -> Figures:
    """Seconds of processor time up to now of a gateway's event loop and of its other threads."""
    tasks = {
        int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    loop = tasks.pop(pid)
    return {"at": time.perf_counter(), "loop": loop, "threads": sum(tasks.values())}


def main() -> None:
    """Measure in turn, and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--duration", type=float, default=3, help="seconds of each load")
    parser.add_argument("--warmup", type=float, default=1, help="seconds before each load counts")
    options = parser.parse_args()
    work = Work()
    rounds: dict[int, list[Figures]] = defaultdict(list)
    with gateway() as url:
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
        pid = int(children.split()[-1])
        for _ in range(options.rounds):
            alone = work.measure(options.duration / 5)
            for connections in options.connections:
                found = served(url, pid, connections, options.warmup, options.duration)
                found["ratio"] = found["served"] / alone["bare"]
                rounds[connections].append(alone | found)
    print(
        f"{os.uname().machine}, {available_cpus()} processors, medians of {options.rounds} rounds"
    )
    print(f"\n| at so many connections | {' | '.join(map(str, rounds))} |")
    print(f"|---|{'---|' * len(rounds)}")
    for row, title in ROWS.items():
        middle = (statistics.median(one[row] for one in rounds[c]) for c in rounds)
        places = 2 if row == "ratio" else 0
        print(f"| {title} | {' | '.join(f'{value:.{places}f}' for value in middle)} |")


if __name__ == "__main__":
    main()
