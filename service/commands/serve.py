"""`sid serve` and `sid triton`: the server, alone or over Triton."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands.errors import user_errors
from service.commands.options import ModelsOption, settings_from

if TYPE_CHECKING:
    from service.settings import Settings


def serve(
    host: Annotated[
        str | None,
        typer.Option(help="Address; 0.0.0.0 lets other machines in. Default: 127.0.0.1."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0: any free one. Default: 8000.")
    ] = None,
    models: ModelsOption = None,
) -> None:
    """Serve every model of a folder over HTTP.

    All other settings are environment variables SID_*: docs/reference/configuration.md.
    """
    _end_at_sigterm()
    with _json_errors():
        _serve(_server_settings(host=host, port=port, models=models))


def triton(
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the gateway. Default: 8000.")
    ] = None,
    models: ModelsOption = None,
    grpc_port: Annotated[int, typer.Option(help="Port of Triton's gRPC front end.")] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Port of Triton's metrics.")] = 8002,
    http_port: Annotated[int, typer.Option(help="Port of Triton's HTTP front end.")] = 8003,
) -> None:
    """Run the real Triton server on this machine, without Docker, and the gateway over it.

    Installs it (55 MB) when it is not there yet. Linux on x86-64 only; no GPU.
    """
    _end_at_sigterm()
    with _json_errors():
        from service import announcement
        from service.serving.catalogue import load_contents
        from service.tools import triton_server

        settings = _server_settings(port=port, models=models, triton=f"127.0.0.1:{grpc_port}")
        if settings.trusted_keys:  # before Triton opens what nobody has signed
            load_contents(settings)
        triton_server.install()
        with triton_server.running(
            settings.models, http=http_port, grpc=grpc_port, metrics=metrics_port
        ):
            announcement.say_triton_is_ready(grpc_port, http_port, metrics_port)
            _serve(settings)


@contextmanager
def _json_errors() -> Iterator[None]:
    """Where the log is JSON, log what ends a server, from its first setting on."""
    import structlog

    from service.observability import logs

    if os.environ.get("SID_LOG_FORMAT") == "json":
        logs.configure("json")
    try:
        yield
    except Exception as error:
        if not logs.is_json():
            raise
        if isinstance(error, user_errors()):
            structlog.get_logger().error("cannot serve", reason=str(error))
            raise SystemExit(2) from None
        structlog.get_logger().exception("the server failed")
        raise SystemExit(1) from None


def _end_at_sigterm() -> None:
    """Have SIGTERM end this process, until the server handles it.

    By itself it would, but for process 1 of a container, which ignores what nobody handles.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def _serve(settings: "Settings") -> None:
    from service import announcement, server
    from service.observability import logs

    announce = partial(announcement.announce, wants_key=settings.keys is not None)
    server.run(settings, announcement.stay_silent if logs.is_json() else announce)


def _server_settings(**given: Any) -> "Settings":
    """Those of a server, which refuses variables that mean nothing to it; sets up its log."""
    from service.environment import check_variables
    from service.observability import logs
    from service.settings import Settings

    check_variables(os.environ, Settings.model_fields)
    settings = settings_from(**given)
    logs.configure(settings.log_format, settings.log_level)
    return settings
