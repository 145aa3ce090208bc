"""The command `sid`: serve models, draw a picture without a server, list the catalogue.

Heavy imports stand inside the commands, so that `sid --help` answers at once.
"""

import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from service.catalogue import Catalogue
    from service.generation import Picture
    from service.settings import Settings

app = typer.Typer(
    help="One-step image generation: a class and a seed in, a picture out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelsOption = Annotated[
    Path | None,
    typer.Option("--models", help="Folder of the models. Default: SID_MODELS, or ./models."),
]


def main() -> None:
    """Run the command line: a user's mistake ends in one line on stderr and exit status 2."""
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

    All other settings are environment variables SID_*, which service/settings.py lists.
    """
    from service import logs, server

    settings = _settings(host=host, port=port, models=models)
    logs.configure(settings.log_format)

    asyncio.run(server.serve(settings, _announce))


@app.command()
def generate(
    class_label: Annotated[
        str | None,
        typer.Option(help="Class name or index; random when left out. `sid models` lists them."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="0 to 2^64-1; the same seed draws the same picture. Default: random."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG file to write.")] = Path(
        "picture.png"
    ),
    model: Annotated[
        str | None, typer.Option(help="Which model, where the folder holds several.")
    ] = None,
    models: ModelsOption = None,
) -> None:
    """Draw one picture in this process; no server is needed."""
    settings = _settings(models=models)
    if output.suffix.lower() != ".png":
        raise CommandError(f"{output}: only PNG files are written; name it {output.stem}.png")
    if not output.parent.is_dir():
        raise CommandError(f"{output.parent}: there is no such folder")
    picture = asyncio.run(_draw(settings, model, class_label, seed))
    try:
        output.write_bytes(picture.png)
    except OSError as error:
        raise CommandError(f"{output}: {error.strerror}") from error
    shown = f"{picture.class_name} (class {picture.class_label}), " if picture.class_name else ""
    print(f"{output}: {shown}seed {picture.seed}, model {picture.model}")


@app.command("models")
def list_models(models: ModelsOption = None) -> None:
    """List the models of a folder."""
    from rich.console import Console
    from rich.table import Table

    from service.bundle import list_bundles, load_manifest

    table = Table("name", "version", "size", "classes", "licence", "description", box=None)
    for folder in list_bundles(_settings(models=models).models):
        manifest = load_manifest(folder)
        table.add_row(
            manifest.name,
            str(manifest.version),
            "x".join(str(size) for size in manifest.image_shape),
            ", ".join(manifest.classes) or "-",
            manifest.licence,
            manifest.description,
        )
    Console().print(table)


def _announce(url: str, catalogue: "Catalogue") -> None:
    """Say where the server is, with a request that works on what it serves."""
    name, model = next(iter(catalogue.models.items()))
    body: dict[str, Any] = {"seed": 7}
    if classes := model.bundle.manifest.classes:
        body = {"class_label": classes[-1], **body}
    if len(catalogue.models) > 1:
        body = {"model": name, **body}
    print(
        f"SiD Serve is ready on {url}; API: {url}/docs; Ctrl-C stops it. Try:\n"
        f"  curl {url}/generate -H 'content-type: application/json' "
        f"-d {shlex.quote(json.dumps(body))} -o picture.png",
        flush=True,
    )


class CommandError(Exception):
    """An option that cannot be followed; the message says why."""


async def _draw(
    settings: "Settings", name: str | None, class_label: str | None, seed: int | None
) -> "Picture":
    from service.bundle import list_bundles, load_bundle
    from service.catalogue import open_catalogue, pick
    from service.telemetry import Telemetry

    folders = {folder.name: folder for folder in list_bundles(settings.models)}
    bundle = load_bundle(folders[pick(folders, name)])
    async with open_catalogue([bundle], settings, Telemetry()) as catalogue:
        return await catalogue.resolve(None).generate(class_label, seed)


def _settings(**given: Any) -> "Settings":
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise CommandError(f"SID_{name.upper()}: {first['msg']}, got {first['input']!r}") from error


def _user_errors() -> tuple[type[Exception], ...]:
    """Exceptions whose message is written for the user; anything else is a defect of ours."""
    from service.batching import ComputeError
    from service.bundle import BundleError, ClassLabelError, SeedError
    from service.catalogue import ModelRequiredError, UnknownModelError
    from service.engines import EngineError
    from service.server import ListenError

    return (
        BundleError,
        ClassLabelError,
        CommandError,
        ComputeError,
        EngineError,
        ListenError,
        ModelRequiredError,
        SeedError,
        UnknownModelError,
    )


if __name__ == "__main__":
    main()
