"""One served model: makes images of jobs (class, seed), through the queue and the engine."""

import asyncio
from collections.abc import Coroutine, Hashable, Sequence
from time import perf_counter
from typing import Any

import structlog

from service.bundle import Bundle, variant
from service.engines import (
    Engine,
    EngineBusyError,
    EngineDeadlineError,
    EngineError,
)
from service.exceptions import RefusedError
from service.observability.metrics import ModelMetrics, Timings
from service.observability.tracing import UNTRACED, Batch, RequestTrace, start_batch
from service.priority import Priority
from service.serving.batching import Batcher, Reason
from service.serving.engine_pool import EnginePool
from service.serving.exceptions import (
    ComputeError,
    DeadlineError,
    EngineDownError,
    EngineFullError,
    QueueFullError,
)
from service.serving.jobs import ImageJob, ImageResult
from service.serving.pipeline import batch_work
from service.serving.singleflight import SingleFlight

log = structlog.get_logger(__name__)


class _Accepted:
    """A job in the batcher."""

    __slots__ = ("deadline", "job", "running", "submitted", "trace")

    def __init__(
        self, job: ImageJob, submitted: float, deadline: float | None, trace: RequestTrace
    ) -> None:
        self.job = job
        self.submitted = submitted
        self.deadline = deadline
        self.trace = trace
        self.running = False


class ServedModel:
    """A bundle, the watched engines that compute it and the one queue in front of them.

    `engine` is the first of them, which says what all of them are but for the device; `pool` has
    them compute. `metrics` counts what happens to the model, `in_flight` holds the drawings that
    requests may share. `tag` is `name:version:digest:graph` (see `bundle.variant`): it names the
    weights, the form of the graph and its precision, so that two servers of one tag draw the same
    images but for the last bits in which processors and libraries differ.

    Args:
        bundle: what is served.
        engines: what computes it: one for each device.
        queue_size: images that may wait.
        engine_seconds: how long a batch may take before the engine counts as hanging; None: as
            `Supervisor` finds.
        metrics: where this model's figures go.
        provenance: whether PNG files say what drew them.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Sequence[Engine],
        *,
        queue_size: int,
        engine_seconds: float | None,
        metrics: ModelMetrics,
        provenance: bool,
    ) -> None:
        self.bundle = bundle
        self.engine = engine = engines[0]
        self.tag = f"{bundle.tag}:{variant(engine.filename, engine.precision)}"
        self.provenance = provenance
        self.pool = EnginePool(
            engines,
            bundle,
            seconds=engine_seconds,
            on_change=self._engines_changed,
            on_canary=self._canary_drawn,
            on_failure=metrics.batch_failures.inc,
        )
        self.metrics = metrics
        self._is_served = False
        self.in_flight: SingleFlight[list[ImageResult]] = SingleFlight()
        self._batcher: Batcher[_Accepted, ImageResult] = Batcher(
            self._draw,
            max_batch_size=engine.max_batch_size,
            queue_size=queue_size,
            concurrency=self.pool.concurrency,
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.bundle.manifest.name

    async def open(self) -> None:
        """Open the engines; raises EngineError when the graph cannot be served."""
        await self.pool.open()

    def submit(
        self,
        jobs: Sequence[ImageJob],
        deadline: float | None = None,
        trace: RequestTrace = UNTRACED,
        *,
        priority: Priority = Priority.INTERACTIVE,
        shared: Hashable | None = None,
    ) -> Coroutine[Any, Any, list[ImageResult]]:
        """Queue images or refuse them, at once: all or none (see `Batcher.submit`).

        This is the only place where a request is admitted, before anything else is set up for it:
        under overload most requests end here.

        Args:
            jobs: what `resolve_jobs` returned.
            deadline: time of the event loop's clock by which they are wanted.
            trace: the trace of the request that wants them.
            priority: whom they go before, here and not in a Triton server.
            shared: key under which others may join the wait (`promote`), so that the deadline
                only decides admission; None: nobody joins.

        Returns:
            A coroutine that returns the images, and has to be awaited. It raises ClosedError
            (shutting down), DeadlineError (not drawn in time), ComputeError (the engine failed),
            EngineDownError (it failed before their turn) or QueueFullError (it has no room, or
            the queue needed theirs for a higher priority).

        Raises:
            EngineDownError, ClosedError, QueueFullError, DeadlineError: refused; nothing was
                queued.
        """
        submitted = perf_counter()
        ends = deadline if shared is None else None
        accepted = [_Accepted(job, submitted, ends, trace) for job in jobs]
        try:
            self.pool.require_up()
            drawing = self._batcher.submit(accepted, deadline, priority=priority, shared=shared)
        except RefusedError as error:
            self.metrics.reject(error, priority)
            raise
        return self._observed(drawing, accepted, submitted, priority)

    def promote(self, shared: Hashable, priority: Priority) -> None:
        """Have what waits under a key go first for the most urgent of those who wait for it."""
        self._batcher.promote(shared, priority)

    def full_for(self, priority: Priority, ahead: int = 0) -> float | None:
        """Seconds until the queue has room again, if it has none for a single image; else None.

        None also while all engines are down: then that is what a request is refused for. `ahead`
        is how many images are about to be queued before it.
        """
        return self._batcher.full_for(priority, ahead) if self.pool.down is None else None

    async def _observed(
        self,
        drawing: Coroutine[Any, Any, list[ImageResult]],
        accepted: list[_Accepted],
        submitted: float,
        priority: Priority,
    ) -> list[ImageResult]:
        """Wait for the batcher's images, and count how the wait ends."""
        try:
            images = await drawing
        except (asyncio.CancelledError, DeadlineError) as error:
            self.metrics.count_cancellation(
                "deadline" if isinstance(error, DeadlineError) else "abandoned",
                "running" if any(one.running for one in accepted) else "queued",
            )
            raise
        except QueueFullError as error:
            self.metrics.reject(error, priority)
            raise
        except ComputeError as error:
            raise self._named(error, priority) from None
        total = perf_counter() - submitted
        for image in images:
            self.metrics.observe_image(image.timings, total, priority)
        return images

    async def abort(self) -> None:
        """Take no more work, and end what was accepted and is not finished with ClosedError."""
        await self._batcher.close()

    async def close(self, grace_seconds: float) -> None:
        """Finish accepted work, give up what is left after `grace_seconds`, free the engines."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self._batcher.drain()
        except TimeoutError:
            log.warning("work given up at shutdown", model=self.name, grace=grace_seconds)
        finally:
            await self._batcher.close()
            await self.pool.close()

    def register(self) -> None:
        """From now on this is the model of its name: the metrics say how it stands."""
        self._is_served = True
        self.metrics.watch_queue(self._batcher.waiting_of)
        self._show_engines()

    def unregister(self, *, replaced: bool) -> None:
        """From now on it is not: another of its name is, or (not `replaced`) none."""
        self._is_served = False
        if not replaced:
            self.metrics.forget()

    def _engines_changed(self) -> None:
        self._batcher.resize(self.pool.concurrency)
        if self._is_served:
            self._show_engines()

    def _show_engines(self) -> None:
        self.metrics.show_engines(self.pool.devices, self.pool.concurrency)
        if self.pool.down is None:  # it may be another version than before
            self.metrics.describe(self.bundle, self.engine)

    def _canary_drawn(self, right: bool) -> None:
        if self._is_served:
            self.metrics.canary(right)

    def _named(self, error: ComputeError, priority: Priority) -> Exception:
        """What the failure of a batch means for the request, not always the engine's fault."""
        cause = error.__cause__
        if isinstance(cause, EngineDownError):
            return cause
        if isinstance(cause, EngineBusyError):
            full = EngineFullError(self._batcher.expected_seconds(0, priority))
            self.metrics.reject(full, priority)
            return full
        if isinstance(cause, EngineDeadlineError):
            self.metrics.count_cancellation("deadline", "running")
            return DeadlineError("the image was not drawn in time")
        return error

    async def _draw(self, batch: list[_Accepted], reason: Reason) -> list[ImageResult]:
        """Compute and encode one batch (the batcher's `compute`)."""
        self.pool.require_up()
        started = perf_counter()
        for one in batch:
            one.running = True
        # The batch is wanted for as long as any image of it is.
        deadlines = [one.deadline for one in batch if one.deadline is not None]
        deadline = max(deadlines) if len(deadlines) == len(batch) else None
        waited = {one.trace: started - one.submitted for one in batch}
        jobs = [one.job for one in batch]
        manifest = self.bundle.manifest
        with start_batch(Batch(waited, len(batch), reason, self.name, self.engine)) as trace:
            drawn_by = self.tag if self.provenance else None
            prepare, finish = batch_work(jobs, manifest, trace, drawn_by)
            try:
                drawn = await self.pool.generate(prepare, finish, deadline)
            except EngineError:  # counted and logged where the engines are watched
                raise
            except Exception:
                self.metrics.batch_failures.inc()
                log.exception("batch failed", model=self.name, size=len(batch))
                raise
            trace.timed(drawn.latents_seconds, drawn.encode_seconds)
        engine = perf_counter() - started - drawn.latents_seconds - drawn.encode_seconds
        timings = [
            Timings(started - one.submitted, drawn.latents_seconds, engine, drawn.encode_seconds)
            for one in batch
        ]
        self.metrics.observe_batch(len(batch), reason, timings[0])
        return [
            ImageResult(job, manifest.class_name(job.class_label), pixels, file, timing, trace)
            for job, pixels, file, timing in zip(
                jobs, drawn.images, drawn.files, timings, strict=True
            )
        ]
