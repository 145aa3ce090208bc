"""`sid generate`: one image or many."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from service.commands.options import KeyOption, ModelsOption, UrlOption, where_to_draw


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
            where_to_draw(models, url),
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
