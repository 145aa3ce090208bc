"""The command `sid`: serve models, draw images with or without a server, list the catalogue.

Heavy imports stand inside the commands, so that `sid --help` answers at once.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from service.settings import Settings

app = typer.Typer(
    help="Image generation in one step or a few: a class and a seed in, an image out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"sid {version('sid-serve')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """What stands before a command; the help is the application's."""


ModelsOption = Annotated[
    Path | None,
    typer.Option("--models", help="Folder of the models. Default: SID_MODELS, or ./models."),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="Have this server draw, http://host:port; left out: this process."),
]
KeyOption = Annotated[
    str | None,
    typer.Option("--key", envvar="SID_KEY", help="The server's API key, if it wants one."),
]


def main() -> None:
    """Run the command line: a user's mistake ends in one line on stderr and exit status 2."""
    _open_standard_files()
    try:
        app()
    except Exception as error:
        if not isinstance(error, _user_errors()):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@app.command()
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


@app.command()
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


@app.command()
def generate(
    class_label: Annotated[
        str | None,
        typer.Option(
            help="Class name or index; with --seeds also `all`. Left out: the seed modulo the "
            "number of classes."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="0 to 2^64-1; the same seed draws the same image. Default: random."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The file to write: .png, .webp or .jpg; with --seeds a folder or .zip. "
            "Default: picture.png.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Which model. Default: the one that `sid models` or a server marks so."),
    ] = None,
    models: ModelsOption = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Draw many: 0-49999 or 0-9,20, each with the class or with `all`. Stopped or "
            "killed, the same command goes on."
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="A label or vector of the model, NAME=3 or 'NAME=[0.2, 0.8]' (GET /models/NAME "
            "lists them); repeat it for more. Left out: the default.",
        ),
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="With --seeds: png (the default), webp or jpeg.")
    ] = None,
    url: UrlOption = None,
    key: KeyOption = None,
    priority: Annotated[
        str | None,
        typer.Option(
            help="With --url, who goes first at a busy server: interactive, bulk or background. "
            "Default: bulk with --seeds; else interactive, or what the key has at most."
        ),
    ] = None,
) -> None:
    """Draw one image or many, in this process or by a server."""
    from service.bulk import command

    try:
        command.generate(
            _place(models, url),
            key=key,
            model=model,
            class_label=class_label,
            seed=seed,
            seeds=seeds,
            inputs=inputs or [],
            form=form,
            output=output,
            priority=priority,
        )
    except command.StoppedError as stopped:
        print(stopped, file=sys.stderr)
        raise typer.Exit(stopped.status) from None


@app.command()
def verify(
    image: Annotated[Path, typer.Argument(help="A PNG file.")],
    models: ModelsOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
) -> None:
    """Say which model, class and seed drew an image, and prove it by drawing it again.

    The exit status says what came of it. 0: genuine, every pixel is the same. 1: altered. 3: nearly
    the same, as another engine or precision draws it. 4: the file does not say what drew it. 5:
    what it says is none of ours. 6: its model, or this version of it, is not here. 2: no PNG file,
    or it cannot be drawn.
    """
    from service.verify.command import verify

    report = verify(_place(models, url), key, image)
    print(report.line)
    raise typer.Exit(report.verdict)


@app.command("models")
def list_models(models: ModelsOption = None) -> None:
    """List the models of a folder, and which of them is the default."""
    from rich.console import Console
    from rich.table import Table

    from service.bundle import describe_signature, list_bundles, load_manifest
    from service.serving.catalogue import trusted_keys
    from service.serving.default_model import choose_default, stated_default

    settings = _settings(models=models)
    folders = list_bundles(settings.models)
    names = [folder.name for folder in folders]
    default = choose_default(names, stated_default(settings, names))
    table = Table("name", "version", "size", "steps", "classes", "licence", "description", box=None)
    trusted = trusted_keys(settings)
    signers = [describe_signature(folder, trusted) for folder in folders]
    shows_signers = trusted is not None or any(signer != "-" for signer in signers)
    if shows_signers:
        table.add_column("signed by")
    for column in table.columns[:4]:  # what is short stays on one line, and can be searched for
        column.no_wrap = True
    for folder, signer in zip(folders, signers, strict=True):
        manifest = load_manifest(folder)
        table.add_row(
            f"{manifest.name} (default)" if manifest.name == default else manifest.name,
            str(manifest.version),
            "x".join(str(size) for size in manifest.image_shape),
            str(manifest.steps),
            ", ".join(manifest.classes) or "-",
            manifest.licence,
            manifest.description,
            *([signer] if shows_signers else []),
        )
    Console().print(table)


@app.command()
def bench(
    url: Annotated[
        str, typer.Argument(help="The server, http://host:port.")
    ] = "http://127.0.0.1:8000",
    connections: Annotated[
        list[int] | None,
        typer.Option(
            "--connections",
            "-c",
            help="Closed loop: requests kept under way; repeat it for more loads. "
            "Default, without --rate: 1, 16 and 64.",
        ),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(
            "--rate", "-r", help="Open loop: requests per second; repeat it for more loads."
        ),
    ] = None,
    arrivals: Annotated[
        str, typer.Option(help="Open loop: poisson (as independent users send) or even.")
    ] = "poisson",
    max_connections: Annotated[
        int,
        typer.Option(help="Open loop: an arrival that finds so many busy is counted as not sent."),
    ] = 512,
    warmup: Annotated[float, typer.Option(help="Seconds of load before anything counts.")] = 1.0,
    duration: Annotated[float, typer.Option(help="Seconds that count, for each load.")] = 5.0,
    timeout: Annotated[
        float, typer.Option(help="Seconds that unanswered requests are waited for at the end.")
    ] = 10.0,
    model: Annotated[
        str | None, typer.Option(help="Which model to ask for. Default: the server's.")
    ] = None,
    class_label: Annotated[
        str | None,
        typer.Option(help="Class name or index; left out: by seed."),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the first request; each has the next one.")
    ] = 0,
    n: Annotated[
        int | None, typer.Option("--n", help="Images a request; left out: one, unasked.")
    ] = None,
    path: Annotated[
        str, typer.Option(help="Where to post; {seed} in path, body or header is the seed.")
    ] = "/generate",
    body: Annotated[
        str | None,
        typer.Option(help="The whole JSON body, for other servers: '{\"seed\": {seed}}'."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", help="One more 'Name: value'; repeat it.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for all figures; - is standard output.")
    ] = None,
    curve: Annotated[
        Path | None,
        typer.Option(
            help="Measure this machine instead of a server, for `sid plan`: write to this file "
            "how long batches of each size take, and what HTTP adds. SID_* settings as for "
            "`sid serve`; with --model, --duration and --warmup only.",
        ),
    ] = None,
) -> None:
    """Put load on a server and report rates and latencies, as its clients see them.

    Where every request is refused it stops, shows one answer, and exits with status 1.
    """
    if curve is not None:
        from service.plan import command as plan_command

        if connections or rate or json_file:
            raise CommandError("--curve measures no load: leave out --connections, --rate, --json")
        plan_command.curve(_settings(), model, curve, warmup=warmup, duration=duration)
        return
    from service.bench import command
    from service.bench.refusal import AllRefusedError

    target = command.make_target(
        url,
        path=path,
        body=body,
        model=model,
        class_label=class_label,
        images=n,
        headers=header or [],
        seed=seed,
    )
    try:
        command.run(
            target,
            connections or [],
            rate or [],
            arrivals=arrivals,
            max_connections=max_connections,
            warmup=warmup,
            duration=duration,
            timeout=timeout,
            json_file=json_file,
        )
    except AllRefusedError as refused:
        print(f"error: {refused}", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def plan(
    curve: Annotated[Path, typer.Argument(help="What `sid bench --curve` wrote.")],
    rate: Annotated[
        float, typer.Option("--rate", "-r", help="Requests per second, one image each.")
    ],
    p99: Annotated[
        float,
        typer.Option(
            help="Milliseconds in which 99 of 100 requests are answered; of a mix, 99 of 100 of "
            "its highest priority."
        ),
    ],
    arrivals: Annotated[
        str,
        typer.Option(
            help="poisson (as independent users send), steady, or bursts (ten requests at once)."
        ),
    ] = "poisson",
    mix: Annotated[
        str | None,
        typer.Option(
            help="Share of the requests that has each priority: interactive=0.7,bulk=0.3. Lower "
            "ones may take any time, but of each 99 of 100 are answered. Left out: all are "
            "interactive."
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(help="What a machine costs for an hour, in any currency.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the plan; - is standard output.")
    ] = None,
    values: Annotated[
        Path | None,
        typer.Option(help="File for values of the Helm chart; - is standard output."),
    ] = None,
) -> None:
    """Plan machines and settings: the fewest that answer so many requests so fast.

    It simulates the server's own batcher with the times of a measured curve.
    Near the peak its p99 may be too hopeful by half (docs/results/planning.md): wish for less.
    """
    from service.plan import command

    command.plan(
        curve,
        rate=rate,
        p99_ms=p99,
        shape=arrivals,
        mix=mix,
        price=price,
        json_file=json_file,
        values_file=values,
    )


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Whose key: shown in logs, and no secret.")],
    priority: Annotated[
        str,
        typer.Option(help="What its requests have at most: interactive, bulk or background."),
    ] = "interactive",
) -> None:
    """Make an API key: its line for the file SID_KEYS on stdout, the key itself on stderr.

    So `sid key alice >> keys` adds the line, and the key is shown this once.
    """
    from service.http.security import new_key
    from service.priority import PRIORITIES, PRIORITY_NAMES

    if priority not in PRIORITIES:
        raise CommandError(f"--priority is {PRIORITY_NAMES}, not {priority}")
    created = new_key(name, PRIORITIES[priority])
    print(created.line, flush=True)
    print(f"the key of {name}, shown only now: {created.secret}", file=sys.stderr)


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
        if isinstance(error, _user_errors()):
            structlog.get_logger().error("cannot serve", reason=str(error))
            raise SystemExit(2) from None
        structlog.get_logger().exception("the server failed")
        raise SystemExit(1) from None


def _end_at_sigterm() -> None:
    """Have SIGTERM end this process, until the server handles it.

    By itself it would, but for process 1 of a container, which ignores what nobody handles.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def _open_standard_files() -> None:
    """Open what the caller closed of standard input, output and error (`sid serve 2>&-`).

    The next file or socket that this process opens would otherwise become, say, standard error,
    and log lines would be written into it.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free: this one
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115


def _serve(settings: "Settings") -> None:
    from service import announcement, server
    from service.observability import logs

    announce = partial(announcement.announce, wants_key=settings.keys is not None)
    server.run(settings, announcement.stay_silent if logs.is_json() else announce)


class CommandError(Exception):
    """An option that cannot be followed; the message says why."""


def _server_settings(**given: Any) -> "Settings":
    """Those of a server, which refuses variables that mean nothing to it; sets up its log."""
    from service.environment import check_variables
    from service.observability import logs
    from service.settings import Settings

    check_variables(os.environ, Settings.model_fields)
    settings = _settings(**given)
    logs.configure(settings.log_format, settings.log_level)
    return settings


def _place(models: Path | None, url: str | None) -> "Settings | str":
    """Where to draw: a server's address, or the settings of this process, with its log set up."""
    if url is not None:
        if models is not None:
            raise CommandError(
                "--models is for drawing in this process, --url for a server: choose"
            )
        return url
    from service.observability import logs

    settings = _settings(models=models)
    logs.configure(settings.log_format, settings.log_level)
    return settings


def _settings(**given: Any) -> "Settings":
    from pydantic import ValidationError

    from service.bundle import first_error
    from service.environment import service_ports
    from service.settings import Settings

    for name in service_ports(os.environ, Settings.model_fields):
        del os.environ[name]  # Settings reads them there
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        place, message, value = first_error(error)
        if not place:  # of several settings together, which the message names
            raise CommandError(message) from error
        raise CommandError(f"SID_{place.upper()}: {message}, got {value!r}") from error


def _user_errors() -> tuple[type[Exception], ...]:
    """Exceptions whose message is written for the user; anything else is a defect of ours."""
    from service.bench import BenchError
    from service.bulk import BulkError
    from service.bundle import (
        BundleError,
        ClassLabelError,
        InputError,
        KeyFileError,
        SeedError,
    )
    from service.client import ClientError
    from service.engines import EngineError
    from service.environment import UnknownVariableError
    from service.http.connections import ConnectionsError
    from service.http.security import KeysError
    from service.listener import ListenError
    from service.observability.tracing import TracingError
    from service.plan import PlanError
    from service.serving.catalogue import ModelRequiredError, UnknownModelError
    from service.serving.default_model import DefaultModelError
    from service.serving.exceptions import ComputeError
    from service.tools.triton_server import TritonServerError
    from service.verify import PngError

    return (
        BenchError,
        BulkError,
        BundleError,
        ClassLabelError,
        ClientError,
        CommandError,
        ComputeError,
        ConnectionsError,
        DefaultModelError,
        EngineError,
        InputError,
        KeyFileError,
        KeysError,
        ListenError,
        ModelRequiredError,
        PlanError,
        PngError,
        SeedError,
        TracingError,
        TritonServerError,
        UnknownModelError,
        UnknownVariableError,
    )


if __name__ == "__main__":
    main()
