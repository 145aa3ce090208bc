"""`sid verify`: which model, class and seed drew an image."""

from pathlib import Path
from typing import Annotated

import typer

from service.commands.options import KeyOption, ModelsOption, UrlOption, where_to_draw


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

    report = verify(where_to_draw(models, url), key, image)
    print(report.line)
    raise typer.Exit(report.verdict)
