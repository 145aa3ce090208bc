"""`sid-distill autoencoder`."""

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
from distill.errors import UserError


def autoencoder(
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    data: DataOption = None,
    background: BackgroundOption = "white",
    resolution: Annotated[
        int, typer.Option(min=8, help="Size to which a folder's images are scaled.")
    ] = 64,
    factor: Annotated[
        int, typer.Option(help="Pixels of an image's side to one of its latents': 2, 4 or 8.")
    ] = 4,
    channels: Annotated[int, typer.Option(min=1, help="Of the latents.")] = 4,
    width: Annotated[
        int, typer.Option(min=8, help="Channels at the images' resolution; below it twice as many.")
    ] = 32,
    images: Annotated[int, typer.Option(min=1, help="Images that it sees.")] = 200_000,
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 16,
    lr: Annotated[float, typer.Option(min=1e-8, help="Adam's learning rate.")] = 1e-3,
    kl: Annotated[
        float,
        typer.Option(min=0, help="Weight of the latents' divergence from a normal distribution."),
    ] = 1e-4,
    seed: Annotated[int, typer.Option(min=0, help="Start of the random stream.")] = 0,
    licence: Annotated[
        str | None,
        typer.Option(
            help="Licence of the weights (SPDX), as the images allow. Left out: 'publish' asks for "
            "it.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a small autoencoder on images, for a network of latents of one's own.

    OUT is for 'latents --autoencoder' and a recipe's entry `autoencoder`.
    """
    from distill.autoencoders import save_autoencoder
    from distill.licences import checked_licence
    from distill.methods.reconstruction import ReconstructionConfig, train_autoencoder
    from distill.networks.autoencoder import AutoencoderLayout

    if factor not in (2, 4, 8):
        raise UserError(f"--factor {factor}: 2, 4 or 8 is expected")
    if width % 8:
        raise UserError(f"--width {width}: a multiple of 8 is expected")
    stated = {} if licence is None else {"licence": checked_licence(licence)}
    dataset = read_images(data, resolution, background)
    layout = AutoencoderLayout(
        img_channels=dataset.shape[0],
        latent_channels=channels,
        widths=(width, *[2 * width] * (factor.bit_length() - 1)),
        blocks=1,
        groups=8,
    )
    config = ReconstructionConfig(images, batch, lr, kl, seed)
    trained, error = train_autoencoder(dataset, layout, config, chosen_device(device))
    metadata = stated | {
        "data": f"{dataset.name}, {len(dataset)} images",
        "error": f"{error:.2f} levels",
        "images_seen": f"{images}",
    }
    save_autoencoder(out, trained, metadata)
    weights = sum(p.numel() for half in trained if half for p in half.parameters())
    typer.echo(
        f"{out}: {weights / 1e6:.1f} M weights; images come back {error:.1f} levels of 255 off on "
        "average"
    )
