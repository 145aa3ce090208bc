"""Files of autoencoders: those that `sid-distill import` wrote, and released ones as they are."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from distill.errors import UserError
from distill.importing.autoencoder import Autoencoder, read_autoencoder
from distill.networks import NetworkLayout
from distill.networks.autoencoder import AutoencoderLayout
from distill.networks.latent_space import LatentDecoder, LatentSpace
from service.bundle import first_error, write_atomically


def save_autoencoder(path: Path, autoencoder: Autoencoder, metadata: Mapping[str, Any]) -> None:
    """Write the weights by their released names, with the layout and `metadata` in the header."""
    halves = [half for half in autoencoder if half is not None]
    weights = {name: tensor for half in halves for name, tensor in half.state_dict().items()}
    layout = autoencoder.decoder.layout.model_dump_json()
    header = {"autoencoder": layout, "facts": json.dumps(dict(metadata))}
    content = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in weights.items()}, header
    )
    write_atomically(path, lambda file: file.write_bytes(content))


def load_autoencoder(path: Path) -> tuple[Autoencoder, dict[str, Any]]:
    """Read an autoencoder, in eval mode, and what is known of its origin.

    Returns:
        Both halves, and the metadata saved with it: a released file has none.

    Raises:
        UserError: the file is missing, damaged, or no autoencoder.
    """
    groups, metadata = None, {}
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
        groups = AutoencoderLayout.model_validate_json(header["autoencoder"]).groups
        metadata = json.loads(header["facts"])
    except (OSError, SafetensorError, KeyError, ValueError):
        pass  # a released one, or one that is refused below
    return read_autoencoder(path, groups), metadata


def latent_space_of(autoencoder: Autoencoder, metadata: Mapping[str, Any]) -> str:
    """SHA-256 by which two files are known to speak of the same latents.

    That of the decoder's weights, so that a released file and what `import` made of it are the
    same; or what the file states, for a decoder that was made for another one's latents.
    """
    if stated := metadata.get("latent_space"):
        return str(stated)
    digest = hashlib.sha256()
    for name, tensor in sorted(autoencoder.decoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def stated_space(file: Path, metadata: Mapping[str, Any]) -> LatentSpace | None:
    """The latents that a network draws, as its header says; None for a network of pixels.

    Raises:
        UserError: the header says something that cannot be.
    """
    if (stated := metadata.get("latents")) is None:
        return None
    try:
        return LatentSpace.model_validate(stated)
    except ValidationError as error:
        raise UserError(f"{file}: its latents: {first_error(error)}") from None


def load_decoder(
    file: Path, network: NetworkLayout, metadata: Mapping[str, Any], named: Path | None
) -> tuple[LatentDecoder | None, dict[str, Any]]:
    """Read the decoder that makes pixels of what a network draws.

    Args:
        file: the network's, for messages.
        network: its layout.
        metadata: its header's.
        named: the autoencoder's file; None: the one that the header names.

    Returns:
        The decoder, in eval mode, None for a network of pixels; and the metadata of its file.

    Raises:
        UserError: there is none where one is needed, one is named for a network of pixels, or it
            is of other channels or of another latent space.
    """
    space = stated_space(file, metadata)
    if space is None:
        if named is not None:
            raise UserError(
                f"{file} draws pixels and has no use for the autoencoder {named}: leave it out"
            )
        return None, {}
    path = named or (Path(space.file) if space.file else None)
    if path is None or not path.is_file():
        lies = f", which is not at {path}" if path else ""
        raise UserError(
            f"{file} draws latents of {space.autoencoder}{lies}: name the file of that autoencoder "
            "with --autoencoder"
        )
    return open_decoder(path, space, network, f"the latents that {file} draws")


def open_decoder(
    path: Path, space: LatentSpace, network: NetworkLayout, whose: str
) -> tuple[LatentDecoder, dict[str, Any]]:
    """Read the decoder of an autoencoder for latents of a space; see `load_decoder`.

    Args:
        path: the autoencoder's file.
        space: the latents.
        network: the layout of what draws them.
        whose: these latents, for messages.
    """
    autoencoder, about = load_autoencoder(path)
    if space.sha256 not in (None, sha256 := latent_space_of(autoencoder, about)):
        raise UserError(
            f"{whose} are of another autoencoder ({space.autoencoder}) than {path}: name that one "
            "with --autoencoder"
        )
    channels = autoencoder.decoder.layout.latent_channels
    if not channels == network.img_channels == len(space.scale):
        raise UserError(
            f"the autoencoder {path} has latents of {channels} channels, the network has "
            f"{network.img_channels}: both need the same"
        )
    known = space.model_copy(update={"sha256": sha256, "file": str(path.resolve())})
    return LatentDecoder(autoencoder.decoder, known).eval(), about
