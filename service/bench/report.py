"""What one load showed."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from service.bench.samples import Samples
from service.bench.stats import Latency, curve, latency, stage_means

TIMEOUT = "timeout"


@dataclass(frozen=True)
class Report:
    """The account of one load. All times are seconds.

    The window is the part of a run after its warm-up. A request is counted if it was due in the
    window; one of the warm-up that was never answered is counted too, or a server that hangs
    would look like one that was asked nothing. So `requests` is the sum of `statuses`, `errors`
    and `not_sent`.

    Attributes:
        mode: "closed" or "open".
        connections: how many there were; of an open loop the most at any time.
        rate, arrivals: what an open loop was asked for; None for a closed one.
        warmup, duration: how long the load lasted before the window, and the window.
        images_per_request: images that a good answer holds.
        requests: requests counted.
        statuses: answers by HTTP status. 2xx are good, all others refused.
        errors: requests without an answer, by what became of them.
        not_sent: arrivals of an open loop that found every connection busy.
        requests_per_second: good answers that arrived within the window, for each second of it.
            What a backlog yields after the end is therefore no throughput.
        images_per_second: the same in images.
        latency: of good answers; in an open loop from when the request was due.
        refused: latency of the others.
        lag: how late an open loop wrote its requests: the generator's own share of the latency.
        stages: mean of each stage of Server-Timing over good answers, where a server sends it.
        curve: percentiles of good answers' latency, as (percent, seconds).
        cpu_seconds: processor time that the generator used, warm-up included.
        cpu_seconds_per_request: the same, for each request of the run.
    """

    mode: Literal["closed", "open"]
    connections: int
    rate: float | None
    arrivals: str | None
    warmup: float
    duration: float
    images_per_request: int
    requests: int
    statuses: dict[int, int]
    errors: dict[str, int]
    not_sent: int
    requests_per_second: float
    images_per_second: float
    latency: Latency | None
    refused: Latency | None
    lag: Latency | None
    stages: dict[str, float]
    curve: list[tuple[float, float]]
    cpu_seconds: float
    cpu_seconds_per_request: float

    @property
    def label(self) -> str:
        """The load in a few words."""
        if self.mode == "closed":
            return f"{self.connections} connection{'s' * (self.connections != 1)}"
        return f"{self.rate:g}/s {self.arrivals}"

    def as_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {"label": self.label, **asdict(self)}


def summarise(
    samples: Samples,
    window: tuple[float, float],
    *,
    mode: Literal["closed", "open"],
    connections: int,
    warmup: float,
    images: int,
    cpu_seconds: float,
    rate: float | None = None,
    arrivals: str | None = None,
) -> Report:
    """Judge the samples of one run; `window` is its start and end in `perf_counter` seconds."""
    start, end = window
    good: list[float] = []
    refused: list[float] = []
    lags: list[float] = []
    timings: list[bytes] = []
    statuses: Counter[int] = Counter()
    in_time = 0
    for due, sent, done, status, timing in samples.answers():
        is_good = 200 <= status < 300
        in_time += is_good and start <= done < end
        if due < start:
            continue
        statuses[status] += 1
        lags.append(sent - due)
        (good if is_good else refused).append(done - due)
        if is_good and timing is not None:
            timings.append(timing)
    errors = Counter(kind for due, kind in samples.errors if due >= start)
    if samples.late:
        errors[TIMEOUT] = len(samples.late)
    not_sent = sum(due >= start for due in samples.not_sent)
    good.sort()
    per_second = in_time / (end - start)
    return Report(
        mode=mode,
        connections=connections,
        rate=rate,
        arrivals=arrivals,
        warmup=warmup,
        duration=end - start,
        images_per_request=images,
        requests=statuses.total() + errors.total() + not_sent,
        statuses=dict(sorted(statuses.items())),
        errors=dict(sorted(errors.items())),
        not_sent=not_sent,
        requests_per_second=per_second,
        images_per_second=per_second * images,
        latency=latency(good),
        refused=latency(sorted(refused)),
        lag=latency(sorted(lags)) if mode == "open" else None,
        stages=stage_means(timings),
        curve=curve(good),
        cpu_seconds=cpu_seconds,
        cpu_seconds_per_request=cpu_seconds / max(len(samples), 1),
    )
