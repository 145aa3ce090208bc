"""The HTTP server process: one socket, one event loop, a reload on SIGHUP, an orderly end."""

import asyncio
import contextlib
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from types import FrameType

import structlog
import uvicorn
import uvloop

from service.addresses import origins
from service.app import create_app
from service.bundle import BundleError, KeyFileError
from service.engines import EngineError
from service.engines.threads import SWITCH_SECONDS, left_behind
from service.http.connections import FileWatch, Room, make_room
from service.http.door import with_door
from service.http.full_queue import FullQueue
from service.http.metrics_port import serving_metrics
from service.http.protocol import bounded
from service.http.security import Keys, KeysError, load_keys
from service.listener import address_of, listen
from service.observability import logs
from service.observability.metrics import Metrics
from service.serving.catalogue import Catalogue, Contents, load_contents
from service.serving.default_model import DefaultModelError
from service.settings import Settings
from service.signals import ENDING, EarlySignals, handling, starting, terminal_is_gone

log = structlog.get_logger(__name__)

_LONG_SECONDS = 10.0  # that a reload takes before the log says that it is still under way


def run(settings: Settings, announce: Callable[[str, Catalogue], None]) -> None:
    """Serve on an event loop of this process; see `serve`."""
    with logs.unblocked():
        sys.setswitchinterval(SWITCH_SECONDS)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # but for the time in `serve`
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, announce))
        log.info("ended")
        if hangs := left_behind():
            log.warning("a native call hangs and is left behind")
    if hangs:
        os._exit(0)


async def serve(settings: Settings, announce: Callable[[str, Catalogue], None]) -> None:
    """Serve until SIGINT or SIGTERM, then finish what was accepted and return.

    SIGHUP loads models and API keys anew, without a request refused. While the first models are
    loaded, SIGINT and SIGTERM end that, and SIGHUP is kept for later.

    The application's lifespan runs here and not under uvicorn, so that a model that cannot be
    served ends as an exception for the caller instead of a logged traceback.

    Args:
        settings: every knob.
        announce: called with the server's URL and models once it accepts requests.

    Raises:
        ListenError: the address is taken or not ours.
        ConnectionsError: more connections are wanted than this process may open.
        BundleError, EngineError: a model cannot be served.
        KeyFileError: the trusted keys cannot be read.
        DefaultModelError: the default is none of the models.
        TracingError: traces were asked for and cannot be made.
    """
    with starting() as signals:
        try:
            await _serve(settings, announce, signals)
        except asyncio.CancelledError:
            if not signals.end:
                raise
            log.info("told to end before it had started")


async def _serve(
    settings: Settings, announce: Callable[[str, Catalogue], None], signals: EarlySignals
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port))
        addresses = {"address": listener}
        if settings.metrics_port is not None:
            second = listen(settings.host, settings.metrics_port, "SID_METRICS_PORT")
            addresses["metrics"] = stack.enter_context(second)
        app = create_app(settings)
        metrics: Metrics = app.state.metrics
        room = Room(make_room(settings.max_connections), metrics.connections_refused.inc)
        metrics.connections_limit.set(room.limit)
        await stack.enter_async_context(app.router.lifespan_context(app))
        if "metrics" in addresses:
            scraped = serving_metrics(addresses["metrics"], metrics, settings)
            await stack.enter_async_context(scraped)
        catalogue: Catalogue = app.state.catalogue
        allowed = origins(settings.cors_origins)
        protocol = bounded(
            settings.body_seconds, settings.max_head_bytes, room, metrics.count_refusal, allowed
        )
        config = uvicorn.Config(
            app,
            http=with_door(protocol, FullQueue(catalogue, app.state.keys, allowed, metrics)),
            timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]  # or a float
            callback_notify=FileWatch().look,
            timeout_notify=1,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # nothing here reads the client's address
            # Beyond our own grace, which ends requests with an answer; uvicorn's cuts them off.
            timeout_graceful_shutdown=math.ceil(settings.grace_seconds) + 2,
        )

        def ready() -> None:
            urls = {name: address_of(one) for name, one in addresses.items()}
            _log_start(urls, settings, catalogue, app.state.keys)
            announce(urls["address"], catalogue)
            if signals.hang_up:
                server.hang_up()

        server = _Server(config, settings, catalogue, app.state.keys, ready)
        metrics.connections.set_function(lambda: len(server.server_state.connections))
        await server.serve(sockets=[listener])


def _log_start(
    addresses: dict[str, str], settings: Settings, catalogue: Catalogue, keys: Keys | None
) -> None:
    engines = {f"{one.engine.name} {one.engine.version}" for one in catalogue.models.values()}
    because = "the default"
    if settings.engine == "auto" and not settings.triton:
        because = "SID_ENGINE=auto: the fastest that draws the right image"
    elif settings.triton or settings.engine:
        because = "SID_TRITON" if settings.triton else "SID_ENGINE"
    log.info(
        "started",
        version=version("sid-serve"),
        **addresses,
        models=[model.tag for model in catalogue.models.values()],
        default=catalogue.default or "none",
        engine=", ".join(sorted(engines)),
        because=because,
        keys=len(keys or ()),
    )


class _Server(uvicorn.Server):
    """uvicorn's server, with readiness that fails first at the end, and exit status 0."""

    def __init__(
        self,
        config: uvicorn.Config,
        settings: Settings,
        catalogue: Catalogue,
        keys: Keys | None,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._settings, self._catalogue, self._on_ready = settings, catalogue, on_ready
        self._keys = keys
        self._stopping = False
        self._reloads: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals while serving.

        uvicorn's own raises them again at the end, so that even an orderly stop looks like a
        death by signal.
        """
        loop = asyncio.get_running_loop()

        def handle(number: int, _: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._stop, loop, signal.Signals(number).name)

        def hang_up(_: int, __: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.hang_up)

        with handling({**dict.fromkeys(ENDING, handle), signal.SIGHUP: hang_up}):
            yield

    def hang_up(self) -> None:
        """Do what SIGHUP asks for."""
        if terminal_is_gone():  # the older meaning of the signal
            self._stop(asyncio.get_running_loop(), "the terminal was closed")
        elif not self._stopping:
            task = asyncio.create_task(self._reload())
            self._reloads.add(task)
            task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        """Serve what the folder of models and the file of keys hold now: both, or all as before."""
        refused = "reload refused, all is served as before"
        keys: Keys | None = None
        stated: str | None = None

        def load() -> Contents:
            nonlocal keys, stated
            if self._settings.keys is not None:
                keys = load_keys(self._settings.keys)
            contents = load_contents(self._settings)
            stated = contents.default
            return contents

        loop = asyncio.get_running_loop()
        long = loop.call_later(_LONG_SECONDS, self._say_that_it_takes_long)
        try:
            served = await self._catalogue.reload(load)
        except (BundleError, DefaultModelError, EngineError, KeyFileError, KeysError) as error:
            log.error(refused, reason=str(error))
        except Exception:
            log.exception(refused)
        else:
            if self._keys is not None and keys is not None:
                self._keys.replace(keys)
            default = self._catalogue.default or "none"
            log.info("reloaded", models=served, default=default, keys=len(self._keys or ()))
            if stated is None and self._catalogue.default and len(served) > 1:
                log.warning(
                    "the default is only remembered: SID_DEFAULT_MODEL keeps it over a restart",
                    default=default,
                )
        finally:
            long.cancel()

    def _say_that_it_takes_long(self) -> None:
        log.warning(
            "the reload takes long, all is served as before: can the models and keys be read?",
            seconds=_LONG_SECONDS,
            models=str(self._settings.models),
        )

    def _stop(self, loop: asyncio.AbstractEventLoop, because: str) -> None:
        if self._stopping:  # asked twice: do not wait for anything
            log.warning("told twice: ends without waiting", because=because)
            self.should_exit = self.force_exit = True
            return
        self._stopping = True
        self._catalogue.draining = True
        # Each answer ends its connection from now on, so that the next request of a client that
        # keeps connections open goes to another server, and none meets one that is being closed.
        last_answer = (b"connection", b"close")
        self.config.encoded_headers.append(last_answer)  # uvicorn copies them once a second
        self.server_state.default_headers = [*self.server_state.default_headers, last_answer]
        log.info(
            "draining: readiness fails, then accepted requests are finished",
            because=because,
            drain_seconds=self._settings.drain_seconds,
            grace_seconds=self._settings.grace_seconds,
        )
        for reload in self._reloads:
            reload.cancel()
        loop.call_later(self._settings.drain_seconds, setattr, self, "should_exit", True)
        last = self._settings.drain_seconds + self._settings.grace_seconds
        loop.call_later(last, self._abort)

    def _abort(self) -> None:
        self._aborting = asyncio.create_task(self._catalogue.abort())
