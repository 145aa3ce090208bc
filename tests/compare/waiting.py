"""How OpenMP's threads should wait: a distillation's speed by GOMP_SPINCOUNT, alone or not.

    nice -n 15 .venv/bin/python tests/compare/waiting.py                 # on an idle machine
    nice -n 15 .venv/bin/python tests/compare/waiting.py --beside 2      # beside two busy processes

Each way takes its turn in a process of its own, round by round; the figure is the median of the
rounds (range), in images of the fashion recipe's distillation a second.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
# libgomp counts turns of its waiting loop. Unless told, it makes 300,000 of them.
WAYS = {
    "OpenMP's own": {},
    "10,000 turns": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"},
    "3,000 turns": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"},
    "1,000 turns": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"},
    "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
BUSY = "while True: pass"


def measure(batch: int, seconds: float) -> None:
    """Step for so many seconds, after one step to warm up, and print images a second."""
    import torch

    from distill.commands.options import read_recipe
    from distill.methods.sid import Sid
    from distill.networks import Denoiser
    from distill.recipe import override
    from distill.training.allocator import keep_freed_memory
    from distill.training.distillation import Distillation
    from distill.training.distributed import DistributedContext

    keep_freed_memory()
    torch.manual_seed(0)
    recipe, section = read_recipe("fashion")
    config = override(section, batch=batch)
    training = Distillation(
        Sid(config), Denoiser(recipe.network), DistributedContext(torch.device("cpu"))
    )
    training.step(0)
    seen, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        training.step(seen)
        seen += batch
    print(seen / (time.monotonic() - began))


def main() -> None:
    """Measure every way in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--beside", type=int, default=0, help="busy processes beside")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.batch, given.seconds)
        return
    ours = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"}
    plain = {k: v for k, v in os.environ.items() if k not in ours} | {"PYTHONPATH": str(ROOT)}
    rates: dict[str, list[float]] = {name: [] for name in given.ways}
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(given.beside)]
    try:
        for _ in range(given.rounds):
            for name in given.ways:
                command = [sys.executable, __file__, "--measure"]
                command += ["--seconds", str(given.seconds), "--batch", str(given.batch)]
                environment = plain | WAYS[name]
                done = subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, text=True, check=True
                )
                rates[name].append(float(done.stdout))
    finally:
        for process in busy:
            process.kill()
    print(f"{given.beside} busy processes beside, load {os.getloadavg()[0]:.1f}")
    for name, found in rates.items():
        middle = statistics.median(found)
        print(f"{name:>14} {middle:7.1f} ({min(found):.1f} to {max(found):.1f})")


if __name__ == "__main__":
    main()
