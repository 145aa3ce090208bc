"""`sid plan`: how many machines a wish needs."""

from pathlib import Path
from typing import Annotated

import typer


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
