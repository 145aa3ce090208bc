"""A released file as a network with metadata of its origin, as `distill.checkpoints` has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distill.errors import UserError
from distill.importing.snapshot import read_snapshot
from distill.networks import Denoiser
from service.bundle import sha256_file

Role = Literal["teacher", "generator"]

# Licence of the released networks of EDM, EDM2 and SiD, and so of students.
RELEASED = "CC-BY-NC-SA-4.0"
SIGMA_INIT = 2.5  # every SiD generator's; it is not in the files


@dataclass(frozen=True)
class Released:
    """A network, and what is known of it.

    Attributes:
        network: in eval mode, float32 on the CPU.
        metadata: see `distill.checkpoints.NetworkMetadata`; the source's name and digest among
            them, and the licence that such files have; for a network of latents
            (`latents`) the autoencoder, and how they stand to its own.
        arguments: those of the network's constructor, as the file states them.
        reason: why its role was assumed; None where it was told.
    """

    network: Denoiser
    metadata: dict[str, Any]
    arguments: dict[str, Any]
    reason: str | None


def read_released(
    path: Path,
    role: Role | None = None,
    classes: Sequence[str] | None = None,
    sigma_init: float = SIGMA_INIT,
) -> Released:
    """Read a released EDM, EDM2 or SiD pickle, running nothing in it.

    Args:
        path: of the file.
        role: what it is; None to assume it. Teachers come with the loss or the augmentation of
            their training, or under a name that begins with "edm"; generators with neither, or of
            a class that only they have.
        classes: names in label order, which are not in the file; None for "0", "1", ...
        sigma_init: the noise level at which a generator denoises; not in the file either.

    Raises:
        UserError: the file is refused (see `distill.importing`), or has another number of classes.
    """
    snapshot = read_snapshot(path)
    reason = None
    if role is None:
        role, reason = "generator", "it holds a network and nothing of a training"
        if snapshot.is_generator:
            role, reason = "generator", "only generators have its class"
        elif snapshot.from_training:
            role, reason = "teacher", "it holds the loss or the augmentation of its training"
        elif path.name.lower().startswith("edm"):
            role, reason = "teacher", "its name begins with 'edm'"
    label_dim = snapshot.network.config.label_dim
    if classes is None:
        classes = [str(index) for index in range(label_dim)]
    elif len(classes) != label_dim:
        raise UserError(f"{len(classes)} classes are named, the network of {path} has {label_dim}")
    metadata: dict[str, Any] = {
        "role": role,
        "classes": list(classes),
        "source": path.name,
        "source_sha256": sha256_file(path),
        "source_class": snapshot.class_name,
        "licence": RELEASED,
    }
    if snapshot.latents is not None:
        autoencoder, scale = snapshot.latents
        metadata["latents"] = {"autoencoder": autoencoder, **scale._asdict()}
    if role == "generator":
        metadata["sigma_init"] = sigma_init
        snapshot.network.strip()
    return Released(snapshot.network, metadata, snapshot.arguments, reason)
