"""Milliseconds an image of every engine on this machine's processors, in one interleaved run.

    python -m tests.compare.engines small|large|tiny [--batches 1,8] [--rounds 3] [--compile]

`small` is the shipped model, `large` CIFAR-10's DDPM++ (55.7 M parameters) with random weights;
`tiny` says nothing and is over in seconds: it is there to try this program.
Each engine also loads once in a process of its own: seconds to load, and what it adds to
resident memory once it has drawn a batch.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from distill.checkpoints import load_network
from distill.export.one_step import PixelGenerator
from distill.export.onnx import example_inputs, export_onnx
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from tests.compare.engine_openers import THREADS, as_served, openvino, ort

SIGMA = 2.5


def network(which: str) -> Denoiser:
    if which == "small":
        path = Path("distill/pretrained/fashion-generator.safetensors")
        return load_network(path)[0].eval()
    torch.manual_seed(0)
    if which == "large":
        config = EdmConfig(img_resolution=32, img_channels=3, label_dim=10, augment_dim=9)
    else:
        config = EdmConfig(
            img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1,),
            num_blocks=1, attn_resolutions=(),
        )  # fmt: skip
    denoiser = Denoiser(config).eval()
    with torch.no_grad():  # wake up what starts near zero
        for parameter in denoiser.parameters():
            if parameter.ndim > 1 and parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.5 / parameter[0].numel() ** 0.5)
    return denoiser


def plain_export(denoiser: Denoiser, path: Path) -> None:
    """What torch's exporter makes of the generator as it was trained."""
    inputs = example_inputs(denoiser, 2)
    batch = torch.export.Dim("N")
    torch.onnx.export(
        PixelGenerator(denoiser, SIGMA).eval(), inputs, path, dynamo=True, opset_version=21,
        input_names=["latents", "class_labels"], output_names=["images"],
        dynamic_shapes=({0: batch}, {0: batch}), verbose=False, external_data=False,
    )  # fmt: skip


def eager(module):
    def draw(feed):
        with torch.no_grad():
            return module(*(torch.from_numpy(value) for value in feed.values())).numpy()

    return draw


def peak(dtype: torch.dtype) -> float:
    """GFLOP/s of a 2048 x 2048 matrix product."""
    a = torch.randn(2048, 2048).to(dtype)
    times = []
    for _ in range(8):
        started = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - started)
    return 2 * 2048**3 / min(times) / 1e9


def load_alone(engine: str, path: Path, feed_file: Path) -> str:
    """Seconds to load and MiB resident, measured in a process of its own."""
    code = (
        "import sys,time,numpy as np;feed=dict(np.load(sys.argv[3]));t=time.perf_counter();"
        "from tests.compare import engine_openers as e;"
        "rss=lambda:int(next(l for l in open('/proc/self/status') if l[:5]=='VmRSS').split()[1]);"
        "m=rss();t=time.perf_counter();"
        "draw=getattr(e,sys.argv[1])(sys.argv[2]);s=time.perf_counter()-t;draw(feed);"
        "print(f'{s:.2f} s, +{(rss()-m)/1024:.0f} MiB')"
    )
    command = [sys.executable, "-c", code, engine, str(path), str(feed_file)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=["small", "large", "tiny"])
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one measurement, about")
    parser.add_argument("--compile", action="store_true", help="torch.compile too: minutes")
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    denoiser = network(arguments.which)
    module = PixelGenerator(denoiser, SIGMA).eval()
    with tempfile.TemporaryDirectory() as folder:
        plain, portable, cpu = (Path(folder) / f"{name}.onnx" for name in ("plain", "model", "cpu"))
        plain_export(denoiser, plain)
        export_onnx(denoiser, SIGMA, portable)
        export_onnx(denoiser, SIGMA, cpu, cpu=True)
        engines = {
            "torch eager": eager(module),
            "onnxruntime, plain export": ort(plain),
            "onnxruntime, model.onnx": ort(portable),
            "onnxruntime, two at a time": as_served(portable),
            "openvino, model.onnx": openvino(portable),
            "openvino bf16, model.onnx": openvino(portable, "bf16"),
        }
        files = [("ort", plain), ("ort", portable), ("openvino", portable)]
        engines["onnxruntime, model.cpu.onnx"] = ort(cpu)
        engines["onnxruntime, cpu, two at a time"] = as_served(cpu)
        engines["openvino, model.cpu.onnx"] = openvino(cpu)
        engines["openvino, cpu, two at a time"] = openvino(cpu, streams=THREADS)
        files += [("ort", cpu), ("openvino", cpu)]
        if arguments.compile:
            engines["torch.compile"] = eager(torch.compile(module))
        if arguments.which != "tiny":
            float32, bfloat16 = peak(torch.float32), peak(torch.bfloat16)
            print(f"peak {float32:.0f} GFLOP/s float32, {bfloat16:.0f} bfloat16")
        for batch in map(int, arguments.batches.split(",")):
            inputs = example_inputs(denoiser, batch)
            names = ("latents", "class_labels")
            feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
            compare(engines, feed, batch, arguments.rounds, arguments.seconds)
        np.savez(Path(folder) / "feed.npz", **feed)
        for engine, path in files:
            print(f"{engine} {path.stem}: {load_alone(engine, path, Path(folder) / 'feed.npz')}")


def compare(engines, feed, batch: int, rounds: int, seconds: float) -> None:
    times = {name: [] for name in engines}
    for draw in engines.values():
        draw(feed)
    repeats = 1 + int(seconds / _timed(engines["onnxruntime, plain export"], feed, 1))
    for _ in range(rounds):
        for name, draw in engines.items():
            times[name].append(_timed(draw, feed, repeats))
    base = statistics.median(times["onnxruntime, plain export"])
    for name, taken in times.items():
        middle = statistics.median(taken)
        each = 1000 / batch
        print(
            f"batch {batch:2d}  {name:32s} {middle * each:8.2f} ms/image "
            f"({min(taken) * each:.2f} to {max(taken) * each:.2f})  x{base / middle:.2f}"
        )


def _timed(draw, feed, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        draw(feed)
    return (time.perf_counter() - started) / repeats / getattr(draw, "batches", 1)


if __name__ == "__main__":
    main()
