"""An engine that is watched: what hangs or breaks is noticed, refused at once, and restarted."""

import asyncio
import contextlib
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TypeVar

import structlog

from service.bundle import Bundle, Manifest
from service.engines import (
    Engine,
    EngineBusyError,
    EngineDeadlineError,
    EngineError,
    Images,
    Prepared,
)
from service.serving.canary import Canary
from service.serving.exceptions import EngineDownError

T = TypeVar("T")

log = structlog.get_logger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 0.5  # seconds between two attempts to restart an engine
# Batches that were late or given up, and none that was not, for so many seconds: the engine may
# hang; for less, those who waited were in a hurry.
_SUSPICIOUS_SECONDS = 1.0
# How long a good canary may count: a second, or ten times what it took, so that whoever asks
# without end (readiness needs no key) takes a tenth of the engine's time at most.
_REMEMBERED_SECONDS, _REMEMBERED_TIMES, _REMEMBERED_LONGEST = 1.0, 10.0, 300.0
# How long a batch may take where nobody has said: of images of up to so many pixels.
_SECONDS, _PIXELS = 30.0, 128 * 128
_SLOWER = 10  # times what the canary took: others compute beside a batch


def default_seconds(manifest: Manifest) -> float:
    """How long a batch may take before it is known how long the canary takes: longer if larger."""
    height, width, _ = manifest.image_shape
    return _SECONDS * max(1.0, height * width / _PIXELS)


class Supervisor:
    """Passes batches to an engine and restarts it when it fails.

    A batch that takes longer than `seconds` means that the engine hangs: from then on batches
    are refused at once. A batch that fails makes it suspect, and so do batches that miss their
    deadlines or are given up for a while without one that succeeds: it goes on if it can still
    draw the canary image, otherwise it is down too. A down engine is restarted and tried again
    until the canary image is right. One that is busy is neither.

    Args:
        engine: the engine.
        bundle: what it serves; its first golden image is the canary.
        seconds: how long one batch may take; None: half a minute, or a multiple of what the canary
            takes, for a network of seconds an image.
        on_change: called with True when the engine is up, with False when it is down.
        on_suspicion: called when it becomes suspect, and when it is so no more.
        on_canary: called for each canary image, with whether it was right.

    Attributes:
        engine: the engine.
        restarts: how often it was restarted, successfully or not.
        seconds: how long one batch may take.
        down: why the engine is down, while it is.
    """

    def __init__(
        self,
        engine: Engine,
        bundle: Bundle,
        *,
        seconds: float | None,
        on_change: Callable[[bool], None],
        on_suspicion: Callable[[], None] = lambda: None,
        on_canary: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.engine = engine
        self._bundle = bundle
        self._canary = Canary(bundle, engine.filename)
        self._is_told = seconds is not None
        self.seconds = seconds or default_seconds(bundle.manifest)
        self._on_change = on_change
        self._on_suspicion = on_suspicion
        self._on_canary = on_canary
        self._good_until = -inf  # of the clock: the latest canary counts till then
        self._recovery: asyncio.Task[None] | None = None
        self.restarts = 0
        self._closed = False
        self._lost_since: float | None = None
        self.down: str | None = None

    async def open(self) -> None:
        """Open the engine and draw the canary image, which warms it up.

        A canary that fails does not end the server: the engine starts as down.

        Raises:
            EngineError: the graph cannot be served at all.
        """
        await self.engine.open()
        started = monotonic()
        with contextlib.suppress(EngineError):
            await self.check()
            if not self._is_told:
                batch = _SLOWER * (monotonic() - started) * self.engine.max_batch_size
                self.seconds = min(self.seconds, max(_SECONDS, batch))
            self._on_change(True)
        self._good_until = -inf  # it warmed up, so the time that it took says nothing

    async def generate(
        self,
        prepare: Callable[[], Prepared],
        finish: Callable[[Images], T],
        deadline: float | None = None,
    ) -> T:
        """Compute one batch (see `Engine.generate`).

        Raises:
            EngineDownError: the engine is down; it was not asked.
            EngineBusyError, EngineDeadlineError: see `Engine.generate`.
            EngineError: the batch failed, or took too long.
        """
        self.require_up()
        started = monotonic()
        try:
            result = await self._generate(prepare, finish, deadline)
        except EngineBusyError:
            raise
        except (EngineDeadlineError, asyncio.CancelledError):
            self._record_lost(started)
            raise
        except EngineError as error:
            self._mark_suspect(str(error))
            raise
        self._lost_since = None
        return result

    @property
    def suspect(self) -> bool:
        """Whether it is being looked into, or recovers."""
        return self._recovery is not None

    def require_up(self) -> None:
        """Raise EngineDownError while the engine is down."""
        if self.down is not None:
            raise EngineDownError(self.down)

    async def check(self, *, remember: bool = False) -> None:
        """Draw the canary image beside the queue, and compare it when there is a golden one.

        Beside the queue, because a full queue is no reason to call a model broken.

        Args:
            remember: be content with a canary that was right a moment ago, if no batch has failed
                since and the engine says that it is ready.

        Raises:
            EngineError: the engine is not ready, fails, hangs, or draws another image.
        """
        self.require_up()
        try:
            if remember and monotonic() < self._good_until:
                await self.engine.check()
            else:
                await self._draw_remembered_canary()
        except EngineBusyError:  # so it is at work
            return
        except EngineError as error:
            self._fail(str(error))
            raise

    async def close(self) -> None:
        """Stop the recovery and close the engine."""
        self._closed = True  # a canary that this cuts off is no reason to restart it
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        await self.engine.close()

    async def _generate(
        self,
        prepare: Callable[[], Prepared],
        finish: Callable[[Images], T],
        deadline: float | None = None,
    ) -> T:
        restarts = self.restarts
        try:
            async with asyncio.timeout(self.seconds):
                return await self.engine.generate(prepare, finish, deadline)
        except TimeoutError:
            reason = f"{self._name}: {self.engine.name} gave no answer in {self.seconds:g} s"
            if restarts == self.restarts:  # else it was left behind by a restart: old news
                self._fail(reason)
            raise EngineError(reason) from None

    async def _draw_remembered_canary(self) -> None:
        started = monotonic()
        await self._draw_canary()
        now = monotonic()
        seconds = max(_REMEMBERED_SECONDS, _REMEMBERED_TIMES * (now - started))
        self._good_until = now + min(seconds, _REMEMBERED_LONGEST)

    async def _draw_canary(self) -> None:
        try:
            await self.engine.check()
            images = await self._generate(self._canary.prepare, lambda images: images)
            self._canary.compare(images)
        except EngineBusyError:  # none was drawn
            raise
        except Exception:
            self._on_canary(False)
            raise
        self._on_canary(True)

    @property
    def _name(self) -> str:
        return self._bundle.manifest.name

    @property
    def _names(self) -> dict[str, str]:
        """What log lines name: which engine it is."""
        return {"model": self._name, "device": self.engine.device}

    def _fail(self, reason: str) -> None:
        self._good_until = -inf
        if self.down is None:
            self.down = reason
            self._on_change(False)
            log.error("engine is down", **self._names, reason=reason)
            self._start_recovery(reason)

    def _record_lost(self, started: float) -> None:
        """Note a batch, started at that time, that ended without images; nothing failed in it."""
        self._good_until = -inf
        if self._lost_since is None:
            self._lost_since = started
        if (seconds := monotonic() - self._lost_since) > _SUSPICIOUS_SECONDS:
            self._lost_since = None
            self._mark_suspect(f"no batch was drawn in time for {seconds:.1f} s")

    def _mark_suspect(self, reason: str) -> None:
        self._good_until = -inf
        if self.down is None:  # else it is being restarted
            self._start_recovery(reason)

    def _start_recovery(self, reason: str) -> None:
        if self._recovery is None and not self._closed:
            self._recovery = asyncio.create_task(self._recover(reason))
            self._on_suspicion()

    async def _recover(self, reason: str) -> None:
        """Try the canary; while it fails, be down, restart the engine and try again."""
        try:
            # Down from the start, or since the canary began: another batch may have hung meanwhile.
            if self.down is None and await self._probe() and self.down is None:
                log.warning("suspected, but the engine works", **self._names, reason=reason)
                return
            pause = _FIRST_PAUSE
            while not await self._try_restart():
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            self.down = None
            self._on_change(True)
            log.warning("engine is up again", **self._names)
        finally:
            self._recovery = None
            self._on_suspicion()

    async def _probe(self) -> bool:
        try:
            await self._draw_canary()
        except EngineBusyError:
            return True
        except Exception as error:  # of any kind: the recovery must outlive its failures
            self._fail(_reason(error))
            return False
        return True

    async def _try_restart(self) -> bool:
        self.restarts += 1
        try:
            await self.engine.restart()
            await self._draw_canary()
        except Exception as error:
            if self.down != (reason := _reason(error)):
                log.error("engine is still down", **self._names, reason=reason)
            self.down = reason
            return False
        return True


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, EngineError) else f"{type(error).__name__}: {error}"
