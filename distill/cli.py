"""`sid-distill`: train a teacher, distil it, measure, export and publish."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from distill.commands.analyze import analyze
from distill.commands.autoencoder import autoencoder
from distill.commands.avatars import avatars
from distill.commands.decoder import decoder
from distill.commands.evaluate import evaluate
from distill.commands.export import export
from distill.commands.features import features
from distill.commands.import_ import import_
from distill.commands.latents import latents
from distill.commands.publish import publish
from distill.commands.reference import reference
from distill.commands.regress import regress
from distill.commands.run import run
from distill.commands.teacher import teacher
from distill.errors import UserError, first_line, how_to_install
from distill.threads import share_processors

app = typer.Typer(
    help="From a diffusion teacher to a one-step generator that 'sid serve' offers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sid-distill {version('sid-serve')}")
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


training = (teacher, regress, run)
data = (avatars, autoencoder, latents)
afterwards = (decoder, evaluate, analyze, features, reference, export, publish)
for command in data + training + afterwards:
    app.command()(command)
app.command("import")(import_)


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit code 2."""
    share_processors()  # the commands import torch when they are called
    try:
        app()
    except UserError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: training needs 'make setup-dev', or "
        message += how_to_install("distill")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        message = (
            f"not enough memory ({first_line(error)}): a smaller --microbatch takes less, and "
        )
        message += "so does a smaller network"
    except OSError as error:  # a folder that cannot be written, a full disk
        message = f"{error.filename or 'input or output'}: {error.strerror or error}"
    else:
        return
    # A file's name, or a name in a file, may hold line breaks.
    typer.echo(f"error: {' '.join(message.splitlines())}", err=True)
    sys.exit(2)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether that is what Python or torch says where memory has run out."""
    # torch has an exception of its own for a GPU's memory only; on a CPU the text alone tells.
    gpu = type(error).__name__ == "OutOfMemoryError"  # by name: torch need not be loaded
    return isinstance(error, MemoryError) or gpu or "can't allocate memory" in str(error)
