"""Two checkouts of the gateway in turn (A B A B ...): the gateway alone, and its refusals.

Both servers stand at the same time, and one idles while the other is loaded by 64 connections of
one client (`sid bench` of the second checkout). Of each run: answers per second, and the processor
time per answer of the server's main thread (the event loop) and of its whole process, which noise
disturbs less. Medians over the rounds.
"""

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

CLI = (sys.executable, "-m", "service.cli")
# The bundle of two small convolutions stands in place of a network, or never ends its work.
CASES = {
    "gateway alone": (0, {}),
    "refusals, a queue of one": (200_000, {"SID_QUEUE_SIZE": "1", "SID_MAX_BATCH_SIZE": "1"}),
}
BODY = '{"class_label": 0}'


class Run(NamedTuple):
    """What one run cost: answers per second, microseconds per answer, share of refusals."""

    rate: float
    loop: float
    process: float
    refused: float


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another, whose client is used")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each, after one to warm up")
    parser.add_argument("--seconds", default="2", help="of each run")
    given = parser.parse_args()
    trees = {"before": given.before.resolve(), "after": given.after.resolve()}
    for title, (turns, settings) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            code = (
                "import pathlib; from tests.bundles import write_bundle; "
                f"write_bundle(pathlib.Path({folder!r}), resolution=28, turns={turns})"
            )
            # By the older one, for a newer gateway reads what an older exporter wrote.
            python(trees["before"], sys.executable, "-c", code)
            compare(title, trees, Path(folder), settings, given)


def compare(
    title: str, trees: dict[str, Path], models: Path, settings: dict[str, str],
    given: argparse.Namespace,
) -> None:  # fmt: skip
    """Run one case, and print its rows."""
    runs: dict[str, list[Run]] = {name: [] for name in trees}
    ports = {name: free_port() for name in trees}
    with (
        server(trees["before"], models, ports["before"], settings) as first,
        server(trees["after"], models, ports["after"], settings) as second,
    ):
        pids = {"before": first, "after": second}
        for number in range(given.rounds + 1):
            for name in list(trees) if number % 2 else reversed(trees):
                run = measure(trees["after"], pids[name], ports[name], given.seconds)
                if number:  # the first round warms up
                    runs[name].append(run)
    print(f"{title}: 64 connections, medians of {given.rounds} rounds")
    for name, measured in runs.items():
        rate, loop, process, refused = map(statistics.median, zip(*measured, strict=True))
        print(
            f"  {name:7} {rate:7.0f} answers/s; loop {loop:6.1f} us, process {process:6.1f} us "
            f"per answer; refused {refused:.3f}"
        )
    for what in ("rate", "loop"):
        pairs = zip(runs["after"], runs["before"], strict=True)
        ratios = [getattr(after, what) / getattr(before, what) for after, before in pairs]
        print(f"  {what}, after to before within a round: {statistics.median(ratios):.3f}")


def measure(client: Path, pid: int, port: int, seconds: str) -> Run:
    """Load one server for a while."""
    before, spent, started = answers(port), processor_seconds(pid), time.monotonic()
    url = f"http://127.0.0.1:{port}"
    options = ("-c", "64", "--duration", seconds, "--warmup", "0.3", "--body", BODY, "--json", "-")
    json.loads(python(client, *CLI, "bench", url, *options))
    took, after, now = time.monotonic() - started, answers(port), processor_seconds(pid)
    counts = {status: count - before.get(status, 0) for status, count in after.items()}
    total = sum(counts.values())
    loop, process = (1e6 * (new - old) / total for new, old in zip(now, spent, strict=True))
    return Run(total / took, loop, process, counts.get("429", 0) / total)


@contextmanager
def server(tree: Path, models: Path, port: int, settings: dict[str, str]) -> Iterator[int]:
    """A gateway of that checkout on one engine thread, until the end; gives its process's id."""
    command = (*CLI, "serve", "--port", str(port), "--models", str(models))
    process = subprocess.Popen(
        command, env=environment(tree) | {"SID_CONCURRENCY": "1"} | settings, cwd=tree,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not ready(port):
            if process.poll() is not None:
                raise SystemExit(f"the server of {tree} ended with {process.returncode}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        number: int = unused.getsockname()[1]
        return number


def ready(port: int) -> bool:
    """Whether a server draws there."""
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
    except OSError:
        return False
    return True


def answers(port: int) -> dict[str, float]:
    """Answers to /generate so far, by status, as the server counts them."""
    url = f"http://127.0.0.1:{port}/metrics"
    text = urllib.request.urlopen(url, timeout=30).read().decode()
    line = r'sid_requests_total\{model="tiny",route="/generate",status="(\d+)"\} (\S+)'
    return {status: float(value) for status, value in re.findall(line, text)}


def processor_seconds(pid: int) -> tuple[float, float]:
    """Of a process's main thread, and of all its threads (Linux)."""
    threads = {
        int(task.name): int((task / "schedstat").read_text().split()[0]) / 1e9
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    return threads[pid], sum(threads.values())


def environment(tree: Path) -> dict[str, str]:
    """This process's, for modules of that checkout."""
    return {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


def python(tree: Path, *command: str) -> str:
    """Run a command with the modules of a checkout; returns what it prints."""
    done = subprocess.run(command, env=environment(tree), cwd=tree, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} in {tree}:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
