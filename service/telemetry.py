"""Every metric of the server, named in one place. `/metrics` shows them to Prometheus."""

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

# 0.1 ms to 13 s in factors of 1.5: a quantile read from them is at most 22 % off.
_SECONDS = tuple(0.0001 * 1.5**power for power in range(30))
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Timings:
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
            "Time a picture spends in a stage: queue, latents, engine, encode, total.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "sid_batch_size", "Pictures in a batch.", ["model"], buckets=_SIZES, registry=registry
        )
        self.queue_depth = Gauge(
            "sid_queue_depth", "Requests that wait for a batch.", ["model"], registry=registry
        )
        self.rejections = Counter(
            "sid_rejections",
            "Requests that were refused before computing: queue_full, draining.",
            ["model", "reason"],
            registry=registry,
        )
        self.cancellations = Counter(
            "sid_cancellations",
            "Requests whose client left while they were queued or running.",
            ["model", "phase"],
            registry=registry,
        )
        self.batch_failures = Counter(
            "sid_batch_failures", "Batches whose computation failed.", ["model"], registry=registry
        )
        self.model_info = Gauge(
            "sid_model_info",
            "1 for each served model; its identity is in the labels.",
            ["model", "version", "digest", "engine", "engine_version"],
            registry=registry,
        )

    def watch_queue(self, model: str, depth: Callable[[], int]) -> None:
        """Report a model's queue depth by asking `depth` whenever metrics are read."""
        self.queue_depth.labels(model).set_function(depth)

    def observe_picture(self, model: str, timings: Timings, total: float) -> None:
        """Record the stages of one picture, and the seconds from submission to result."""
        for stage, seconds in (*vars(timings).items(), ("total", total)):
            self.stage_seconds.labels(model, stage).observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
