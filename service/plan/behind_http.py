"""A whole gateway under closed loads: what HTTP costs, and how long batches take behind it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from service.bench import Target, closed, generate_body
from service.plan import PlanError
from service.plan.curve import Gateway, Served
from service.settings import Settings

# Of a gateway that is measured: others would keep us out, or cost what is not asked about.
_LEFT_OUT = ("SID_KEYS", "SID_RATE", "SID_METRICS_PORT", "SID_HOST", "SID_PORT")
_SHORTEST = 0.1  # seconds of a load
_FIRST_LINE = "SiD Serve is ready on "


@dataclass
class _Load:
    """One number of connections that are kept busy: its requests, and sums over their seconds."""

    connections: int
    batch: int  # images of its batches
    requests: int = 0
    loop: float = 0.0  # of the event loop's processor time
    client: float = 0.0
    latency: float = 0.0
    queue: float = 0.0
    engine: float = 0.0  # of their batches: noise, network and files

    @property
    def served(self) -> Served:
        # A connection always has a request under way: in the engine for this share of its time.
        computed = self.connections * self.engine / self.latency
        return Served(
            connections=self.connections,
            batch=self.batch,
            busy=round(computed / self.batch, 3),
            milliseconds=float(f"{self.engine / self.requests * 1000:.5g}"),
        )

    def each(self, seconds: float) -> float:
        """Milliseconds of one request."""
        return round(max(seconds, 0) / self.requests * 1000, 4)


class BehindHttp:
    """The loads of one gateway: a lone connection, one for each slot, and more than fill it.

    With no more connections than slots each request finds an idle slot, so its batch is of one
    image; with so many that the next batch waits meanwhile, all are of the largest size.

    Args:
        url, pid: the gateway's.
        model: which to ask for.
        slots: batches at a time.
        batch: the largest.
    """

    def __init__(self, url: str, pid: int, model: str, slots: int, batch: int) -> None:
        self._target = Target(url, body=generate_body(model))
        self._pid = pid
        few = [_Load(connections, 1) for connections in sorted({1, slots})]
        self._loads = [*few, _Load(most_connections(slots, batch), batch)]

    def warm_up(self, seconds: float) -> None:
        """Put a lone request after the other for so long."""
        if seconds:
            closed(self._target, 1, warmup=0, duration=seconds)

    def measure(self, seconds: float) -> None:
        """Put each load on it for so long, once more; long enough for its connections to open."""
        seconds = max(seconds, _SHORTEST)
        for load in self._loads:
            before = _loop_seconds(self._pid)
            report = closed(self._target, load.connections, warmup=0, duration=seconds)
            load.loop += _loop_seconds(self._pid) - before
            assert report.latency is not None, "closed() raises when nothing is answered"
            count = report.latency.count
            stages = sum(report.stages.values()) * count
            load.requests += count
            load.client += report.cpu_seconds
            load.latency += report.latency.mean * count
            load.queue += report.stages["queue"] * count
            load.engine += stages - report.stages["queue"] * count

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
def gateway(settings: Settings, model: str, room: int) -> Iterator[tuple[str, int]]:
    """A gateway in a process of its own, with this process's settings; yields its URL and id.

    Its queue has room for so many images at least.

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
    }
    process = subprocess.Popen(command, env=kept | ours, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(_FIRST_LINE):
            raise PlanError("the gateway to be measured did not start; `sid serve` says why")
        yield line.removeprefix(_FIRST_LINE).split()[0], process.pid
    finally:
        process.terminate()
        process.communicate()


def _loop_seconds(pid: int) -> float:
    """Processor time so far of a gateway's main thread, which runs its event loop."""
    schedule = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text(encoding="ascii")
    return int(schedule.split()[0]) / 1e9
