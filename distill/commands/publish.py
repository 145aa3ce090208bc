"""`sid-distill publish`."""

from pathlib import Path
from typing import Annotated

import typer


def publish(
    generator: Annotated[Path, typer.Argument(help="A generator's .safetensors.")],
    name: Annotated[str, typer.Option(help="The model's name, and its folder's.")],
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Its teacher: the quality of both, as 'evaluate' wrote it, goes into the "
            "manifest. Left out: no quality is stated.",
            show_default=False,
        ),
    ] = None,
    models: Annotated[Path, typer.Option(help="The catalogue's folder.")] = Path("models"),
    description: Annotated[str, typer.Option(help="A sentence for the catalogue.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the weights (SPDX).")] = "Apache-2.0",
) -> None:
    """Export a generator, prove the graph against torch and write its bundle to models/NAME/."""
    from distill.export.publish import publish as publish_bundle

    folder = publish_bundle(generator, teacher, name, description, licence, models)
    typer.echo(f"{folder} is published: sid generate --models {models} --model {name} --seed 0")
