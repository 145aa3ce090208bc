"""One served model: what is asked (class, seed) to a picture, through the queue and the engine."""

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import structlog

from service.batching import Batcher, ClosedError, QueueFullError
from service.bundle import Bundle, check_seed, latents
from service.encoding import encode_png
from service.engines import Engine, EngineError, Images, Latents
from service.telemetry import Telemetry, Timings

log = structlog.get_logger(__name__)

# Random seeds stay below 2^32: larger ones repeat the same pictures (see bundle.latents), and
# JavaScript reads whole numbers exactly up to 2^53 only.
_RANDOM_SEED_BITS = 32


@dataclass(eq=False)
class Job:
    """One picture to draw, resolved and checked."""

    class_label: int | None
    seed: int
    submitted: float
    running: bool = False


@dataclass(frozen=True)
class Picture:
    """One picture, and everything needed to draw it again.

    Attributes:
        png: the encoded picture.
        class_label: class index; None when the model is unconditional.
        class_name: the name of that class.
        seed: the seed it was drawn from.
        model: `name:version:digest` of the bundle.
        timings: where its time went.
    """

    png: bytes
    class_label: int | None
    class_name: str | None
    seed: int
    model: str
    timings: Timings


class Model:
    """A bundle, the engine that computes it and the queue in front of that engine."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        *,
        max_batch_size: int,
        queue_size: int,
        telemetry: Telemetry,
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self._telemetry = telemetry
        self._batcher: Batcher[Job, Picture] = Batcher(
            self._draw, max_batch_size=max_batch_size, queue_size=queue_size
        )
        manifest = bundle.manifest
        telemetry.watch_queue(self.name, lambda: self._batcher.waiting)
        telemetry.model_info.labels(
            self.name, str(manifest.version), bundle.digest, engine.name, engine.version
        ).set(1)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.bundle.manifest.name

    @property
    def _conditional(self) -> bool:
        return bool(self.bundle.manifest.classes)

    async def open(self) -> None:
        """Open the engine; raises EngineError when its graph cannot be served."""
        await self.engine.open()

    async def generate(
        self, class_label: int | str | None = None, seed: int | None = None
    ) -> Picture:
        """Draw one picture.

        Args:
            class_label: class index or name. None draws a random class, or is what an
                unconditional model asks for.
            seed: 0..2^64-1; None draws a random one. The picture reports what was drawn.

        Raises:
            ClassLabelError, SeedError: the model has no such class, or the seed is out of range.
            QueueFullError, ClosedError: not accepted now; nothing was computed.
            ComputeError: the engine failed.
        """
        job = Job(self._resolve_class(class_label), _resolve_seed(seed), perf_counter())
        try:
            picture = await self._batcher.submit(job)
        except QueueFullError:
            self._telemetry.rejections.labels(self.name, "queue_full").inc()
            raise
        except ClosedError:
            self._telemetry.rejections.labels(self.name, "draining").inc()
            raise
        except asyncio.CancelledError:
            phase = "running" if job.running else "queued"
            self._telemetry.cancellations.labels(self.name, phase).inc()
            raise
        self._telemetry.observe_picture(self.name, picture.timings, perf_counter() - job.submitted)
        return picture

    async def check(self) -> None:
        """Draw a canary image beside the queue, and compare it when the bundle has a golden one.

        Beside the queue, because a full queue is no reason to call a model broken.

        Raises:
            EngineError: the engine is not ready, fails, or draws another picture.
        """
        if not await self.engine.ready():
            raise EngineError(f"{self.name}: {self.engine.name} is not ready")
        golden = self.bundle.manifest.golden
        if golden is None:
            await self._compute(await self._noise([0]), [0 if self._conditional else None])
            return
        canary = golden.images[0]
        images = await self._compute(await self._noise([canary.seed]), [canary.class_label])
        if mismatch := golden.mismatch(canary, images[0]):
            raise EngineError(f"{self.name}: {mismatch}")

    async def close(self, grace_seconds: float) -> None:
        """Finish accepted work, give up what is left after `grace_seconds`, free the engine."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self._batcher.drain()
        except TimeoutError:
            log.warning("work given up at shutdown", model=self.name, grace=grace_seconds)
        finally:
            await self._batcher.close()
            await self.engine.close()

    def _resolve_class(self, label: int | str | None) -> int | None:
        manifest = self.bundle.manifest
        if label is not None:
            return manifest.resolve_class(label)
        return secrets.randbelow(len(manifest.classes)) if self._conditional else None

    async def _draw(self, jobs: list[Job]) -> list[Picture]:
        """Compute and encode one batch (the batcher's `compute`)."""
        started = perf_counter()
        for job in jobs:
            job.running = True
        self._telemetry.batch_size.labels(self.name).observe(len(jobs))
        try:
            noise = await self._noise([job.seed for job in jobs])
            drawn = perf_counter()
            images = await self._compute(noise, [job.class_label for job in jobs])
            computed = perf_counter()
            files = await asyncio.to_thread(_encode, images)
            encoded = perf_counter()
        except Exception:
            self._telemetry.batch_failures.labels(self.name).inc()
            log.exception("batch failed", model=self.name, size=len(jobs))
            raise
        return [
            Picture(
                png=file,
                class_label=job.class_label,
                class_name=self.bundle.manifest.class_name(job.class_label),
                seed=job.seed,
                model=self.bundle.tag,
                timings=Timings(
                    queue=started - job.submitted,
                    latents=drawn - started,
                    engine=computed - drawn,
                    encode=encoded - computed,
                ),
            )
            for job, file in zip(jobs, files, strict=True)
        ]

    async def _noise(self, seeds: list[int]) -> Latents:
        return await asyncio.to_thread(latents, seeds, self.bundle.manifest.latent_shape)

    async def _compute(self, noise: Latents, labels: Sequence[int | None]) -> Images:
        class_labels = np.array(labels, dtype=np.int64) if self._conditional else None
        return await self.engine.generate(noise, class_labels)


def _resolve_seed(seed: int | None) -> int:
    return secrets.randbits(_RANDOM_SEED_BITS) if seed is None else check_seed(seed)


def _encode(images: Images) -> list[bytes]:
    return [encode_png(image) for image in images]
