"""`sid-distill decoder`."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from distill.commands.options import AutoencoderOption, DeviceOption, chosen_device
from distill.errors import UserError


def decoder(
    generator: Annotated[
        Path,
        typer.Option(help="A generator of latents: a network.safetensors of 'sid-distill run'."),
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    autoencoder: AutoencoderOption = None,
    width: Annotated[
        int | None,
        typer.Option(
            help="Channels of all its maps, a multiple of 8. Left out: half of those that the "
            "autoencoder has at the images' resolution, which is 64 for sd-vae-ft-mse.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images that it sees.")] = 50_000,
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 16,
    lr: Annotated[float, typer.Option(min=1e-8, help="Adam's learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Start of the random stream.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Distil a light decoder: an autoencoder's images for a fraction of its decoder's work.

    It needs no data: the generator draws the latents, and the autoencoder's decoder makes the
    images to learn. OUT is for --autoencoder in the place of that one; it cannot encode.

    Each image costs one of the generator's and of the decoder's, and some three of the light
    one's; for latents of 512x512 pixels that is a training for a GPU. It cannot be resumed:
    Ctrl-C ends it after the step and writes what it has learned so far, a second one nothing.
    """
    from distill.autoencoders import save_light_decoder, weights_sha256
    from distill.export.generator import load_generator
    from distill.licences import licence_of_light_decoder
    from distill.methods.light_decoder import (
        LightDecoderConfig,
        multiplications,
        train_light_decoder,
    )
    from distill.networks.autoencoder import Decoder
    from distill.networks.light_decoder import LightDecoder, LightDecoderLayout, usual_blocks
    from service.bundle import FAR

    loaded = load_generator(generator, autoencoder)
    full = loaded.decoder
    if full is None:
        raise UserError(f"{generator} draws pixels: a light decoder is for a generator of latents")
    if not isinstance(full.decoder, Decoder):
        raise UserError(
            f"{full.space.file} is a light decoder already: name the autoencoder that it imitates "
            "with --autoencoder"
        )
    theirs = full.decoder.layout
    try:
        layout = LightDecoderLayout(
            img_channels=theirs.img_channels,
            latent_channels=theirs.latent_channels,
            width=max(8, theirs.widths[0] // 16 * 8) if width is None else width,
            blocks=usual_blocks(theirs.factor),
        )
    except ValidationError:
        raise UserError(f"--width {width}: a multiple of 8 is expected, from 8 to 1024") from None
    shape = loaded.network.config.latent_shape
    costs, of_full = (multiplications(one, shape) for one in (LightDecoder(layout), full.decoder))
    if costs >= of_full:
        raise UserError(
            f"--width {layout.width}: a light decoder of that width costs {costs / of_full:.1f} "
            "times what the autoencoder's own does: take a smaller one"
        )
    chosen = chosen_device(device)
    drawing = loaded.module().to(chosen).eval().requires_grad_(False)
    trained = train_light_decoder(
        drawing.images, loaded.network.config.label_dim, shape, full, layout,
        LightDecoderConfig(images, batch, lr, seed), chosen,
    )  # fmt: skip
    licence = licence_of_light_decoder(loaded.decoder_licence, loaded.metadata.get("licence"))
    metadata = {
        "latent_space": full.space.sha256,
        "autoencoder": full.space.autoencoder,
        "autoencoder_file": full.space.file,
        "generator": weights_sha256(loaded.network.cpu()),
        "images_seen": trained.images,
        "error": f"{trained.error.mean:.2f} levels",
    } | ({} if licence is None else {"licence": licence})
    save_light_decoder(out, trained.decoder, metadata)
    weights = sum(parameter.numel() for parameter in trained.decoder.parameters())
    typer.echo(
        f"{out}: {weights / 1e6:.2f} M weights and 1/{of_full / costs:.1f} of the decoder's "
        f"multiplications; of seeds that it has not seen its images are {trained.error.mean:.1f} "
        f"levels of 255 off on average, and {trained.error.far:.1%} of their values by more than "
        f"{FAR}; licence: {licence or 'not known'}"
    )
    if trained.images < images:
        typer.echo(f"stopped at {trained.images} images: {out} is what it had learned by then")
        raise typer.Exit(130)
