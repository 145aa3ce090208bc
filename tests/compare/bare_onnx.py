"""The bare ONNX Runtime loop: session.run over prepared inputs. No noise, no PNG, no server.

Two ways to use the processors, for each batch size: one session whose intra-op threads share each
run (waiting threads asleep or spinning), and as many Python threads, each with a session of its
own that computes in the calling thread. Prints JSON: images/s of each, and the best of each way.

    PYTHONPATH=. .venv/bin/python tests/compare/bare_onnx.py
"""

import argparse
import json
import os
import statistics
import threading
import time
from collections import defaultdict
from typing import Any

import numpy as np
from compare_work import MODEL, open_session

from service.bundle import load_manifest

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--slice", type=float, default=0.4, help="seconds of one measurement")
    parser.add_argument("--repeats", type=int, default=3, help="slices of each; the median counts")
    options = parser.parse_args()

    threads = options.threads
    ways = {
        f"1 session x {threads} threads": [open_session(threads, spin=False)],
        f"1 session x {threads} threads, spinning": [open_session(threads, spin=True)],
        f"{threads} sessions x 1 thread": [open_session(1, spin=False) for _ in range(threads)],
    }
    slices: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(options.repeats):  # interleaved, so that what else the machine does hits all
        for size in BATCH_SIZES:
            inputs = prepare(size)
            for way, sessions in ways.items():
                slices[way, size].append(rate(sessions, inputs, options.slice))
    rates = {
        way: {size: round(statistics.median(slices[way, size]), 1) for size in BATCH_SIZES}
        for way in ways
    }
    best = {}
    for way, by_size in rates.items():
        size = max(by_size, key=lambda size: by_size[size])
        best[way] = {"batch": size, "images_per_s": by_size[size]}
    print(json.dumps({"images_per_s": rates, "best": best}, indent=1))


def prepare(size: int) -> dict[str, Any]:
    """Inputs of one batch; any noise costs the same."""
    shape = load_manifest(MODEL).latent_shape
    return {
        "latents": np.random.default_rng(0).standard_normal((size, *shape), dtype=np.float32),
        "class_labels": np.arange(size, dtype=np.int64) % 10,
    }


def rate(sessions: list[Any], inputs: dict[str, Any], seconds: float) -> float:
    """Images/s of all sessions together, each driven by a thread of its own."""
    size = len(inputs["class_labels"])
    rates = [0.0] * len(sessions)
    barrier = threading.Barrier(len(sessions))

    def drive(number: int) -> None:
        run = sessions[number].run
        run(["images"], inputs)  # the first run of a shape allocates
        barrier.wait()
        start, runs = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            run(["images"], inputs)
            runs += 1
        rates[number] = runs * size / elapsed

    drivers = [threading.Thread(target=drive, args=(n,)) for n in range(len(sessions))]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    return sum(rates)


if __name__ == "__main__":
    main()
