"""`sid-distill latents`."""

from pathlib import Path
from typing import Annotated

import typer

from distill.commands.options import BackgroundOption, DataOption, DeviceOption, chosen_device
from distill.errors import UserError


def latents(
    autoencoder: Annotated[
        Path,
        typer.Option(
            help="The autoencoder: a .safetensors file that 'sid-distill import' or 'sid-distill "
            "autoencoder' wrote, or diffusers', with its encoder."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; it is there whole or not.")],
    data: DataOption = None,
    background: BackgroundOption = "white",
    resolution: Annotated[
        int,
        typer.Option(
            min=8,
            help="Size to which the images are cropped and scaled: of the network's latents times "
            "the autoencoder's factor, 8 for most.",
        ),
    ] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Images the encoder takes at a time.")] = 8,
    device: DeviceOption = "auto",
) -> None:
    """Encode images into latents, for 'teacher' and 'run' on a network of latents.

    OUT holds the mean and the deviation of each image's latents, from which a training draws anew
    each time it sees an image; and their statistics, by which a teacher's latents are scaled.
    """
    from distill.autoencoders import latent_space_of, load_autoencoder
    from distill.data.datasets import stream_images
    from distill.data.latents_writer import write_latents
    from distill.training.precision import full_float32

    loaded, metadata = load_autoencoder(autoencoder)
    if loaded.encoder is None:
        raise UserError(f"{autoencoder} holds a decoder alone: encoding needs the encoder too")
    factor = loaded.decoder.layout.factor
    if resolution % factor:
        raise UserError(
            f"--resolution {resolution}: {autoencoder} makes one place of its latents of "
            f"{factor}x{factor} pixels, so a multiple of {factor} is needed"
        )
    encoder = loaded.encoder.to(chosen_device(device))
    with full_float32():
        dataset = write_latents(
            out,
            lambda consume: stream_images(data, resolution, background, consume),
            encoder,
            resolution,
            autoencoder.stem,
            latent_space_of(loaded, metadata),
            batch,
        )
    typer.echo(dataset.summary, err=True)
    channels, side = loaded.decoder.layout.latent_channels, resolution // factor
    typer.echo(f"{out}: latents {channels}x{side}x{side} of {len(dataset.labels):,} images")
