"""Files of autoencoders: those that `sid-distill import` wrote, and released ones as they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open

from distill.importing.autoencoder import Autoencoder, read_autoencoder
from distill.networks.autoencoder import AutoencoderLayout
from service.bundle import write_atomically


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
