"""`sid-distill import`."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from distill.commands.options import AutoencoderOption
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.importing.released import Released, Role


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="A released .pkl of EDM, EDM2 or SiD, or an autoencoder's .safetensors."
        ),
    ],
    name: Annotated[str, typer.Option(help="The network's name: a-z, 0-9, '.', '_', '-'.")],
    role: Annotated[
        str | None,
        typer.Option(
            help="'teacher' or 'generator'. Left out: a teacher if its training is in the file or "
            "its name begins with 'edm', else a generator.",
            show_default=False,
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class names in label order, which are not in the file: with commas between, or "
            "a text file with one a line. Left out: 0, 1, ...",
            show_default=False,
        ),
    ] = None,
    sigma_init: Annotated[
        float, typer.Option(min=0.01, help="Noise level at which a generator denoises.")
    ] = 2.5,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for NAME.safetensors and NAME.json.")
    ] = Path("checkpoints"),
    models: Annotated[
        Path, typer.Option(help="The catalogue in which a generator is published.")
    ] = Path("models"),
    autoencoder: AutoencoderOption = None,
    description: Annotated[str, typer.Option(help="A sentence for the catalogue.")] = "",
    licence: Annotated[
        str | None,
        typer.Option(
            help="Licence of the weights (SPDX), which a student inherits. Left out: EDM's, "
            "EDM2's and SiD's, CC-BY-NC-SA-4.0.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Read a released teacher of EDM or EDM2, or a generator of SiD, running nothing in the file.

    A teacher can then be distilled, a generator is published for 'sid serve'. An autoencoder
    (diffusers' AutoencoderKL, with its config.json beside it) is kept.
    """
    from pydantic import TypeAdapter, ValidationError

    from distill.checkpoints import save_network
    from distill.commands.publish import published
    from distill.export.publish import publish
    from distill.file_kinds import is_autoencoder
    from distill.importing.released import read_released
    from distill.licences import checked_licence
    from service.bundle import write_atomically
    from service.bundle.manifest import Name

    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise UserError(f"{name!r} cannot name a network: use a-z, 0-9, '.', '_', '-'") from None
    if role not in (None, "teacher", "generator"):
        raise UserError(f"--role {role} is neither 'teacher' nor 'generator'")
    if licence is not None:
        licence = checked_licence(licence)
    if is_autoencoder(file):
        if role is not None or classes is not None:
            raise UserError(f"{file} is an autoencoder: it has neither a --role nor --classes")
        _import_autoencoder(file, out / f"{name}.safetensors", licence)
        return
    stated_role = cast("Role | None", role)
    released = read_released(file, stated_role, _names(classes), sigma_init)
    network = out / f"{name}.safetensors"
    metadata = released.metadata if licence is None else released.metadata | {"licence": licence}
    record = json.dumps(_record(released, metadata), indent=2) + "\n"
    save_network(network, released.network, metadata)
    write_atomically(network.with_suffix(".json"), lambda path: path.write_text(record))

    typer.echo(f"{network}: {_summary(released)}")
    assumed = released.metadata["role"]
    if released.reason is not None:
        other = "generator" if assumed == "teacher" else "teacher"
        typer.echo(f"taken for a {assumed}, as {released.reason}; if not: --role {other}")
    if assumed == "teacher":
        _say_how_to_distil(network, name, released)
        return
    if autoencoder is None and (latents := released.metadata.get("latents")):
        typer.echo(
            f"it draws latents of {latents['autoencoder']}: to publish it, name that: "
            + shlex.join(
                ["sid-distill", "publish", str(network), "--name", name, "--autoencoder", "FILE"]
            )
        )
        return
    folder = publish(network, None, name, description, licence, models, autoencoder=autoencoder)
    typer.echo(published(folder, models, name))


def _import_autoencoder(file: Path, out: Path, licence: str | None) -> None:
    """Keep a released autoencoder. Its licence is another than its networks': nobody assumes it."""
    from distill.autoencoders import load_autoencoder, save_autoencoder
    from service.bundle import sha256_file

    autoencoder, metadata = load_autoencoder(file)
    metadata |= {"source": file.name, "source_sha256": sha256_file(file)}
    if licence is not None:
        metadata["licence"] = licence
    save_autoencoder(out, autoencoder, metadata)
    layout = autoencoder.decoder.layout
    weights = sum(p.numel() for half in autoencoder if half for p in half.parameters())
    halves = "decoder" if autoencoder.encoder is None else "encoder and decoder"
    typer.echo(
        f"{out}: an autoencoder's {halves}, {layout.latent_channels} channels, 1 to "
        f"{layout.factor} pixels, {weights / 1e6:.1f} M weights; licence: "
        f"{metadata.get('licence', 'not known')}"
    )


def _say_how_to_distil(network: Path, name: str, released: "Released") -> None:
    """Print the command that distils an imported teacher by the shipped recipe nearest to it."""
    from distill.recipe import fits, nearest_recipe

    config = released.network.config
    latents = "latents" in released.metadata
    recipe, shipped = nearest_recipe(config, str(released.metadata["source"]), latents=latents)
    command = ["sid-distill", "run", "--recipe", recipe]
    if shipped.features:  # which was trained on the images that the recipe is for
        command += ["--features", "none"]
    entries = shipped.methods[shipped.method]  # of the method that the command leaves out
    if config.augment_dim != shipped.network.augment_dim and "augment" in entries:
        command += ["--augment", "0"]
    command += ["--teacher", str(network), "--out", f"runs/{name}"]
    typer.echo(f"to distil it: {shlex.join(command)}")
    if not fits(shipped, config):
        typer.echo(
            "no shipped recipe is for such a network, and the rates of this one may not suit: see "
            "'A recipe' in docs/tutorial.md"
        )


def _names(classes: str | None) -> list[str] | None:
    """Class names from text with commas, or from the lines of a file."""
    if classes is None:
        return None
    from distill.text_files import named_file, read_text

    file = named_file(classes)
    lines = (
        classes.replace("\ufeff", "").split(",") if file is None else read_text(file).split("\n")
    )
    return [line.strip() for line in lines if line.strip()]


def _record(released: "Released", metadata: dict[str, object]) -> dict[str, object]:
    """What a person may want to know of an imported network; the same file, the same record."""
    return {
        **metadata,
        "arguments": released.arguments,
        "network": released.network.config.model_dump(mode="json"),
        "parameters": _parameters(released),
    }


def _summary(released: "Released") -> str:
    config = released.network.config
    classes = f"{config.label_dim} classes" if config.label_dim else "no classes"
    size = f"{config.img_resolution}x{config.img_resolution}x{config.img_channels}"
    return f"{config.architecture}, {size}, {classes}, {_parameters(released) / 1e6:.1f} M weights"


def _parameters(released: "Released") -> int:
    return sum(parameter.numel() for parameter in released.network.parameters())
