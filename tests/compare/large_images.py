"""Whether the files of 512x512 images hold up the engine: images a second with and without them.

    python -m tests.compare.large_images

A small random network of latents with a small decoder is published and served in this process, and
asked for images as pixels (no file), PNG and WebP in turn. Files are made in the thread of the
batch, beside those that compute others: so they cost what they take of the processors, and the
engine waits for none of them.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from service.bundle import load_bundle
from service.observability.metrics import Metrics, ModelMetrics
from service.serving.encoding import PIXELS, PNG, WEBP
from service.serving.engine_selection import make_engines
from service.serving.jobs import resolve_jobs
from service.serving.served_model import ServedModel
from service.settings import Settings
from tests.latents import write_latent_bundle

ROUNDS, IMAGES = 5, 24


async def measure(models: Path) -> None:
    """Serve the model and print what was measured."""
    settings = Settings(models=models)
    bundle = load_bundle(models / "latent")
    (engine,) = await make_engines(bundle, settings)
    metrics = ModelMetrics(Metrics(), "latent")
    model = ServedModel(
        bundle, engine, queue_size=256, engine_seconds=None, metrics=metrics, provenance=True
    )
    await model.open()
    rates: dict[str, list[float]] = {form: [] for form in (PIXELS, PNG, WEBP)}
    encode: dict[str, float] = {}
    for _ in range(ROUNDS):
        for form in rates:
            jobs = resolve_jobs(bundle.manifest, None, 0, IMAGES, form)
            started = time.perf_counter()
            images = await model.submit(jobs)
            rates[form].append(IMAGES / (time.perf_counter() - started))
            encode[form] = statistics.median(image.timings.encode for image in images)
    height, width, _ = bundle.manifest.image_shape
    print(f"{height}x{width}, {engine.concurrency} batches at a time of {engine.max_batch_size}")
    for form, measured in rates.items():
        print(
            f"{form:<12} {statistics.median(measured):6.2f} images/s, "
            f"{encode[form] * 1000:6.1f} ms for a batch's files"
        )
    await model.close(1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_latent_bundle(Path(folder), img_resolution=64, attn_resolutions=[])
        asyncio.run(measure(bundle.parent))
