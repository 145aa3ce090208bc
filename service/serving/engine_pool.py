"""The engines of one model: each watched by itself; a batch goes to the one with the least to do.

An image is a pure function of what is asked for, so a batch that an engine loses is drawn again by
another one. What is lost is only what no engine is left for.
"""

import asyncio
from collections.abc import Callable, Sequence, Set
from typing import TypeVar

import structlog

from service.bundle import Bundle
from service.engines import (
    Engine,
    EngineBusyError,
    EngineDeadlineError,
    EngineError,
    Images,
    Prepared,
)
from service.serving.exceptions import EngineDownError
from service.serving.supervision import Supervisor

T = TypeVar("T")

log = structlog.get_logger(__name__)

# An engine between two restarts: what it failed at before, it may draw after one.
_Life = tuple[Supervisor, int]


class EnginePool:
    """Passes batches to several engines, which are alike but for their devices.

    Least loaded first: the fewest batches under way, and of those the one that was used least
    recently. An engine that is down or suspect (see `Supervisor`) is left out while another one
    serves. No engine is given more than its `concurrency`, not even when it takes over.

    Args:
        engines: one or more.
        bundle: what they serve.
        seconds: how long one batch may take (see `Supervisor`).
        on_change: called when an engine goes down, is up, or is left out for a suspicion.
        on_canary: called for each canary image, with whether it was right.
        on_failure: called for each batch that an engine fails at.

    Attributes:
        supervisors: of each engine, in the order of the engines.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        bundle: Bundle,
        *,
        seconds: float | None,
        on_change: Callable[[], None],
        on_canary: Callable[[bool], None] = lambda _: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = bundle.manifest.name
        self._on_change = on_change
        self._on_failure = on_failure
        self.supervisors = [
            Supervisor(
                engine,
                bundle,
                seconds=seconds,
                on_change=lambda _: self._changed(),
                on_suspicion=self._changed,
                on_canary=on_canary,
            )
            for engine in engines
        ]
        # Batches of each, least recently used first.
        self._under_way = dict.fromkeys(self.supervisors, 0)
        self._freed = asyncio.Event()  # of those who wait now: the next ones wait for another
        self._checks: dict[Supervisor, asyncio.Task[EngineError | None]] = {}

    @property
    def down(self) -> str | None:
        """Why no engine is up; None while one is."""
        reasons = [one.down for one in self.supervisors]
        return None if None in reasons else "; ".join(dict.fromkeys(filter(None, reasons)))

    @property
    def devices(self) -> dict[str, bool]:
        """Of each engine's device whether the engine is up."""
        return {one.engine.device: one.down is None for one in self.supervisors}

    @property
    def concurrency(self) -> int:
        """How many batches the engines that serve compute at a time; of all if none does."""
        serving = self._serving() or self.supervisors
        return sum(one.engine.concurrency for one in serving)

    def require_up(self) -> None:
        """Raise EngineDownError while no engine is up."""
        if (reason := self.down) is not None:
            raise EngineDownError(reason)

    async def open(self) -> None:
        """Open the engines, one after the other (see `Supervisor.open`).

        Raises:
            EngineError: one of them cannot serve the graph at all.
        """
        for supervisor in self.supervisors:
            await supervisor.open()

    async def generate(
        self,
        prepare: Callable[[], Prepared],
        finish: Callable[[Images], T],
        deadline: float | None = None,
    ) -> T:
        """Compute one batch (see `Engine.generate`), by another engine again if one fails at it.

        A batch that fails at every engine, or at one more often than there are engines, is at
        fault itself.

        Raises:
            EngineDownError: all engines are down; none was asked.
            EngineBusyError, EngineDeadlineError: see `Engine.generate`.
            EngineError: the batch failed, or took too long, and no engine is left for it.
        """
        failed: dict[_Life, EngineError] = {}
        while (supervisor := await self._take(failed.keys())) is not None:
            life = supervisor, supervisor.restarts
            if failed:
                reason = str(next(reversed(failed.values())))
                device = supervisor.engine.device
                log.warning("batch is drawn again", model=self._name, device=device, reason=reason)
            try:
                return await supervisor.generate(prepare, finish, deadline)
            except (EngineBusyError, EngineDeadlineError):
                raise
            except EngineError as error:
                failed[life] = error
                self._on_failure()
            finally:
                self._under_way[supervisor] -= 1
                self._wake()
        if failed:
            raise next(reversed(failed.values()))
        raise EngineDownError(self.down or "")

    async def check(self, *, remember: bool = False) -> None:
        """Have each engine that is up draw the canary (see `Supervisor.check`), all at a time.

        Returns once one of them has: an engine that hangs does not make the model wait for it.

        Raises:
            EngineError: none is ready, or draws the right image.
        """
        self.require_up()
        checks = {self._check(one, remember) for one in self.supervisors if one.down is None}
        error: EngineError | None = None
        while checks:
            done, checks = await asyncio.wait(checks, return_when=asyncio.FIRST_COMPLETED)
            for check in done:
                if (error := check.result()) is None:
                    return
        assert error is not None
        raise error

    async def close(self) -> None:
        """Close the engines (see `Supervisor.close`)."""
        for check in self._checks.values():
            check.cancel()
        if self._checks:
            await asyncio.wait(self._checks.values())
        await asyncio.gather(*(supervisor.close() for supervisor in self.supervisors))

    def _check(self, supervisor: Supervisor, remember: bool) -> asyncio.Task[EngineError | None]:
        """Check an engine; where one such check has not ended, it is that one."""
        check = self._checks.get(supervisor)
        if check is None or check.done():
            check = self._checks[supervisor] = asyncio.create_task(_error_of(supervisor, remember))
        return check

    def _serving(self, failed: Set[_Life] = frozenset()) -> list[Supervisor]:
        """The engines that a batch may go to which has failed in these lives."""
        if len(failed) > len(self.supervisors):
            return []
        up = [
            one for one in self._under_way if one.down is None and (one, one.restarts) not in failed
        ]
        return [one for one in up if not one.suspect] or up

    async def _take(self, failed: Set[_Life]) -> Supervisor | None:
        """Wait for an engine that has room, and count a batch of it; None: there is no engine."""
        while serving := self._serving(failed):
            free = [one for one in serving if self._under_way[one] < one.engine.concurrency]
            if free:
                chosen = min(free, key=self._under_way.__getitem__)
                self._under_way[chosen] = self._under_way.pop(chosen) + 1  # the last one now
                return chosen
            await self._freed.wait()
        return None

    def _changed(self) -> None:
        self._wake()
        self._on_change()

    def _wake(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()


async def _error_of(supervisor: Supervisor, remember: bool) -> EngineError | None:
    try:
        await supervisor.check(remember=remember)
    except EngineError as error:
        return error
    return None
