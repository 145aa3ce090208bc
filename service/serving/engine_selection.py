"""Which engine computes a model, on which devices: the one asked for, or the fastest here.

Measured, because nothing foretells it: a processor may have instructions for bfloat16 and be
slower with them, and what is fast for one network is not for another.
"""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

import structlog

from service.bundle import GPU_PIXELS, Bundle, Precision, batch_limit
from service.engines import Engine, EngineError, Images, Prepared
from service.engines.cuda import CudaEngine
from service.engines.embedded import EmbeddedEngine
from service.engines.onnx import OnnxEngine
from service.engines.openvino import OpenVinoEngine
from service.extras import how_to_install
from service.serving.canary import Canary
from service.serving.encoding import PIXELS
from service.serving.jobs import resolve_jobs
from service.serving.pipeline import graph_inputs
from service.serving.supervision import default_seconds
from service.settings import Settings

log = structlog.get_logger(__name__)

# By the names that SID_ENGINE takes: another engine in this process is a line here.
ENGINES: dict[str, type[EmbeddedEngine]] = {
    "onnxruntime": OnnxEngine,
    "openvino": OpenVinoEngine,
    "cuda": CudaEngine,
}
_MEASURED_SECONDS = 0.5


async def make_engines(bundle: Bundle, settings: Settings) -> Sequence[Engine]:
    """The engines that the settings ask for, alike but for their devices, not yet open.

    Raises:
        EngineError: there is no such engine, it does not compute on those devices, what it needs
            is not installed, it reads no graph that the bundle holds in the precision asked for,
            or (auto) none draws the right image.
    """
    if settings.triton_addresses:
        return [_over_triton(bundle, settings)]
    if settings.engine == "auto":
        return await _fastest(bundle, settings)
    if settings.engine not in (None, *ENGINES):
        names = ", ".join(map(repr, ("auto", *ENGINES, "triton")))
        raise EngineError(f"SID_ENGINE: Input should be {names}, got {settings.engine!r}")
    assert settings.precision != "any", "the settings refuse it without auto"
    name = settings.engine or ("cuda" if settings.device_kind == "cuda" else "onnxruntime")
    if settings.device_kind not in (None, ENGINES[name].kind):
        raise EngineError(
            f"SID_DEVICES={settings.devices}: {name} computes on {ENGINES[name].kind}; name such "
            "devices, or another SID_ENGINE"
        )
    return _on_each_device(bundle, settings, name, settings.precision or "float32")


def _on_each_device(
    bundle: Bundle, settings: Settings, name: str, precision: Precision
) -> list[EmbeddedEngine]:
    return [
        ENGINES[name](
            bundle,
            precision=precision,
            threads=settings.threads,
            concurrency=settings.batches_at_a_time(name),
            max_batch_size=settings.max_batch_size,
            number=number,
        )
        for number in settings.device_numbers
    ]


def _over_triton(bundle: Bundle, settings: Settings) -> Engine:
    try:
        from service.engines.triton import TritonEngine  # here: half a second, for its users only
    except ImportError as error:
        raise EngineError(
            f"SID_TRITON needs the extra `triton`, {how_to_install('triton')}: {error}"
        ) from error
    engine = TritonEngine(
        bundle,
        addresses=settings.triton_addresses,
        max_batch_size=settings.max_batch_size
        or batch_limit(TritonEngine.largest_batch, bundle.manifest.image_shape, GPU_PIXELS),
        concurrency=settings.batches_at_a_time("triton"),
    )
    if settings.precision not in (None, "any", engine.precision):
        raise EngineError(
            f"{bundle.manifest.name}: triton computes {engine.filename}, in {engine.precision}, "
            f"and SID_PRECISION asks for {settings.precision}"
        )
    return engine


async def _fastest(bundle: Bundle, settings: Settings) -> list[EmbeddedEngine]:
    """Open, prove and time every engine; return the fastest, not yet open, for each device.

    Of several devices the first is timed.

    In float32, unless the settings name another precision, or `any`: a machine's speed is no
    reason to draw other images than the machine beside it.

    One after the other, and each is closed again, so that no two take memory or processors from
    each other. Each takes the time of its opening, the canary, as many batches as it computes at
    a time, and half a second: 3 s for the three of the shipped model on two processors. One that
    hangs is given up after SID_ENGINE_SECONDS. A reload does the same for new models, beside what
    is served, which slows both down.
    """
    name, wanted = bundle.manifest.name, settings.precision or "float32"
    rates: dict[tuple[str, Precision], float] = {}
    refused: list[str] = []
    for kind, cls in ENGINES.items():
        if settings.device_kind not in (None, cls.kind):
            continue
        if not await asyncio.to_thread(cls.installed):
            continue
        for precision in cls.precisions(bundle):
            if wanted not in ("any", precision):
                continue
            engine = _on_each_device(bundle, settings, kind, precision)[0]
            try:
                rates[kind, precision] = await _images_per_second(engine, bundle, settings)
            except EngineError as error:
                refused.append(f"{_title(kind, precision)} refused: {error}")
            finally:
                await engine.close()
    if not rates:
        reasons = "; ".join(refused) or "the bundle holds no graph that one of them reads"
        raise EngineError(
            f"{name}: no engine that is installed can compute it in {wanted} precision: {reasons}"
        )
    best, *others = sorted(rates, key=lambda candidate: -rates[candidate])
    because = [
        f"{rates[best]:.0f} images/s",
        *(f"{_title(*candidate)} {rates[candidate]:.0f}" for candidate in others),
        *refused,
    ]
    log.info("engine chosen", model=name, engine=_title(*best), because="; ".join(because))
    return _on_each_device(bundle, settings, *best)


async def _images_per_second(engine: Engine, bundle: Bundle, settings: Settings) -> float:
    """Open an engine, have it draw the canary, and time it under the load that it would serve.

    Raises:
        EngineError: it does not open, compute or answer, or draws another image.
    """
    manifest, size = bundle.manifest, engine.max_batch_size
    seconds = settings.engine_seconds or default_seconds(manifest)
    jobs = resolve_jobs(manifest, None, 0, size, PIXELS)
    batch = Prepared(await asyncio.to_thread(graph_inputs, jobs, manifest))

    async def draw(prepare: Callable[[], Prepared]) -> Images:
        try:
            async with asyncio.timeout(seconds):
                return await engine.generate(prepare, lambda images: images)
        except TimeoutError:
            reason = f"no answer in {seconds:g} s"
            raise EngineError(f"{manifest.name}: {reason}") from None

    await engine.open()
    canary = Canary(bundle, engine.filename)
    canary.compare(await draw(canary.prepare))
    # The first batch of a size is slow.
    await asyncio.gather(*(draw(lambda: batch) for _ in range(engine.concurrency)))
    started, batches = monotonic(), 0

    async def draw_on() -> None:
        nonlocal batches
        while monotonic() - started < _MEASURED_SECONDS:
            await draw(lambda: batch)
            batches += 1

    await asyncio.gather(*(draw_on() for _ in range(engine.concurrency)))
    return batches * size / (monotonic() - started)


def _title(kind: str, precision: Precision) -> str:
    return f"{ENGINES[kind].name} {precision}"
