"""Files that a training writes: networks to keep, and states to resume from.

A network is safetensors with its configuration as JSON in the header. A state is everything a
run needs to go on to the bit. Both are written beside their place and moved there whole, so
that a kill at any moment leaves the previous file.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from distill.errors import UserError
from distill.networks import Denoiser, NetworkConfig


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, flush it to disk and move it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    write(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def save_network(path: Path, network: Denoiser, facts: Mapping[str, Any]) -> None:
    """Write a denoiser's weights with its configuration and `facts` about its origin."""
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    header = {"config": network.config.model_dump_json(), "facts": json.dumps(dict(facts))}
    content = safetensors.torch.save(weights, header)
    write_atomically(path, lambda file: file.write_bytes(content))


def load_network(path: Path) -> tuple[Denoiser, dict[str, Any]]:
    """Read a denoiser, in eval mode, and the facts saved with it.

    Raises:
        UserError: the file is missing, damaged, or not one of `save_network`.
    """
    if not path.is_file():
        raise UserError(f"no network at {path}: expected a .safetensors file of sid-distill's")
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = Denoiser(NetworkConfig.model_validate_json(header["config"]))
        network.load_state_dict(weights)
        return network.eval(), json.loads(header["facts"])
    except (SafetensorError, KeyError, ValidationError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a whole network of sid-distill's: {reason}") from None


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state: tensors, numbers, strings, and nested dicts and lists of them."""
    write_atomically(path, lambda file: torch.save(dict(state), file))


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state onto the CPU, executing nothing in it.

    Raises:
        UserError: the file is damaged; the message says how to go on.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a different type for each kind of damage
        raise UserError(
            f"{path} is damaged ({str(error).splitlines()[0]}): delete it to start anew"
        ) from None
