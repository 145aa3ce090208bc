"""A whole gateway under closed loads: what HTTP costs, and how long batches take behind it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.bench import Target, closed, generate_body
from service.plan import PlanError
from service.plan.curve import Gateway, Served
from service.settings import Settings

# Of a gateway that is measured: others would keep us out, or cost what is not asked about.
_LEFT_OUT = (
    "SID_KEYS",
    "SID_RATE",
    "SID_METRICS_PORT",
    "SID_MAX_CONNECTIONS",
    "SID_HOST",
    "SID_PORT",
)
_SHORTEST = 0.1  # seconds of a load
_PATIENCE = 300.0  # seconds for what a load has under way when it ends
_FIRST_LINE = "SiD Serve is ready on "


@dataclass
class _Load:
    """One number of connections that are kept busy: its requests, and sums over their seconds."""

    connections: int
    requests: int = 0
    batches: float = 0.0  # that its images were computed in
    images: float = 0.0
    loop: float = 0.0  # of the event loop's processor time
    client: float = 0.0
    latency: float = 0.0
    queue: float = 0.0
    engine: float = 0.0  # of their batches: noise, network and files

    @property
    def served(self) -> Served:
        # A connection always has a request under way: in the engine for this share of its time.
        computed = self.connections * self.engine / self.latency
        batch = self.images / self.batches
        return Served(
            connections=self.connections,
            batch=round(batch, 3),
            busy=round(computed / batch, 3),
            milliseconds=float(f"{self.engine / self.requests * 1000:.5g}"),
        )

    def each(self, seconds: float) -> float:
        """Milliseconds of one request."""
        return round(max(seconds, 0) / self.requests * 1000, 4)


class BehindHttp:
    """The loads of one gateway: a lone connection, one for each slot, and more than fill it.

    With no more connections than slots each request finds an idle slot, so its batch is of one
    image; with so many that the next batch waits meanwhile, all are of the largest size, unless
    HTTP is slower than the engine.

    Args:
        url, pid: the gateway's.
        model: which to ask for.
        slots: batches at a time.
        batch: the largest.
    """

    def __init__(self, url: str, pid: int, model: str, slots: int, batch: int) -> None:
        self._target = Target(url, body=generate_body(model))
        self._url, self._pid, self._model = url, pid, model
        numbers = sorted({1, slots, most_connections(slots, batch)})
        self._loads = [_Load(connections) for connections in numbers]

    def warm_up(self, seconds: float) -> None:
        """Put a lone request after the other for so long."""
        if seconds:
            closed(self._target, 1, warmup=0, duration=seconds)

    def measure(self, seconds: float) -> None:
        """Put each load on it for so long, once more; long enough for its connections to open.

        Raises:
            PlanError: it does not answer every request.
        """
        for load in self._loads:
            images, batches = self._batches()
            before = _loop_seconds(self._pid)
            report = closed(
                self._target,
                load.connections,
                warmup=0,
                duration=max(seconds, _SHORTEST),
                timeout=_PATIENCE,
            )
            load.loop += _loop_seconds(self._pid) - before
            if report.latency is None or report.latency.count != report.requests:
                raise PlanError(
                    f"the gateway to be measured did not answer every one of {load.connections} "
                    f"connections within {_PATIENCE:g} s; `sid bench -c {load.connections}` on a "
                    "`sid serve` says more"
                )
            after = self._batches()
            load.images += after[0] - images
            load.batches += after[1] - batches
            count = report.latency.count
            stages = sum(report.stages.values()) * count
            load.requests += count
            load.client += report.cpu_seconds
            load.latency += report.latency.mean * count
            load.queue += report.stages["queue"] * count
            load.engine += stages - report.stages["queue"] * count

    def _batches(self) -> tuple[float, float]:
        """Images that the gateway has drawn up to now, and in how many batches."""
        text = httpx.get(f"{self._url}/metrics", trust_env=False, timeout=_PATIENCE).text
        samples = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.labels.get("model") == self._model
        }
        return samples.get("sid_batch_size_sum", 0), samples.get("sid_batch_size_count", 0)

    def costs(self) -> Gateway:
        """What was measured up to now."""
        lone, full = self._loads[0], self._loads[-1]
        return Gateway(
            loop_ms=full.each(full.loop),
            lone_ms=lone.each(lone.latency - lone.queue - lone.engine),
            client_ms=full.each(full.client),
            lone_loop_ms=lone.each(lone.loop),
            lone_client_ms=lone.each(lone.client),
        )

    def served(self) -> list[Served]:
        """How long batches took, by load."""
        return [load.served for load in self._loads]


def most_connections(slots: int, batch: int) -> int:
    """So many that all slots compute the largest batches while the next ones wait."""
    return 2 * slots * batch


@contextmanager
def gateway(
    settings: Settings, model: str, room: int, engine: Mapping[str, str]
) -> Iterator[tuple[str, int]]:
    """A gateway in a process of its own, with this process's settings; yields its URL and id.

    Args:
        settings: of this process.
        model: its default.
        room: for how many images its queue has room at least.
        engine: variables that say which engine computes, where the settings leave that open.

    Raises:
        PlanError: it does not start.
    """
    command = [sys.executable, "-m", "service.cli", "serve", "--host", "127.0.0.1", "--port", "0"]
    command += ["--models", str(settings.models)]
    kept = {key: value for key, value in os.environ.items() if key not in _LEFT_OUT}
    ours = {
        "SID_DEFAULT_MODEL": model,
        "SID_QUEUE_SIZE": str(max(settings.queue_size, room)),
        "SID_LOG_FORMAT": "human",
        "SID_LOG_LEVEL": "warning",
        **engine,
    }
    process = subprocess.Popen(command, env=kept | ours, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(_FIRST_LINE):
            raise PlanError(
                "the gateway to be measured did not start; `sid serve` says why, unless the model "
                "fits into memory only once: it is open here too"
            )
        yield line.removeprefix(_FIRST_LINE).split()[0], process.pid
    finally:
        process.terminate()
        process.communicate()


def _loop_seconds(pid: int) -> float:
    """Processor time so far of a gateway's main thread, which runs its event loop."""
    schedule = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text(encoding="ascii")
    return int(schedule.split()[0]) / 1e9
