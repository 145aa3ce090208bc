"""How fast SiD trains here, beside a plain transcription of the algorithm; CPU.

    .venv/bin/python tests/compare/training_speed.py --network cifar --batch 4 --rounds 3

Both run in processes of their own, which take turns (A B A B); a ratio is taken within a round.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
STEPS = {"fashion": 10, "cifar": 1}  # a round, unless --steps says otherwise
RECIPES = {"fashion": "fashion", "cifar": "cifar10-uncond"}


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=tuple(RECIPES), default="fashion")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures of every round here")
    parser.add_argument("--worker", choices=("ours", "transcription"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given)
        return
    figures = race(given)
    print(json.dumps(figures["summary"], indent=2))
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


def race(given: argparse.Namespace) -> dict[str, Any]:
    """Let the two processes take turns."""
    steps = given.steps or STEPS[given.network]
    environment = os.environ | {"OMP_NUM_THREADS": str(given.threads)}
    workers = {}
    for name in ("ours", "transcription"):
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
        pipe = subprocess.PIPE
        workers[name] = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT
        )
        say(f"{name}: first step {answer(workers[name])['seconds']:.2f} s")
    rounds: list[dict[str, float]] = []
    for number in range(given.rounds):
        speeds = {}
        for name, worker in workers.items():
            ask(worker, steps)
            speeds[name] = given.batch * steps / answer(worker)["seconds"]
        rounds.append(speeds | {"ratio": speeds["ours"] / speeds["transcription"]})
        say(f"round {number + 1}: {json.dumps(rounds[-1])}")
    summary: dict[str, Any] = {
        name: {
            "median": round(statistics.median(one[name] for one in rounds), 4),
            "min": round(min(one[name] for one in rounds), 4),
            "max": round(max(one[name] for one in rounds), 4),
        }
        for name in rounds[0]
    }
    for name, worker in workers.items():
        ask(worker, 0)
        summary[name]["peak_rss_mib"] = answer(worker)["peak_rss_mib"]
        worker.wait()
    return {"summary": summary, "rounds": rounds, "steps_per_round": steps, "unit": "images/s"}


def ask(worker: subprocess.Popen[str], steps: int) -> None:
    """Have a worker take steps; 0 ends it."""
    assert worker.stdin is not None
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()


def answer(worker: subprocess.Popen[str]) -> dict[str, float]:
    """What a worker says, once it has."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line:
        sys.exit("a worker ended early")
    return json.loads(line)


def work(given: argparse.Namespace) -> None:
    """A worker: take a first step, then as many as each line of stdin says."""
    if given.worker == "ours":
        from distill.training.allocator import keep_freed_memory

        keep_freed_memory()
    import torch

    torch.set_num_threads(given.threads)
    make = ours if given.worker == "ours" else transcription
    step = make(given.network, given.batch)
    seen, steps = 0, 1
    while steps:
        began = time.perf_counter()
        for _ in range(steps):
            step(seen)
            seen += given.batch
        seconds = time.perf_counter() - began
        peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(json.dumps({"seconds": seconds, "peak_rss_mib": peak}), flush=True)
        steps = int(sys.stdin.readline())
    print(json.dumps({"seconds": 0.0, "peak_rss_mib": peak}), flush=True)


def ours(name: str, batch: int) -> Callable[[int], object]:
    """A step of the real training."""
    import torch

    from distill.methods.sid import Sid
    from distill.training.distillation import Distillation
    from distill.training.distributed import DistributedContext

    network, config = subject(name, batch)
    return Distillation(Sid(config), network, DistributedContext(torch.device("cpu"))).step


def transcription(name: str, batch: int) -> Callable[[int], object]:
    """A step of the plain transcription, with the same settings."""
    from functools import partial

    from distill.data.augment import augment
    from tests.compare.transcription import Settings, Transcription

    network, config = subject(name, batch)
    settings = Settings(
        batch=batch, microbatch=config.images_per_call, lr=config.lr, alpha=config.alpha
    )
    bend = {"augment": partial(augment, probability=config.augment)} if config.augment else {}
    return Transcription(network, settings, **bend).step


def subject(name: str, batch: int) -> tuple[Any, Any]:
    """A recipe's network, with weights of a trained one's size, and its settings."""
    from distill.commands.options import read_recipe
    from distill.networks import Denoiser
    from distill.recipe import override

    recipe, section = read_recipe(RECIPES[name])
    network = Denoiser(recipe.network)
    redraw(network)
    return network, override(section, batch=batch, microbatch=batch)


def redraw(network: Any) -> None:
    """Weights that keep the variance: fresh ones end near 0, and denormal numbers are slow."""
    import torch

    torch.manual_seed(0)
    for weight in network.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
