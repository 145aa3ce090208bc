"""How fast the product draws images on the card: torch as a reference, and the CUDA engine."""

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from distill.export.one_step import PixelGenerator
from distill.networks import Denoiser
from service.bundle import (
    BASELINE,
    CLASS_LABELS,
    CUDA,
    LATENTS,
    Bundle,
    Graph,
    Manifest,
    Measured,
    Tolerance,
    latents,
    load_bundle,
    noise_and_class,
    sha256_file,
    write_manifest,
)
from service.engines import Engine, Prepared
from tests.gpu.cuda_engine import engine_missing, make_engine
from tests.gpu.networks import network
from tests.gpu.record import Record
from tests.gpu.runner import ROOT
from tests.gpu.timing import REPEATS, WARMUPS, on, seconds_per_call

_SIGMA = 2.5
_BATCHES, _FASHION_BATCHES = (1, 8, 64, 256), (1, 8, 32, 256)
_SECONDS = 4.0  # of one batch size


def run(record: Record) -> None:
    """Fill the table, the rows with aims first."""
    if why := engine_missing(toy=record.toy):
        record.note(f"{why}: the rows of the CUDA engine are left out")
    else:
        asyncio.run(fashion(record))
        asyncio.run(cifar(record))
    eager(record)


async def fashion(record: Record) -> None:
    """The shipped model."""
    bundle = load_bundle(ROOT / "models" / "fashion")
    await ladder(record, "fashion", bundle, _FASHION_BATCHES)


async def cifar(record: Record) -> None:
    """The large network, with weights of a trained one's size."""
    try:
        from distill.export.onnx import export_onnx
    except ModuleNotFoundError as missing:
        record.note(f"needs {missing.name} to export the CIFAR network: its rows are left out")
        return
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        denoiser = network("cifar", toy=record.toy).eval()
        bundle = write_bundle(Path(folder) / "cifar", denoiser, export_onnx, toy=record.toy)
        record.note(f"the CIFAR network was exported in {time.perf_counter() - began:.0f} s")
        await ladder(record, "cifar", bundle, _BATCHES)


def write_bundle(
    folder: Path, denoiser: Denoiser, export: Callable[..., None], *, toy: bool
) -> Bundle:
    """A bundle of an unconditional network that holds the graph that the CUDA engine computes."""
    graph = folder / "1" / CUDA
    graph.parent.mkdir(parents=True)
    export(denoiser, _SIGMA, graph, "float16", cuda=True)
    baseline = graph.parent / BASELINE
    if toy:  # for processors, which have no kernels for the other
        export(denoiser, _SIGMA, baseline, "float16")
    else:  # every bundle has one; the engine that is measured does not open it
        baseline.write_bytes(graph.read_bytes())
    shape = denoiser.config.latent_shape
    channels, *sides = shape
    unmeasured = Measured(
        engine="none", images=1, difference=0, differing_share=0, batch_difference=0
    )
    bounds = Tolerance(max_difference=4, max_differing_share=0.25)
    files = {f"1/{name}": sha256_file(graph.parent / name) for name in (CUDA, BASELINE)}
    manifest = Manifest(
        name=folder.name,
        version=1,
        inputs=noise_and_class(shape, has_classes=False),
        images=(*sides, channels),
        classes=[],
        sigma_init=_SIGMA,
        files=files,
        graphs={CUDA: Graph(precision="float16", bounds=bounds, measured=unmeasured)},
        licence="Apache-2.0",
        description="Random weights, to measure the speed.",
        training={"data": "none", "kimg": 0},
    )
    write_manifest(folder, manifest)
    return load_bundle(folder)


async def ladder(record: Record, key: str, bundle: Bundle, batches: tuple[int, ...]) -> None:
    """Open the engine and measure one batch size after the other."""
    engine = await make_engine(bundle, largest_batch=max(batches), toy=record.toy)
    await engine.open()
    try:
        for batch in batches:
            inputs = graph_inputs(bundle.manifest, 2 if record.toy else batch)
            rate, p50, p95 = await engine_speed(engine, inputs, record.toy)
            record.row(f"{key} {batch}", rate, p50_ms=p50, p95_ms=p95)
            if (key, batch) == ("cifar", 1):
                record.row("cifar latency", p50)
    finally:
        await engine.close()


def graph_inputs(manifest: Manifest, count: int) -> Mapping[str, Any]:
    """Noise, and the first classes where there are any."""
    inputs = {LATENTS: latents(range(count), manifest.inputs[0].shape)}
    if manifest.classes:
        inputs[CLASS_LABELS] = np.arange(count, dtype=np.int64) % len(manifest.classes)
    return inputs


async def engine_speed(
    engine: Engine, inputs: Mapping[str, Any], toy: bool
) -> tuple[float, float, float]:
    """Images a second with all of the engine's slots in use; and of a lone batch p50 and p95 in ms.

    From the batch in the host's memory to the images there, as a gateway sees it.
    """
    prepared = Prepared(inputs)

    async def draw() -> float:
        began = time.perf_counter()
        await engine.generate(lambda: prepared, lambda images: images)
        return time.perf_counter() - began

    for _ in range(1 if toy else WARMUPS):
        one = await draw()
    repeats = 2 if toy else max(3, min(REPEATS, int(_SECONDS / one)))
    alone = [await draw() for _ in range(repeats)]

    async def draw_on() -> None:
        for _ in range(repeats):
            await draw()

    await asyncio.gather(*(draw() for _ in range(engine.concurrency)))
    began = time.perf_counter()
    await asyncio.gather(*(draw_on() for _ in range(engine.concurrency)))
    seconds = time.perf_counter() - began
    rate = len(inputs[LATENTS]) * repeats * engine.concurrency / seconds
    return rate, 1000 * median(alone), 1000 * quantiles(alone, n=20)[-1]


@torch.no_grad()
def eager(record: Record) -> None:
    """The same network by torch, noise and images staying on the card."""
    device = on(record.toy)
    denoiser = network("cifar", toy=record.toy).eval().to(device)
    denoiser.compute_dtype = torch.bfloat16
    module = PixelGenerator(denoiser, _SIGMA).to(device)
    for batch in _BATCHES:
        noise = torch.randn(2 if record.toy else batch, *denoiser.config.latent_shape).to(device)
        seconds, _ = seconds_per_call(
            lambda noise=noise: module(noise), device, budget=_SECONDS, toy=record.toy
        )
        record.row(f"eager {batch}", len(noise) / seconds)
