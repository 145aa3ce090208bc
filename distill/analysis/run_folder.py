"""Reading a run's folder: its settings, its networks, its teacher. Nothing in it is executed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.autoencoders import load_decoder
from distill.checkpoints import load_network, load_state, sha256_of_weights
from distill.errors import UserError, first_line
from distill.networks import Denoiser
from distill.networks.latent_space import LatentDecoder
from distill.training_config import current_precision

NEEDED = ("t_max", "sigma_init")
# Of a run that began before there were others, and of a network's file that says nothing of it.
_ONE_STEP = {"steps": 1, "renoise": "same"}


@dataclass(frozen=True)
class Networks:
    """The three networks of a distillation, in eval mode, their weights frozen.

    Attributes:
        teacher: phi.
        fake_score: psi.
        generator: the running average of theta: what is exported, and what is looked at here.
        settings: t_max, sigma_init, steps and the rest of the run's configuration.
        classes: class names in label order; empty without classes.
        images_seen: when the state was written.
        decoder: makes pixels of what they draw; None: they draw pixels.
    """

    teacher: Denoiser
    fake_score: Denoiser
    generator: Denoiser
    settings: dict[str, Any]
    classes: list[str]
    images_seen: int
    decoder: LatentDecoder | None = None


def run_metadata(folder: Path) -> dict[str, Any]:
    """What `run` wrote down of itself in run.json; empty for a run older than that file.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / "run.json"
    if not file.is_file():
        return {}
    try:
        metadata = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is no JSON ({first_line(error)}): remove it") from None
    if not isinstance(metadata, dict):
        raise UserError(f"{file} is no JSON object: remove it")
    return metadata


def run_settings(folder: Path) -> dict[str, Any]:
    """A run's configuration, from its state or else its network's header; empty without both.

    Raises:
        UserError: the file that holds it is damaged.
    """
    if (folder / "state.pt").is_file():
        return _settings_of(folder, load_state(folder / "state.pt"))
    if (folder / "network.safetensors").is_file():
        _, metadata = load_network(folder / "network.safetensors")
        settings = {name: value for name, value in metadata.items() if not isinstance(value, list)}
        return _ONE_STEP | settings
    return {}


def teacher_file(folder: Path, named: Path | None) -> Path | None:
    """The teacher's file: the one named, or the one run.json names where it still lies there."""
    if named is not None:
        return named
    recorded = run_metadata(folder).get("teacher")
    if not isinstance(recorded, str) or not Path(recorded).is_file():
        return None
    return Path(recorded)


def explain_missing_networks(folder: Path, teacher: Path | None) -> str | None:
    """What a folder lacks to have its loss looked at, in words; None if nothing."""
    for name in ("state.pt", "network.safetensors"):
        if not (folder / name).is_file():
            return f"{folder} holds no {name}"
    if teacher is None:
        return "the teacher is not known: name its file with --teacher"
    return None


def load_networks(folder: Path, teacher: Path, autoencoder: Path | None = None) -> Networks:
    """Read generator and fake score from a run's folder, and the teacher that it had.

    Of networks of latents the decoder too: that of `autoencoder`, else the one that the run had.

    Raises:
        UserError: a file is missing or damaged, or `teacher` holds other weights than the run's.
    """
    generator, metadata = load_network(folder / "network.safetensors")
    phi, origin = load_network(teacher)
    if origin["role"] != "teacher":
        raise UserError(f"{teacher} is a {origin['role']}: --teacher takes a teacher")
    state = load_state(folder / "state.pt")
    settings = _settings_of(folder, state)
    if missing := [name for name in NEEDED if name not in settings]:
        raise UserError(f"{folder / 'state.pt'} lacks {', '.join(missing)}: is it a distillation?")
    if settings.get("teacher") != sha256_of_weights(phi):
        raise UserError(
            f"{teacher} is not the teacher of {folder}: its weights have another hash; name the "
            "file that the run was given with --teacher"
        )
    psi = Denoiser(phi.config)  # the generator's may lack what only a training reads
    try:
        psi.load_state_dict(state["training"]["fake_score"])
    except (KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(f"{folder / 'state.pt'} holds no fake score ({reason})") from None
    for network in (phi, psi, generator):
        network.eval().requires_grad_(False)
    seen, classes = int(state["images_seen"]), list(metadata["classes"])
    file = folder / "network.safetensors"
    decoder, _ = load_decoder(file, generator.config, metadata, autoencoder)
    return Networks(phi, psi, generator, settings, classes, seen, decoder)


def _settings_of(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    try:
        settings = json.loads(state["settings"])
    except (TypeError, ValueError):
        raise UserError(f"{folder / 'state.pt'} holds no readable settings") from None
    return _ONE_STEP | {name: current_precision(value) for name, value in settings.items()}
