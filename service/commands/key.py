"""`sid key`: an API key."""

import sys
from typing import Annotated

import typer

from service.commands.errors import CommandError


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
