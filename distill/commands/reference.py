"""`sid-distill reference`."""

from pathlib import Path
from typing import Annotated

import typer

from distill.commands.options import (
    BackgroundOption,
    DataOption,
    DeviceOption,
    chosen_device,
    read_images,
)


def reference(
    out: Annotated[Path, typer.Option(help="The .npz file to write.")],
    features: Annotated[
        str,
        typer.Option(
            help="Feature extractor: a shipped name, a .safetensors file of 'sid-distill "
            "features', efficientnet-lite0, or the path of FID's own inception-2015-12-05.pt."
        ),
    ],
    data: DataOption = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Size to which a folder's images are scaled first: the generator's.",
            show_default=False,
        ),
    ] = None,
    background: BackgroundOption = "white",
    images: Annotated[
        int | None,
        typer.Option(
            min=256,
            help="Take only this many, drawn at random, the same each time. Left out: all.",
            show_default=False,
        ),
    ] = None,
    keep_features: Annotated[
        bool,
        typer.Option(
            "--keep-features",
            help="Keep each image's features too: kernel distance, precision and recall need them.",
        ),
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Write the statistics of real images, for 'evaluate --reference'.

    The file holds mu and sigma as EDM's and pytorch-fid's do, and says besides over which
    feature extractor and of what data it was made.
    """
    from distill.evaluation.features import load_extractor
    from distill.evaluation.reference import make_reference, save_reference

    extractor = load_extractor(features)
    extractor.network.to(chosen_device(device))
    dataset = read_images(data, resolution, background)
    computed = make_reference(dataset, extractor, images, keep_features)
    save_reference(out, computed, extractor)
    typer.echo(f"{out}: {computed.described}, over {extractor.name}")
