"""Files that a training writes: networks to keep, and states to resume from.

A network is safetensors with its configuration as JSON in the header. A state is everything a
run needs to go on to the bit. Both are written beside their place and moved there whole, so
that a kill at any moment leaves the previous file.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from torch import Tensor

from distill.errors import UserError, first_line
from distill.file_kinds import describe_file, is_pickle
from distill.importing.released import read_released
from distill.licences import licence_of
from distill.networks import Denoiser, read_config
from distill.training_config import GeneratorSteps, Renoise
from service.bundle import write_atomically

_EXPECTED = "a .safetensors file that sid-distill wrote, or a released .pkl of EDM's or SiD's"


class NetworkMetadata(BaseModel):
    """What a network's file must say of its origin; it may say more.

    Attributes:
        role: what the network is.
        classes: class names in label order.
        images_seen: images in its own training; None where a released file does not say.
        sigma_init: the noise level at which a generator denoises.
        steps, renoise: in how many steps it draws and with what noise between them
            (`distill.sampling.few_step`); None: one step.
        licence: under which it may be passed on; None where nobody has said (`distill.licences`).
    """

    model_config = ConfigDict(extra="allow")

    role: Literal["teacher", "generator"]
    classes: list[str]
    images_seen: int | None = None
    sigma_init: float | None = None
    steps: GeneratorSteps | None = None
    renoise: Renoise | None = None
    licence: str | None = None


def save_network(
    path: Path,
    network: Denoiser,
    metadata: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a denoiser's weights with its configuration, and `metadata` about its origin.

    `weights` are those of a network that is spread over processes, gathered; None takes its own.
    """
    whole = network.state_dict() if weights is None else weights
    weights = {name: tensor.contiguous() for name, tensor in whole.items()}
    header = {"config": network.config.model_dump_json(), "facts": json.dumps(dict(metadata))}
    content = safetensors.torch.save(weights, header)
    write_atomically(path, lambda file: file.write_bytes(content))


def load_network(path: Path) -> tuple[Denoiser, dict[str, Any]]:
    """Read a denoiser, in eval mode, and the metadata saved with it, its licence where it is known.

    A released .pkl is read as well, safely, with what can be known of it (`distill.importing`);
    a pickle is told by its content, whatever its name.

    Raises:
        UserError: the file is missing, damaged, or not one of `save_network` nor a released one;
            or its weights are not finite.
    """
    if not path.is_file():
        reason = f"it is {describe_file(path)}" if path.is_dir() else "there is no such file"
        raise UserError(f"no network at {path}: {reason}; expected {_EXPECTED}")
    if path.suffix == ".pkl" or is_pickle(path):
        released = read_released(path)
        return released.network, released.metadata
    if kind := describe_file(path):
        raise UserError(
            f"{path} is not a whole network of sid-distill's: it is {kind}; expected {_EXPECTED}"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        network = Denoiser(read_config(json.loads(header["config"])))
        network.load_state_dict(weights)
        metadata = NetworkMetadata.model_validate_json(header["facts"])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a whole network of sid-distill's: {first_line(error)}"
        ) from None
    if len(metadata.classes) != network.config.label_dim:
        raise UserError(
            f"{path} names {len(metadata.classes)} classes, its network has "
            f"{network.config.label_dim}"
        )
    if not all(tensor.isfinite().all() for tensor in network.state_dict().values()):
        raise UserError(f"{path} holds weights that are not finite: its training diverged")
    metadata.licence = licence_of(metadata.model_dump())
    return network.eval(), metadata.model_dump(exclude_none=True)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state: tensors, numbers, strings, and nested dicts and lists of them."""

    def write(temporary: Path) -> None:
        try:
            with temporary.open("wb") as file:
                torch.save(dict(state), file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch's own hides it: a full disk
                raise error.__context__ from None
            raise

    write_atomically(path, write)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state (`distill.training.resume`) onto the CPU, executing nothing in it.

    Raises:
        UserError: the file is damaged, cannot be read, or is no such state; the message names it
            and says how to go on.
    """
    with _naming(path):
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            if member := archive.testzip():  # torch does not look at the checksums
                raise UserError(_DAMAGED.format(path, f"the checksum of {member} is wrong"))
        return _with_method(_checked(path, torch.load(path, map_location="cpu", weights_only=True)))


def load_settings(path: Path) -> dict[str, Any]:
    """Read of a training state only with what settings it was trained.

    Raises:
        UserError: as `load_state` does.
    """
    with _naming(path):
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        settings: dict[str, Any] = json.loads(_checked(path, state)["settings"])
        return settings


_DAMAGED = "{} is damaged ({}): delete it to start anew"


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever fails while a state is read into a UserError that names its file."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # torch raises a different type for each kind of damage
        raise UserError(_DAMAGED.format(path, first_line(error))) from None


def _checked(path: Path, state: Any) -> dict[str, Any]:
    kinds = {"settings": str, "images_seen": int, "training": dict}
    if (
        not isinstance(state, dict)
        or not all(isinstance(state.get(name), kind) for name, kind in kinds.items())
        or not isinstance(json.loads(state["settings"]), dict)
    ):
        raise UserError(f"{path} is of another version of sid-distill: delete it to start anew")
    return state


def _with_method(state: dict[str, Any]) -> dict[str, Any]:
    """Name the method of a distillation's state that was written when there was only SiD."""
    settings = json.loads(state["settings"])
    if "fake_score" not in state["training"] or "method" in settings:
        return state
    return state | {"settings": json.dumps(settings | {"method": "sid"})}


def sha256_of_weights(network: torch.nn.Module) -> str:
    """SHA-256 over a network's parameters and buffers, in order."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
