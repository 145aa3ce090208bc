"""Options that several commands share, and what they come to."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands.errors import CommandError

if TYPE_CHECKING:
    from service.settings import Settings

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


def settings_from(**given: Any) -> "Settings":
    """The settings of SID_* variables, of which what is given here and not None takes the place.

    Raises:
        CommandError: one of them is not valid.
    """
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


def where_to_draw(models: Path | None, url: str | None) -> "Settings | str":
    """A server's address, or the settings of this process, whose log is set up then.

    Raises:
        CommandError: both are given, or a setting is not valid.
    """
    if url is not None:
        if models is not None:
            raise CommandError(
                "--models is for drawing in this process, --url for a server: choose"
            )
        return url
    from service.observability import logs

    settings = settings_from(models=models)
    logs.configure(settings.log_format, settings.log_level)
    return settings
