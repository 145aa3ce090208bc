"""The HTTP server process: one socket, one event loop, and an orderly end."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from service.app import create_app
from service.catalogue import Catalogue
from service.settings import Settings

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ListenError(Exception):
    """The address cannot be listened on; the message says why and what to do."""


async def serve(settings: Settings, announce: Callable[[str, Catalogue], None]) -> None:
    """Serve until SIGINT or SIGTERM, then finish what was accepted and return.

    The application's lifespan runs here and not under uvicorn, so that a model that cannot be
    served ends as an exception for the caller instead of a logged traceback.

    Args:
        settings: every knob.
        announce: called with the server's URL and models once it accepts requests.

    Raises:
        ListenError: the address is taken or not ours.
        BundleError, EngineError: a model cannot be served.
    """
    listener = listen(settings.host, settings.port)
    with contextlib.closing(listener):
        app = create_app(settings)
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
        )
        async with app.router.lifespan_context(app):
            host, port = listener.getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

            catalogue: Catalogue = app.state.catalogue

            def drain() -> None:
                catalogue.draining = True

            server = _Server(
                config,
                on_ready=lambda: announce(url, catalogue),
                on_stop=drain,
                delay=settings.drain_seconds,
            )
            await server.serve(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; raises ListenError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ListenError(
            f"cannot listen on {host}:{port}: {reason}; choose another with --port (or SID_PORT)"
        ) from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server, with readiness that fails first at the end, and exit status 0."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
        delay: float,
    ) -> None:
        super().__init__(config)
        self._on_ready, self._on_stop, self._delay = on_ready, on_stop, delay
        self._stopping = False

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

        def handle(_: int, __: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._stop, loop)

        previous = {number: signal.signal(number, handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._stopping:  # asked twice: do not wait for anything
            self.should_exit = self.force_exit = True
            return
        self._stopping = True
        self._on_stop()
        loop.call_later(self._delay, setattr, self, "should_exit", True)
