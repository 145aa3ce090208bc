"""Every metric of the server, named in one place. `/metrics` shows them to Prometheus."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from service.bundle import Bundle
from service.engines import Engine

# 0.1 ms to 13 s in factors of 1.5: a quantile read from them is at most 22 % off.
_SECONDS = tuple(0.0001 * 1.5**power for power in range(30))
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Timings(NamedTuple):
    """Seconds that a picture spent in each stage; all but `queue` are those of its batch."""

    queue: float
    latents: float
    engine: float
    encode: float


class Telemetry:
    """The metrics of one server, in a registry of its own so that several can live at once."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "sid_requests",
            "Answered HTTP requests; status 499: the client left first.",
            ["route", "model", "status"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "sid_request_seconds",
            "Time from the request's headers to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stage_seconds = Histogram(
            "sid_stage_seconds",
            "Time in a stage. Each picture: queue, total (queued to encoded). "
            "Each batch: latents, engine, encode.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "sid_batch_size", "Pictures in a batch.", ["model"], buckets=_SIZES, registry=registry
        )
        self.batches = Counter(
            "sid_batches",
            "Batches by why they started: idle (the engine had room when the first picture came), "
            "freed (room came, fewer waited than a batch may hold), full (at least as many).",
            ["model", "reason"],
            registry=registry,
        )
        self.batch_failures = Counter(
            "sid_batch_failures", "Batches whose computation failed.", ["model"], registry=registry
        )
        self.queue_depth = Gauge(
            "sid_queue_depth", "Pictures that wait for a batch.", ["model"], registry=registry
        )
        self.rejections = Counter(
            "sid_rejections",
            "Requests refused before anything was computed: queue_full, deadline (too much waited "
            "before them), draining, engine_down, rate_limited.",
            ["model", "reason"],
            registry=registry,
        )
        self.cancellations = Counter(
            "sid_cancellations",
            "Accepted requests given up while they were queued or running: their deadline passed "
            "(deadline), or nobody waits for them any more (abandoned: the client left, or all "
            "that shared a GET gave up).",
            ["model", "cause", "phase"],
            registry=registry,
        )
        self.cache_hits = Counter(
            "sid_cache_hits",
            "GET requests that cost no picture: not_modified (the client had it), shared (the "
            "same one was being drawn).",
            ["model", "kind"],
            registry=registry,
        )
        self.engine_up = Gauge(
            "sid_engine_up", "1 while the model's engine works.", ["model"], registry=registry
        )
        self.tasks = Gauge(
            "sid_tasks",
            "Tasks of the event loop: a handful when idle, one or two a request. A number that "
            "only grows is a leak.",
            registry=registry,
        )
        self.tasks.set_function(lambda: len(asyncio.all_tasks()))
        self.model_info = Gauge(
            "sid_model_info",
            "1 for each served model; its identity is in the labels.",
            ["model", "version", "digest", "engine", "engine_version"],
            registry=registry,
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class ModelMetrics:
    """The metrics of one model; looks each labelled child up once, not for every picture."""

    def __init__(self, telemetry: Telemetry, model: str) -> None:
        self._telemetry = telemetry
        self._model = model
        stages = ("total", *Timings._fields)
        self._stage = {name: telemetry.stage_seconds.labels(model, name) for name in stages}
        self._batch_size = telemetry.batch_size.labels(model)
        self._batches = {
            reason: telemetry.batches.labels(model, reason) for reason in ("idle", "freed", "full")
        }
        self.batch_failures = telemetry.batch_failures.labels(model)

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Report the queue's depth by asking `depth` whenever metrics are read."""
        self._telemetry.queue_depth.labels(self._model).set_function(depth)

    def describe(self, bundle: Bundle, engine: Engine) -> None:
        """Show which weights and which engine are served."""
        version = str(bundle.manifest.version)
        self._telemetry.model_info.labels(
            self._model, version, bundle.digest, engine.name, engine.version
        ).set(1)

    def set_engine_up(self, up: bool) -> None:
        """Show whether the engine works."""
        self._telemetry.engine_up.labels(self._model).set(up)

    def reject(self, reason: str) -> None:
        """Count a request that was refused at once."""
        self._telemetry.rejections.labels(self._model, reason).inc()

    def give_up(self, cause: str, phase: str) -> None:
        """Count an accepted request that was given up."""
        self._telemetry.cancellations.labels(self._model, cause, phase).inc()

    def cache_hit(self, kind: str) -> None:
        """Count a request that cost no picture."""
        self._telemetry.cache_hits.labels(self._model, kind).inc()

    def observe_batch(self, size: int, reason: str, timings: Timings) -> None:
        """Record one computed batch."""
        self._batch_size.observe(size)
        self._batches[reason].inc()
        for stage in ("latents", "engine", "encode"):
            self._stage[stage].observe(getattr(timings, stage))

    def observe_picture(self, timings: Timings, total: float) -> None:
        """Record one picture: its wait, and the seconds from submission to result."""
        self._stage["queue"].observe(timings.queue)
        self._stage["total"].observe(total)
