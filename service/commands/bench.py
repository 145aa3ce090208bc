"""`sid bench`: load on a server, or the measured curve of this machine."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.commands.errors import CommandError
from service.commands.options import settings_from


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
        # SIGTERM ends it as Ctrl-C does: by itself it would leave behind the gateway that is
        # measured. In a script's background SIGINT is ignored, and then that would be too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        plan_command.curve(settings_from(), model, curve, warmup=warmup, duration=duration)
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
