"""`sid-distill avatars`."""

from pathlib import Path
from typing import Annotated

import typer


def avatars(
    out: Annotated[Path, typer.Option(help="The .zip to write.")],
    count: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Avatars a class. Left out: 5,000, or 1,000 with --test.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        int,
        typer.Option(min=8, max=512, help="Width and height in pixels, a multiple of 8."),
    ] = 64,
    test: Annotated[
        bool, typer.Option("--test", help="Draw a held-out split: avatars of other seeds.")
    ] = False,
) -> None:
    """Draw a data set of avatars for --data, in colour and in ten classes.

    The styles are DiceBear's, all under CC0 1.0; their licences go into the zip. The same
    versions of dicebear-core, dicebear-styles and resvg-py give the same bytes.
    """
    from tqdm import tqdm

    from distill.data.avatars import PER_TASK, STYLES, write_dataset
    from service.bundle import sha256_file

    count = count or (1_000 if test else 5_000)
    write_dataset(
        out,
        count,
        size,
        "test" if test else "train",
        lambda drawn, total: tqdm(drawn, total=total, unit_scale=PER_TASK, unit="img"),
    )
    typer.echo(f"{count * len(STYLES)} avatars in {out}, sha256 {sha256_file(out)}")
