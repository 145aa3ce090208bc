"""Every metric of the server, named in one place. `/metrics` shows them to Prometheus.

Whatever can be counted stands at 0 from the start: a rate needs a sample before the first event,
or the first error is lost, and a panel of what has never happened shows 0 and not nothing.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import NamedTuple

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from service.bundle import Bundle
from service.engines import Engine
from service.exceptions import RefusedError, reasons
from service.observability import logs
from service.priority import Priority
from service.resources import available_memory

# 0.1 ms to 15 s in round numbers, so that a rule can say le="0.3": a share below a bound is exact.
# A quantile is only known to lie in its bucket, so it is off by up to the bucket's width: a third
# of the value to two thirds (0.3 to 0.5), and less where times spread over several buckets.
_STEPS = ("1", "1.5", "2", "3", "5", "7")
_SECONDS = (*(float(f"{step}e{ten}") for ten in range(-4, 1) for step in _STEPS), 10.0, 15.0)
# Few and coarse, for each priority has them, and far, for what is less urgent may wait long.
_WAITS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0, 300.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_DRAWING = ("/generate", "/v1/images/generations")  # the routes that draw
# What they answer: before they know which model is meant, and after.
_STATUSES_WITHOUT_MODEL = (400, 401, 403, 404, 405, 406, 408, 413, 415, 422, 500)
_STATUSES = (200, 304, 413, 422, 429, 499, 500, 503, 504)

_BATCH_REASONS = ("idle", "freed", "full")
_CANCELLATIONS = tuple(
    (cause, phase) for cause in ("deadline", "abandoned") for phase in ("queued", "running")
)
_CACHE_HITS = ("not_modified", "shared")

# Prometheus needs no word of when each series began; it would be one more series for each.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Timings(NamedTuple):
    """Seconds that an image spent in each stage; all but `queue` are those of its batch."""

    queue: float
    latents: float
    engine: float
    encode: float


class Metrics:
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
        for route, status in product(_DRAWING, _STATUSES_WITHOUT_MODEL):
            self.requests.labels(route, "", str(status))
        self.request_seconds = Histogram(
            "sid_request_seconds",
            "Time from the request's headers to the end of its answer. "
            "What a full queue refuses at once is not among it.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        for route in _DRAWING:
            self.request_seconds.labels(route)
        self.stage_seconds = Histogram(
            "sid_stage_seconds",
            "Time in a stage. Each image: queue, total (queued to encoded). "
            "Each batch: latents, engine, encode.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.image_seconds = Histogram(
            "sid_image_seconds",
            "Time of an image from queued to encoded: the stage total of sid_stage_seconds, by "
            "the priority of who asked for it first.",
            ["model", "priority"],
            buckets=_WAITS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "sid_batch_size", "Images in a batch.", ["model"], buckets=_SIZES, registry=registry
        )
        self.batches = Counter(
            "sid_batches",
            "Batches by why they started: idle (the engine had room when the first image came), "
            "freed (room came, fewer waited than a batch may hold), full (at least as many).",
            ["model", "reason"],
            registry=registry,
        )
        self.batch_failures = Counter(
            "sid_batch_failures",
            "Failures of an engine at a batch: each is drawn again by another engine, if one is "
            "left.",
            ["model"],
            registry=registry,
        )
        self.queue_depth = Gauge(
            "sid_queue_depth",
            "Images that wait for a batch.",
            ["model", "priority"],
            registry=registry,
        )
        self.queue_limit = Gauge(
            "sid_queue_limit",
            "Images that may wait for each model; beyond it requests are refused.",
            registry=registry,
        )
        self.engine_slots = Gauge(
            "sid_engine_places",
            "Batches that the model's engines compute at a time: those that serve now, or all if "
            "none does.",
            ["model"],
            registry=registry,
        )
        self.rejections = Counter(
            "sid_rejections",
            f"Requests refused before anything was computed: {', '.join(reasons())}. engine_busy "
            "means that Triton's own queue is full, deadline that too much waited before them; "
            "queue_full counts those too that made room for a higher priority.",
            ["model", "reason", "priority"],
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
            "GET requests that cost no image: not_modified (the client had it), shared (the "
            "same one was being drawn).",
            ["model", "kind"],
            registry=registry,
        )
        self.engine_up = Gauge(
            "sid_engine_up",
            "1 while the model's engine on the device works; the model is served while one of its "
            "engines does.",
            ["model", "device"],
            registry=registry,
        )
        self.canaries = Counter(
            "sid_canaries",
            "Canary images, which prove that the engine works: for readiness, and after a batch "
            "that failed. right, or wrong (none came, or another than was published).",
            ["model", "result"],
            registry=registry,
        )
        self.tasks = Gauge(
            "sid_tasks",
            "Tasks of the event loop: a handful when idle, one or two per request. A number that "
            "only grows is a leak.",
            registry=registry,
        )
        self.connections = Gauge(
            "sid_connections", "Open connections, idle ones included.", registry=registry
        )
        self.connections_limit = Gauge(
            "sid_connections_limit",
            "Connections that may be open; requests on further ones are refused (503).",
            registry=registry,
        )
        self.connections_refused = Counter(
            "sid_connections_refused",
            "Connections that were refused because too many were open.",
            registry=registry,
        )
        self.log_lines_dropped = Counter(
            "sid_log_lines_dropped",
            "Log lines that were not written: whoever reads them stalls, or the disk is full.",
            registry=registry,
        )
        self._dropped_before = logs.dropped()
        self.memory_limit = Gauge(
            "sid_memory_limit_bytes",
            "Memory that the process may use: its container's limit, or the machine's.",
            registry=registry,
        )
        self.memory_limit.set(available_memory())
        self.model_info = Gauge(
            "sid_model_info",
            "1 for each served model; its identity is in the labels.",
            ["model", "version", "digest", "engine", "engine_version", "precision"],
            registry=registry,
        )
        self.identities: dict[str, tuple[str, ...]] = {}  # the labels shown for each model

    def count_refusal(self, status: int) -> None:
        """Count a request that ended before it was read so far that it has a route."""
        self.requests.labels("other", "", str(status)).inc()

    async def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, written beside the event loop: it takes 5 ms."""
        self.tasks.set(len(asyncio.all_tasks()))
        dropped = logs.dropped()
        self.log_lines_dropped.inc(max(0, dropped - self._dropped_before))
        self._dropped_before = dropped
        return await asyncio.to_thread(generate_latest, self.registry)


class ModelMetrics:
    """The metrics of one model; looks each labelled child up once, not for every image."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._devices: list[str] = []
        for route, status in product(_DRAWING, _STATUSES):
            metrics.requests.labels(route, model, str(status))
        stages = ("total", *Timings._fields)
        self._stage = {name: metrics.stage_seconds.labels(model, name) for name in stages}
        self._image = [metrics.image_seconds.labels(model, str(one)) for one in Priority]
        self._batch_size = metrics.batch_size.labels(model)
        self._batches = {reason: metrics.batches.labels(model, reason) for reason in _BATCH_REASONS}
        self.batch_failures = metrics.batch_failures.labels(model)
        self._rejections = {
            (reason, priority): metrics.rejections.labels(model, reason, str(priority))
            for reason, priority in product(reasons(), Priority)
        }
        self._cancellations = {
            (cause, phase): metrics.cancellations.labels(model, cause, phase)
            for cause, phase in _CANCELLATIONS
        }
        self._canaries = {
            right: metrics.canaries.labels(model, "right" if right else "wrong")
            for right in (True, False)
        }
        self._cache_hits = {kind: metrics.cache_hits.labels(model, kind) for kind in _CACHE_HITS}

    def watch_queue(self, depth: Callable[[Priority], int]) -> None:
        """Report the queue's depth by asking `depth` whenever metrics are read."""
        for priority in Priority:
            shown = self._metrics.queue_depth.labels(self._model, str(priority))
            shown.set_function(partial(depth, priority))

    def describe(self, bundle: Bundle, engine: Engine) -> None:
        """Show which weights and which engine are served, in the place of what was shown."""
        version = str(bundle.manifest.version)
        identity = (
            self._model,
            version,
            bundle.digest,
            engine.name,
            engine.version,
            engine.precision,
        )
        before = self._metrics.identities.get(self._model)
        if before not in (None, identity):
            self._metrics.model_info.remove(*before)
        self._metrics.identities[self._model] = identity
        self._metrics.model_info.labels(*identity).set(1)

    def forget(self) -> None:
        """Show no state of this model any more: it is not served. What was counted stays."""
        for device in self._devices:
            self._metrics.engine_up.remove(self._model, device)
        self._metrics.engine_slots.remove(self._model)
        for priority in Priority:
            self._metrics.queue_depth.remove(self._model, str(priority))
        if identity := self._metrics.identities.pop(self._model, None):
            self._metrics.model_info.remove(*identity)

    def show_engines(self, devices: Mapping[str, bool], slots: int) -> None:
        """Show of each device whether its engine works, and how many batches all compute."""
        self._devices = list(devices)
        for device, up in devices.items():
            self._metrics.engine_up.labels(self._model, device).set(up)
        self._metrics.engine_slots.labels(self._model).set(slots)

    def canary(self, right: bool) -> None:
        """Count a canary image."""
        self._canaries[right].inc()

    def reject(self, error: RefusedError, priority: Priority) -> None:
        """Count a request that was refused before it was drawn, if such refusals are counted."""
        if error.reason:
            self._rejections[error.reason, priority].inc()

    def count_cancellation(self, cause: str, phase: str) -> None:
        """Count an accepted request that was given up."""
        self._cancellations[cause, phase].inc()

    def cache_hit(self, kind: str) -> None:
        """Count a request that cost no image."""
        self._cache_hits[kind].inc()

    def observe_batch(self, size: int, reason: str, timings: Timings) -> None:
        """Record one computed batch."""
        self._batch_size.observe(size)
        self._batches[reason].inc()
        for stage in ("latents", "engine", "encode"):
            self._stage[stage].observe(getattr(timings, stage))

    def observe_image(self, timings: Timings, total: float, priority: Priority) -> None:
        """Record one image: its wait, and the seconds from submission to result."""
        self._stage["queue"].observe(timings.queue)
        self._stage["total"].observe(total)
        self._image[priority].observe(total)
