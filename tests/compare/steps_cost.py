"""What a graph of two or four steps costs beside that of one: milliseconds and bytes.

    .venv/bin/python -m tests.compare.steps_cost --network distill/pretrained/fashion-generator.safetensors

The same weights are exported with each number of steps, in the form for processors, and computed by
ONNX Runtime in one thread, in turn. The images mean nothing, for the network was trained for one
step; their cost is that of any.
"""  # noqa: E501

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

from distill.checkpoints import load_network
from distill.export.onnx import export_onnx

STEPS = (1, 2, 4)


def main() -> None:
    """Export, compute in turn and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    network = load_network(given.network)[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions, sizes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for steps in STEPS:
            graph = Path(folder) / f"{steps}.onnx"
            export_onnx(network, 2.5, graph, cpu=True, steps=steps)
            sizes[steps] = graph.stat().st_size
            sessions[steps] = onnxruntime.InferenceSession(
                graph.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
    print("| batch | steps | ms, median | times one step | MB |\n|---|---|---|---|---|")
    for batch in given.batches:
        median = dict.fromkeys(STEPS, 0.0)
        for steps, seconds in measured(sessions, batch, given.rounds).items():
            median[steps] = 1000 * float(np.median(seconds))
            factor = median[steps] / median[1]
            print(f"| {batch} | {steps} | {median[steps]:.2f} | {factor:.2f} "
                  f"| {sizes[steps] / 1e6:.2f} |")  # fmt: skip


def measured(
    sessions: dict[int, onnxruntime.InferenceSession], batch: int, rounds: int
) -> dict[int, list[float]]:
    """Seconds of each call of each graph, all taking turns, so that a slow moment hits them all."""
    random = np.random.default_rng(0)
    feeds = {}
    for steps, session in sessions.items():
        feeds[steps] = {}
        for entry in session.get_inputs():
            if entry.name == "latents":
                latents = random.normal(size=(batch, *entry.shape[1:]))
                feeds[steps][entry.name] = latents.astype(np.float32)
            else:
                feeds[steps][entry.name] = np.arange(batch) % 2
        session.run(None, feeds[steps])
    seconds: dict[int, list[float]] = {steps: [] for steps in sessions}
    for _ in range(rounds):
        for steps, session in sessions.items():
            began = time.perf_counter()
            session.run(None, feeds[steps])
            seconds[steps].append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main()
