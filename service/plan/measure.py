"""Measure a service curve on this machine: the engine by itself and a whole gateway, in turns."""

import asyncio
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import numpy as np
import uvloop

from service.bench.alarm import Alarm
from service.bulk.embedded import open_model
from service.engines.threads import SWITCH_SECONDS
from service.observability.tracing import BatchTrace
from service.plan import PlanError
from service.plan.behind_http import BehindHttp, gateway, most_connections
from service.plan.curve import (
    LEVELS,
    Cell,
    Course,
    Curve,
    Machine,
    MeasuredEngine,
    Rested,
    Woken,
    now,
)
from service.resources import available_cpus
from service.serving.encoding import PNG
from service.serving.engine_selection import ENGINES
from service.serving.jobs import resolve_jobs
from service.serving.pipeline import batch_work
from service.serving.served_model import ServedModel
from service.settings import Settings

_ROUNDS = 4  # in which the cells take turns, so that a slow moment of the machine meets them all
_BETWEEN_WAKES = 0.007  # seconds, on average
_FIRST_WAKE = 0.0005  # so that the shortest of measurements has one


def measure_curve(settings: Settings, name: str | None, *, warmup: float, duration: float) -> Curve:
    """Measure a model by the engine of the settings, on an otherwise idle machine.

    Args:
        settings: as a gateway's.
        name: which model; None: the default.
        warmup: seconds of load before the gateway's requests count.
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
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        opened = open_model(settings, name)
        model = runner.run(opened.__aenter__())
        stack.callback(lambda: runner.run(opened.__aexit__(None, None, None)))
        engine = _Engine(model)
        slots, batch = model.engine.concurrency, engine.sizes[-1]
        room = most_connections(slots, batch)
        started = gateway(settings, model.bundle.manifest.name, room, _as_chosen(settings, model))
        url, pid = stack.enter_context(started)
        behind = BehindHttp(url, pid, model.bundle.manifest.name, slots, batch)
        runner.run(engine.warm_up())
        behind.warm_up(warmup)
        for _ in range(_ROUNDS):
            runner.run(engine.measure(duration / _ROUNDS))
            behind.measure(duration / _ROUNDS)
        return Curve(
            date=now(),
            machine=machine,
            bundle=model.tag,
            engine=MeasuredEngine(
                name=model.engine.name,
                version=model.engine.version,
                precision=model.engine.precision,
                threads=settings.threads,
            ),
            gateway=behind.costs(),
            served=behind.served(),
            cells=engine.cells(),
            rested=engine.rested(),
            woken=engine.woken(),
            course=runner.run(_measure_course(model, slots, batch, duration * _ROUNDS)),
        )


def _as_chosen(settings: Settings, model: ServedModel) -> dict[str, str]:
    """Variables by which a gateway takes the engine that `auto` has chosen here."""
    if settings.engine != "auto" or settings.triton:
        return {}
    (name,) = (name for name, kind in ENGINES.items() if type(model.engine) is kind)
    return {"SID_ENGINE": name, "SID_PRECISION": model.engine.precision}


class _Engine:
    """An engine by itself: what its batches take, in rounds."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        slots, largest = model.engine.concurrency, model.engine.max_batch_size
        self.sizes = sorted({*(1 << n for n in range(largest.bit_length())), largest})
        self._keys = [(k, size) for k in range(1, slots + 1) for size in self.sizes]
        self._taken: dict[tuple[int, int], list[float]] = {key: [] for key in self._keys}
        self._cores: dict[tuple[int, int], list[float]] = {key: [] for key in self._keys}
        self._rested: dict[int, list[float]] = {size: [] for size in self.sizes}
        self._late: list[list[float]] = [[] for _ in range(slots + 1)]

    async def warm_up(self) -> None:
        """Draw a batch of each size in each slot: the first is slow."""
        for size in self.sizes:
            slots = range(self._model.engine.concurrency)
            await asyncio.gather(*(_draw(self._model, size, 0) for _ in slots))

    async def measure(self, seconds: float) -> None:
        """Measure all there is for so long each, once more; each time in the other order."""
        self._keys.reverse()
        for busy, size in self._keys:
            taken = self._taken[busy, size]
            cpu, began = time.process_time(), time.perf_counter()
            slots = (_draw_until(self._model, size, began + seconds, taken) for _ in range(busy))
            with _noting_lateness(self._late[busy]):
                await asyncio.gather(*slots)
            elapsed = time.perf_counter() - began
            self._cores[busy, size].append((time.process_time() - cpu) / elapsed)
        for size in self.sizes:
            end = time.perf_counter() + seconds
            await _draw_with_pauses(self._model, size, end, self._rested[size])
        with _noting_lateness(self._late[0]):
            await asyncio.sleep(seconds)

    def cells(self) -> list[Cell]:
        """What batches took, by how many slots were busy and their size."""
        return [
            Cell(
                busy=busy,
                batch=size,
                batches=len(self._taken[busy, size]),
                cores=round(float(np.mean(self._cores[busy, size])), 3),
                milliseconds=_percentiles(self._taken[busy, size]),
            )
            for busy, size in sorted(self._keys)
        ]

    def rested(self) -> list[Rested]:
        """What they took after pauses."""
        return [
            Rested(batch=size, batches=len(taken), milliseconds=_percentiles(taken))
            for size, taken in self._rested.items()
        ]

    def woken(self) -> list[Woken]:
        """How late the event loop was woken; PlanError if it never was."""
        if not all(self._late):
            raise PlanError("--duration: too short for the event loop to be woken even once")
        return [
            Woken(busy=busy, wakes=len(late), milliseconds=_percentiles(late))
            for busy, late in enumerate(self._late)
        ]


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


def _percentiles(taken: list[float]) -> list[float]:
    """Milliseconds by `LEVELS`, of seconds."""
    return [float(f"{value:.5g}") for value in np.percentile(np.array(taken) * 1000, LEVELS)]


def _processor() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
