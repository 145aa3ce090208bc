"""Files of autoencoders and of the light decoders that imitate theirs.

Autoencoders are those that `sid-distill import` or `autoencoder` wrote, and released ones as they
are; light decoders those of `sid-distill decoder`.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import nn

from distill.errors import UserError, first_line
from distill.file_kinds import is_light_decoder
from distill.importing.autoencoder import Autoencoder, read_autoencoder
from distill.networks import NetworkLayout
from distill.networks.autoencoder import AutoencoderLayout
from distill.networks.latent_space import AnyDecoder, LatentDecoder, LatentSpace
from distill.networks.light_decoder import LightDecoder, LightDecoderLayout
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


def save_light_decoder(path: Path, decoder: LightDecoder, metadata: Mapping[str, Any]) -> None:
    """Write a light decoder, with its layout and `metadata` in the header.

    Args:
        path: the file.
        decoder: what to write.
        metadata: with `latent_space`, the SHA-256 of what it imitates (`latent_space_of`).
    """
    header = {
        "light_decoder": decoder.layout.model_dump_json(),
        "facts": json.dumps(dict(metadata)),
    }
    weights = {name: tensor.contiguous() for name, tensor in decoder.state_dict().items()}
    content = safetensors.torch.save(weights, header)
    write_atomically(path, lambda file: file.write_bytes(content))


def load_light_decoder(path: Path) -> tuple[LightDecoder, dict[str, Any]]:
    """Read a light decoder, in eval mode, and the metadata saved with it.

    Raises:
        UserError: the file is damaged, or no light decoder.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            layout = LightDecoderLayout.model_validate_json(header["light_decoder"])
            metadata = json.loads(header["facts"])
            if not isinstance(metadata, dict) or not isinstance(metadata["latent_space"], str):
                raise ValueError("its header does not say whose latents it takes")
            with torch.device("meta"):  # the shapes first: they take no memory
                expected = LightDecoder(layout).state_dict()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if shapes != {name: tuple(tensor.shape) for name, tensor in expected.items()}:
                raise ValueError("its tensors are not those of its layout")
            weights = {name: file.get_tensor(name).float() for name in expected}
    except ValidationError as error:
        raise UserError(f"{path} is damaged: its layout: {first_error(error)}") from None
    except KeyError as error:
        raise UserError(f"{path} is damaged: its header lacks {error}") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged: {first_line(error)}") from None
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise UserError(f"{path} is damaged: it holds NaN or infinity")
    decoder = LightDecoder(layout).eval()
    decoder.load_state_dict(weights)
    return decoder, metadata


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 of a network's weights by their names, wherever they lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def latent_space_of(autoencoder: Autoencoder, metadata: Mapping[str, Any]) -> str:
    """SHA-256 by which two files are known to speak of the same latents.

    That of the decoder's weights, so that a released file and what `import` made of it are the
    same; or what the file states, for one that was made for another one's latents.
    """
    if stated := metadata.get("latent_space"):
        return str(stated)
    return weights_sha256(autoencoder.decoder)


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
    """Read the decoder of an autoencoder, or a light one, for latents of a space.

    See `load_decoder`.

    Args:
        path: the decoder's file.
        space: the latents.
        network: the layout of what draws them.
        whose: these latents, for messages.
    """
    decoder, sha256, about = _read_decoder(path)
    if space.sha256 not in (None, sha256):
        raise UserError(
            f"{whose} are of another autoencoder ({space.autoencoder}) than {path}: name that one "
            "with --autoencoder"
        )
    channels = decoder.layout.latent_channels
    if not channels == network.img_channels == len(space.scale):
        raise UserError(
            f"the autoencoder {path} has latents of {channels} channels, the network has "
            f"{network.img_channels}: both need the same"
        )
    known = space.model_copy(update={"sha256": sha256, "file": str(path.resolve())})
    return LatentDecoder(decoder, known).eval(), about


def _read_decoder(path: Path) -> tuple[AnyDecoder, str, dict[str, Any]]:
    """A decoder of either kind, its latent space, and its metadata."""
    if is_light_decoder(path):
        light, about = load_light_decoder(path)
        return light, about["latent_space"], about
    autoencoder, about = load_autoencoder(path)
    return autoencoder.decoder, latent_space_of(autoencoder, about), about
