"""Latents to learn from: what an autoencoder's encoder makes of images, in a folder of their own.

    moments.npy     float32 [N, 2 C, h, w], the mean and the deviation of each image's latents
    labels.npy      int64 [N]
    latents.json    a `LatentsRecord`: of which images, by which autoencoder, and their statistics

The moments are the autoencoder's own, unscaled, and are read as they are needed: they need not fit
into memory.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from distill.data.datasets import LATENTS_FILE, Dataset, is_latents
from distill.errors import UserError, first_line
from distill.networks.autoencoder import draw_latents
from distill.networks.latent_space import LatentSpace
from service.bundle import first_error

MOMENTS_FILE, LABELS_FILE = "moments.npy", "labels.npy"
_DEVIATION = 0.5  # of a network's latents, as of all of EDM's data


class LatentsRecord(BaseModel):
    """What stands beside latents.

    Attributes:
        format: of the folder.
        data: the name of the images' data set.
        classes: their names in label order; empty without classes.
        resolution: of the images, in pixels a side.
        autoencoder: its name, for people.
        sha256: of its latent space (`distill.autoencoders.latent_space_of`).
        mean, std: of each channel of the latents, over all images, places and draws.
        moments_sha256: of the values in moments.npy, in order.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    data: str
    classes: list[str]
    resolution: int
    autoencoder: str
    sha256: str
    mean: list[float] = Field(min_length=1)
    std: list[float] = Field(min_length=1)
    moments_sha256: str

    def measured_space(self, file: Path) -> LatentSpace:
        """The space in which these latents have a mean of 0 and a deviation of 0.5 a channel.

        Args:
            file: where the autoencoder lies.
        """
        scale = tuple(_DEVIATION / std for std in self.std)
        bias = tuple(-mean * factor for mean, factor in zip(self.mean, scale, strict=True))
        return LatentSpace(
            autoencoder=self.autoencoder, scale=scale, bias=bias, sha256=self.sha256,
            file=str(file.resolve()),
        )  # fmt: skip


@dataclass(frozen=True)
class LatentDataset:
    """Labelled latents: to a training what a `Dataset` is, of which it has the members.

    Attributes:
        name: of the data set of images.
        rows: float32 [N, 2 C, h, w], means and deviations, on the disk.
        labels, classes, summary: as of a `Dataset`.
        record: what stands beside them.
        space: how a network takes them.
    """

    name: str
    rows: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    summary: str
    record: LatentsRecord
    space: LatentSpace

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, h, w] of what a network learns."""
        _, moments, height, width = self.rows.shape
        return moments // 2, height, width

    def to_images(self, rows: Tensor) -> Tensor:
        """Draw latents float32 [n, C, h, w] of some of `rows`, anew at each call.

        The draw comes from torch's random stream of their device, which a training seeds for each
        micro-batch: so a run that is resumed draws what it would have drawn.
        """
        noise = torch.randn(len(rows), *self.shape, device=rows.device)
        latents = draw_latents(rows, noise, self.space.latent_scale)
        return latents.contiguous(memory_format=torch.channels_last)

    def digest(self) -> str:
        """SHA-256 over the record, which holds that of the moments, and the scale."""
        parts = [self.record.model_dump_json(), json.dumps(self.space.latent_scale)]
        digest = hashlib.sha256("\n".join(parts).encode())
        digest.update(np.ascontiguousarray(self.labels.numpy()).data)
        return digest.hexdigest()


TrainingData = Dataset | LatentDataset


def read_record(folder: Path) -> LatentsRecord:
    """What stands beside latents; raises UserError for a folder that holds none."""
    if not is_latents(folder):
        raise UserError(
            f"{folder} holds no latents, and the network learns latents: make them of images "
            f"with 'sid-distill latents --data {folder} --autoencoder FILE --out FOLDER'"
        )
    try:
        return LatentsRecord.model_validate_json((folder / LATENTS_FILE).read_bytes())
    except ValidationError as error:
        raise UserError(f"{folder / LATENTS_FILE}: {first_error(error)}") from None


def read_latents(folder: Path, space: LatentSpace) -> LatentDataset:
    """Open a folder of latents.

    Args:
        folder: as `write_latents` made it.
        space: how a network is to take them.

    Raises:
        UserError: it is damaged, or of another autoencoder than `space` says.
    """
    record = read_record(folder)
    if space.sha256 not in (None, record.sha256):
        raise UserError(
            f"{folder} holds latents of another autoencoder ({record.autoencoder}, "
            f"{record.sha256[:12]}) than {space.file or space.autoencoder} "
            f"({str(space.sha256)[:12]}): make them with that one"
        )
    try:
        # Copy-on-write: torch wants memory that could be written to, and nothing is.
        moments = np.load(folder / MOMENTS_FILE, mmap_mode="c", allow_pickle=False)
        labels = np.load(folder / LABELS_FILE, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{folder} is damaged ({first_line(error)}): make it anew") from None
    channels = 2 * len(record.mean)
    fits = moments.ndim == 4 and moments.dtype == np.float32 and moments.shape[1] == channels
    known = labels.dtype == np.int64 and labels.max(initial=0) < max(len(record.classes), 1)
    if not (fits and known and labels.shape == moments.shape[:1]):
        raise UserError(
            f"{folder} is damaged: moments of shape {moments.shape}, labels of shape "
            f"{labels.shape}: make it anew"
        )
    if len(space.scale) != len(record.mean):
        raise UserError(
            f"{folder} holds latents of {len(record.mean)} channels, the network draws "
            f"{len(space.scale)}"
        )
    count, _, height, width = moments.shape
    summary = (
        f"{folder}: {count:,} latents {len(record.mean)}x{height}x{width} of {record.data} by "
        f"{record.autoencoder}, {len(record.classes) or 'no'} classes"
    )
    return LatentDataset(
        record.data, torch.from_numpy(moments), torch.from_numpy(labels),
        tuple(record.classes), summary, record, space,
    )  # fmt: skip
