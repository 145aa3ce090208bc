"""Measure a service curve on this machine: the engine by itself, then a whole gateway."""

import asyncio
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import uvloop

from service.bench import Target, closed, generate_body
from service.bench.alarm import Alarm
from service.bulk.embedded import open_model
from service.engines.threads import SWITCH_SECONDS
from service.observability.tracing import BatchTrace
from service.plan import PlanError
from service.plan.curve import (
    LEVELS,
    Cell,
    Course,
    Curve,
    Gateway,
    Machine,
    MeasuredEngine,
    Rested,
    Woken,
    now,
)
from service.resources import available_cpus
from service.serving.encoding import PNG
from service.serving.jobs import resolve_jobs
from service.serving.pipeline import batch_work
from service.serving.served_model import ServedModel
from service.settings import Settings

_ROUNDS = 4  # in which the cells take turns, so that a slow moment of the machine meets them all
# Of a gateway that is measured: others would keep us out, or cost what is not asked about.
_LEFT_OUT = ("SID_KEYS", "SID_RATE", "SID_METRICS_PORT", "SID_HOST", "SID_PORT")
_BETWEEN_WAKES = 0.007  # seconds, on average
_FIRST_WAKE = 0.0005  # so that the shortest of measurements has one
_FIRST_LINE = "SiD Serve is ready on "


def measure_curve(settings: Settings, name: str | None, *, warmup: float, duration: float) -> Curve:
    """Measure a model by the engine of the settings, on an otherwise idle machine.

    Args:
        settings: as a gateway's.
        name: which model; None: the default.
        warmup: seconds of load before the lone requests count.
        duration: seconds of each batch size and number of busy slots, and of each load.

    Raises:
        PlanError: this is not Linux, there are several devices, no gateway starts, or the duration
            is too short.
        BundleError, EngineError, UnknownModelError: the model cannot be opened.
    """
    if sys.platform != "linux":
        raise PlanError("a curve is measured on Linux only, which says what the event loop costs")
    if len(settings.device_numbers) > 1:
        raise PlanError("a curve is of one engine: leave one device in SID_DEVICES, or none")
    sys.setswitchinterval(SWITCH_SECONDS)
    machine = Machine(
        processor=_processor(), cores=available_cpus(), load=round(os.getloadavg()[0], 2)
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        measured = runner.run(_measure_engine(settings, name, duration))
    engine, tag, cells, rested, woken, course = measured
    model, _, _ = tag.partition(":")
    most = 2 * max(cell.busy for cell in cells) * max(cell.batch for cell in cells)
    return Curve(
        date=now(),
        machine=machine,
        bundle=tag,
        engine=engine,
        gateway=_measure_gateway(settings, model, most, warmup, duration),
        cells=cells,
        rested=rested,
        woken=woken,
        course=course,
    )


async def _measure_engine(
    settings: Settings, name: str | None, duration: float
) -> tuple[MeasuredEngine, str, list[Cell], list[Rested], list[Woken], Course]:
    async with open_model(settings, name) as model:
        engine = model.engine
        sizes = [1 << n for n in range(engine.max_batch_size.bit_length())]
        sizes = sorted({*sizes, engine.max_batch_size})
        keys = [(k, size) for k in range(1, engine.concurrency + 1) for size in sizes]
        taken: dict[tuple[int, int], list[float]] = {key: [] for key in keys}
        cores: dict[tuple[int, int], list[float]] = {key: [] for key in keys}
        rested: dict[int, list[float]] = {size: [] for size in sizes}
        late: list[list[float]] = [[] for _ in range(engine.concurrency + 1)]
        for size in sizes:  # the first batch of a size is slow
            await asyncio.gather(*(_draw(model, size, 0) for _ in range(engine.concurrency)))
        for number in range(_ROUNDS):
            for busy, size in keys if number % 2 else reversed(keys):
                cpu, began = time.process_time(), time.perf_counter()
                end = began + duration / _ROUNDS
                slots = (_draw_until(model, size, end, taken[busy, size]) for _ in range(busy))
                with _noting_lateness(late[busy]):
                    await asyncio.gather(*slots)
                elapsed = time.perf_counter() - began
                cores[busy, size].append((time.process_time() - cpu) / elapsed)
            for size in sizes:
                end = time.perf_counter() + duration / _ROUNDS
                await _draw_with_pauses(model, size, end, rested[size])
            with _noting_lateness(late[0]):
                await asyncio.sleep(duration / _ROUNDS)
        course = await _measure_course(model, engine.concurrency, sizes[-1], duration * _ROUNDS)
        facts = MeasuredEngine(
            name=engine.name,
            version=engine.version,
            precision=engine.precision,
            threads=settings.threads,
        )
        cells = [_cell(*key, taken[key], cores[key]) for key in keys]
        after_pauses = [
            Rested(batch=size, batches=len(taken), milliseconds=_percentiles(taken))
            for size, taken in rested.items()
        ]
        if not all(late):
            raise PlanError("--duration: too short for the event loop to be woken even once")
        woken = [
            Woken(busy=busy, wakes=len(seconds), milliseconds=_percentiles(seconds))
            for busy, seconds in enumerate(late)
        ]
        return facts, model.tag, cells, after_pauses, woken, course


async def _draw_until(model: ServedModel, size: int, end: float, taken: list[float]) -> None:
    """Keep a slot busy with batches of a size; note the seconds of each."""
    seed = 0
    while True:
        began = time.perf_counter()
        await _draw(model, size, seed)
        ended = time.perf_counter()
        taken.append(ended - began)
        seed += size
        if ended >= end:
            return


async def _measure_course(model: ServedModel, slots: int, size: int, seconds: float) -> Course:
    """Keep all slots busy without a break, and note which batches were slow."""
    batches: list[tuple[float, float]] = []  # when it began, and the seconds that it took
    start = time.perf_counter()

    async def keep_busy() -> None:
        while (began := time.perf_counter() - start) < seconds:
            await _draw(model, size, len(batches) * size)
            batches.append((began, time.perf_counter() - start - began))

    await asyncio.gather(*(keep_busy() for _ in range(slots)))
    batches.sort()
    return Course(
        began=[round(began - batches[0][0], 4) for began, _ in batches],
        ranks=ranks([taken for _, taken in batches]),
        seconds=seconds,
    )


def ranks(taken: Sequence[float]) -> list[float]:
    """Of each batch which share of all took less time, in thousandths; below 1."""
    shares = np.searchsorted(np.sort(taken), taken) / len(taken)
    return [float(one) for one in np.floor(shares * 1000) / 1000]  # rounded, the last would be 1


@contextmanager
def _noting_lateness(late: list[float]) -> Iterator[None]:
    """Meanwhile have the event loop woken now and then; note how many seconds late it was."""
    random = Random(len(late))
    due = 0.0

    def ring() -> None:
        late.append(max(time.perf_counter() - due, 1e-6))
        sleep(random.uniform(0.5, 1.5) * _BETWEEN_WAKES)

    def sleep(seconds: float) -> None:
        nonlocal due
        due = time.perf_counter() + seconds
        alarm.set(due)

    alarm = Alarm(asyncio.get_running_loop(), ring)
    sleep(_FIRST_WAKE)
    try:
        yield
    finally:
        alarm.close()


async def _draw_with_pauses(model: ServedModel, size: int, end: float, taken: list[float]) -> None:
    """Draw a batch now and then, so that a slot is idle two thirds of the time."""
    random = Random(0)
    seconds = 0.0
    while True:
        await asyncio.sleep(random.expovariate(1) * 2 * seconds)
        began = time.perf_counter()
        await _draw(model, size, len(taken) * size)
        ended = time.perf_counter()
        seconds = ended - began
        taken.append(seconds)
        if ended >= end:
            return


async def _draw(model: ServedModel, size: int, seed: int) -> None:
    manifest = model.bundle.manifest
    jobs = resolve_jobs(manifest, None, seed, size, PNG)
    drawn_by = model.tag if model.provenance else None
    await model.engine.generate(*batch_work(jobs, manifest, BatchTrace(), drawn_by))


def _cell(busy: int, batch: int, taken: list[float], cores: list[float]) -> Cell:
    return Cell(
        busy=busy,
        batch=batch,
        batches=len(taken),
        cores=round(float(np.mean(cores)), 3),
        milliseconds=_percentiles(taken),
    )


def _percentiles(taken: list[float]) -> list[float]:
    """Milliseconds by `LEVELS`, of seconds."""
    return [float(f"{value:.5g}") for value in np.percentile(np.array(taken) * 1000, LEVELS)]


def _measure_gateway(
    settings: Settings, model: str, most: int, warmup: float, duration: float
) -> Gateway:
    """What HTTP costs a lone request, and the event loop under as much load as there can be."""
    with _gateway(settings, model, most) as (url, pid):
        target = Target(url, body=generate_body(model))
        if warmup:
            closed(target, 1, warmup=0, duration=warmup)
        before = _loop_seconds(pid)
        lone = closed(target, 1, warmup=0, duration=duration)
        between = _loop_seconds(pid)
        full = closed(target, most, warmup=0, duration=duration * _ROUNDS)
        loop = (_loop_seconds(pid) - between) / full.requests
        lone_loop = (between - before) / lone.requests
    assert lone.latency is not None, "closed() raises when nothing is answered"
    outside = lone.latency.mean - sum(lone.stages.values())
    return Gateway(
        loop_ms=round(loop * 1000, 4),
        lone_ms=round(max(outside, 0) * 1000, 4),
        client_ms=round(full.cpu_seconds_per_request * 1000, 4),
        lone_loop_ms=round(lone_loop * 1000, 4),
        lone_client_ms=round(lone.cpu_seconds_per_request * 1000, 4),
        peak=round(full.images_per_second, 2) or None,
    )


@contextmanager
def _gateway(settings: Settings, model: str, room: int) -> Iterator[tuple[str, int]]:
    """A gateway in a process of its own, with this process's settings; yields its URL and id.

    Its queue has room for so many images at least.
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


def _processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
