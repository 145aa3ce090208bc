"""The command `sid`: serve models, draw images with or without a server, list the catalogue."""

import os
import sys
from typing import Annotated

import typer

from service.commands.bench import bench
from service.commands.errors import user_errors
from service.commands.generate import generate
from service.commands.key import key
from service.commands.models import list_models
from service.commands.plan import plan
from service.commands.serve import serve, triton
from service.commands.verify import verify

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


app.command()(serve)
app.command()(triton)
app.command()(generate)
app.command()(verify)
app.command("models")(list_models)
app.command()(bench)
app.command()(plan)
app.command()(key)


def main() -> None:
    """Run the command line: a user's mistake ends in one line on stderr and exit status 2."""
    _open_standard_files()
    try:
        app()
    except Exception as error:
        if not isinstance(error, user_errors()):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


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


if __name__ == "__main__":
    main()
