"""`sid-distill emoji`."""

from pathlib import Path
from typing import Annotated

import typer


def emoji(
    out: Annotated[Path, typer.Option(help="The .zip to write.")],
    icons: Annotated[
        Path | None,
        typer.Option(
            help="A node_modules/@iconify-json folder with the sets fluent-emoji-flat, noto and "
            "twemoji. Left out: npm fetches them into a temporary folder.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        int, typer.Option(min=8, max=512, help="Width and height of a picture: the recipe's.")
    ] = 32,
    all_tones: Annotated[
        bool,
        typer.Option(
            "--all-tones",
            help="Keep every skin tone of every person: twice the pictures, six in ten of them "
            "people. Left out: one tone each, drawn by a hash of the name.",
        ),
    ] = False,
) -> None:
    """Draw a data set of emoji for --data, in colour and in nine classes.

    It takes three free icon sets from npm and draws them on white; the same versions of them and
    of resvg give the same bytes. Their licences go into the zip.
    """
    import tempfile

    from tqdm import tqdm

    from distill.emoji import (
        SETS,
        fetch_icons,
        licence_of,
        one_tone_each,
        read_icons,
        write_dataset,
    )
    from service.bundle import sha256_file

    with tempfile.TemporaryDirectory() as scratch:
        folder = icons or fetch_icons(Path(scratch))
        licences = [licence_of(folder, source) for source in SETS]
        chosen = read_icons(folder)
    if not all_tones:
        chosen = one_tone_each(chosen)
    counts = write_dataset(out, chosen, size, licences, lambda found: tqdm(found, unit="img"))
    for name, count in sorted(counts.items()):
        typer.echo(f"{count:>6} {name}")
    typer.echo(f"{len(chosen)} pictures in {out}, sha256 {sha256_file(out)}")
