"""Writing a folder of latents: what an encoder makes of images, a batch at a time."""

import errno
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import torch

from distill.data.datasets import LATENTS_FILE, Dataset
from distill.data.latents import LABELS_FILE, MOMENTS_FILE, LatentsRecord
from distill.errors import UserError
from distill.networks.autoencoder import Encoder

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Consume = Callable[[np.ndarray], None]


def write_latents(
    out: Path,
    read: Callable[[Consume], Dataset],
    encoder: Encoder,
    resolution: int,
    autoencoder: str,
    sha256: str,
    batch: int = 8,
) -> Dataset:
    """Encode images into a new folder, which is there whole or not at all.

    Args:
        out: the folder.
        read: reads the data set, and gives each image uint8 [H, W, C] to what it is given.
        encoder: of the autoencoder, on its device.
        resolution: of the images.
        autoencoder, sha256: see `LatentsRecord`.
        batch: images the encoder takes at a time.

    Returns:
        The data set, without its images.

    Raises:
        UserError: the folder is there already, the disk is full, the images are not such as the
            autoencoder takes, or their latents are not finite or all alike.
    """
    if out.exists():
        raise UserError(f"{out} exists: name another --out, or remove it")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed one left
    partial.mkdir(parents=True)
    try:
        with (partial / MOMENTS_FILE).open("wb") as file:
            writer = _Writer(file, encoder, resolution, batch)
            data = read(writer.consume)
            mean, std = writer.finish(data.summary)
        np.save(partial / LABELS_FILE, data.labels.numpy())
        record = LatentsRecord(
            data=data.name, classes=list(data.classes), resolution=resolution,
            autoencoder=autoencoder, sha256=sha256, mean=mean, std=std,
            moments_sha256=writer.digest.hexdigest(),
        )  # fmt: skip
        (partial / LATENTS_FILE).write_text(record.model_dump_json(indent=2) + "\n", "utf-8")
        partial.rename(out)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        layout = encoder.layout
        values = 2 * layout.latent_channels * (resolution // layout.factor) ** 2
        raise UserError(
            f"{out}: there is no room for these latents, which take {4 * values:,} bytes an image"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return data


class _Writer:
    """Moments of images, a batch at a time, to a file, and their statistics."""

    def __init__(self, file: IO[bytes], encoder: Encoder, resolution: int, batch: int) -> None:
        layout, side = encoder.layout, resolution // encoder.layout.factor
        self._file, self._encoder, self._batch = file, encoder, batch
        self._resolution = resolution
        self._channels = layout.img_channels
        self._shape = (2 * layout.latent_channels, side, side)
        self._waiting: list[np.ndarray] = []
        self._sums = np.zeros((2, layout.latent_channels))  # of the latents and of their squares
        self.count = 0
        self.digest = hashlib.sha256()
        self._header = self._write_header()

    def consume(self, image: np.ndarray) -> None:
        """Take the next image, uint8 [H, W, C]."""
        height, width, _ = image.shape
        if (height, width) != (self._resolution, self._resolution):
            raise UserError(f"the images have {width}x{height} pixels: say --resolution {height}")
        if image.shape[2] != self._channels:
            if self._channels == 1 and (image != image[:, :, :1]).any():
                raise UserError("the images are colour, the autoencoder is for grey ones")
            image = image[:, :, :1].repeat(self._channels, axis=2)
        self._waiting.append(image)
        if len(self._waiting) == self._batch:
            self._encode()

    def finish(self, described: str) -> tuple[list[float], list[float]]:
        """Write what waits, and the file's head anew; return mean and deviation a channel."""
        self._encode()
        self._file.seek(0)
        if self._write_header() != self._header:
            raise AssertionError("numpy keeps room in a header for its first axis to grow")
        values = self.count * self._shape[1] * self._shape[2]
        mean = self._sums[0] / values
        std = np.sqrt(np.maximum(self._sums[1] / values - mean**2, 0))
        if not (np.isfinite(std).all() and (std > 0).all()):
            raise UserError(f"the latents have no deviation a channel ({std}): {described}")
        return mean.tolist(), std.tolist()

    @torch.no_grad()
    def _encode(self) -> None:
        if not self._waiting:
            return
        device = next(self._encoder.parameters()).device
        pixels = torch.from_numpy(np.stack(self._waiting)).to(device).permute(0, 3, 1, 2)
        moments = self._encoder(pixels.float() / 255).cpu().contiguous()
        mean, deviation = moments.double().flatten(2).chunk(2, dim=1)
        self._sums[0] += mean.sum(dim=(0, 2)).numpy()
        self._sums[1] += (mean**2 + deviation**2).sum(dim=(0, 2)).numpy()
        content = moments.numpy().astype("<f4").tobytes()
        self._file.write(content)
        self.digest.update(content)
        self.count += len(moments)
        self._waiting.clear()

    def _write_header(self) -> int:
        """Write the head of a .npy file for so many images as there are; return its length."""
        shape = (self.count, *self._shape)
        fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, fields)
        return self._file.tell()
