"""Images to learn from: Fashion-MNIST's idx files, or an image folder or zip of one's own.

A data set is held in memory as uint8 [N, C, H, W] with an int64 class per image.
"""

import gzip
import hashlib
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from distill.errors import UserError

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    Attributes:
        name: of the folder or file they came from.
        images: uint8 [N, C, H, W].
        labels: int64 [N], all zero without classes.
        classes: class names, in label order; empty when the images carry no classes.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        """SHA-256 over pixels, labels and class names."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        digest.update("\n".join(self.classes).encode())
        return digest.hexdigest()

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor | None]:
        """Pick images as float32 in [-1, 1] and their one-hot labels (None without classes)."""
        images = self.images[indices].float() / 127.5 - 1
        if not self.classes:
            return images, None
        return images, one_hot(self.labels[indices], len(self.classes))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Turn int64 [N] into float32 [N, classes]."""
    return torch.nn.functional.one_hot(labels, classes).float()


def load_dataset(path: Path | None, split: str = "train", resolution: int | None = None) -> Dataset:
    """Read a data set, of whichever kind lies at `path`.

    Args:
        path: a folder with Fashion-MNIST's four idx files (gzipped or not; any files of those
            names are taken for them); or a folder or zip of images, one sub-folder a class, or
            all at the top for no classes. None looks where Debian's package puts Fashion-MNIST.
        split: "train" or "test", for idx files only; an image folder is one split.
        resolution: size to which an image folder's pictures are cropped and scaled.

    Raises:
        UserError: nothing readable is there; the message says what would provide it.
    """
    folder = path or FASHION_FOLDER
    if not folder.exists():
        raise UserError(
            f"no data set at {folder}: install Debian's package dataset-fashion-mnist "
            "(apt-get install dataset-fashion-mnist), or name a folder with --data: Fashion-"
            "MNIST's four idx files, or images in one sub-folder a class (a .zip will do)"
        )
    prefix = "train" if split == "train" else "t10k"
    if folder.is_dir() and any(folder.glob("*-images-idx3-ubyte*")):
        return _load_fashion(folder, prefix)
    if resolution is None:
        raise UserError(f"an image folder needs a resolution to scale {folder} to")
    return _load_images(folder, resolution)


def has_test_split(path: Path | None) -> bool:
    """Tell whether `load_dataset(path, "test")` is another set than "train"."""
    return any((path or FASHION_FOLDER).glob("t10k-images-idx3-ubyte*"))


def _load_fashion(folder: Path, prefix: str) -> Dataset:
    images = _read_idx(folder, f"{prefix}-images-idx3-ubyte")
    labels = _read_idx(folder, f"{prefix}-labels-idx1-ubyte")
    fits = images.ndim == 3 and labels.ndim == 1 and len(images) == len(labels)
    if not fits or labels.max(initial=0) >= len(FASHION_CLASSES):
        raise UserError(
            f"{folder} is not Fashion-MNIST: {prefix} images of shape {images.shape}, labels of "
            f"shape {labels.shape} up to {labels.max(initial=0)}"
        )
    return Dataset(
        folder.name,
        torch.from_numpy(images)[:, None],
        torch.from_numpy(labels).long(),
        FASHION_CLASSES,
    )


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """Read one idx file: 0, 0, type 8 (uint8), rank, each dimension big-endian, then bytes."""
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            break
    else:
        raise UserError(
            f"{folder} lacks {name}.gz: Debian's package dataset-fashion-mnist has all four files"
        )
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
    rank = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    header = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", raw[4:header]) if len(raw) >= header else ()
    if not shape or len(raw) - header != int(np.prod(shape)):
        raise UserError(f"{path} is not a whole idx file of bytes: fetch it again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()


def _load_images(path: Path, resolution: int) -> Dataset:
    """Read a folder or zip of images; sub-folders, in natural order, are the classes."""
    names, images = [], []
    for name, opened in _image_files(path):
        try:
            with Image.open(opened) as image:
                images.append(_square(ImageOps.exif_transpose(image).convert("RGB"), resolution))
        except Exception as error:  # Pillow and zipfile raise many types for damaged files
            raise UserError(f"{path}: {name} is not a readable image ({error})") from None
        names.append(PurePosixPath(name))
    if not images:
        raise UserError(f"{path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    classes = _classes_of(path, names)
    labels = torch.tensor([classes.index(name.parent.name) for name in names])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    if (pixels == pixels[:, :1]).all():  # every picture is grey: one channel says it all
        pixels = pixels[:, :1]
    return Dataset(path.stem, pixels.contiguous(), labels, () if len(classes) == 1 else classes)


def _classes_of(path: Path, names: list[PurePosixPath]) -> tuple[str, ...]:
    """The folders that directly hold images; a single one (a zip's top folder) is no class."""
    folders = {name.parent for name in names}
    if len({len(folder.parts) for folder in folders}) > 1:
        raise UserError(f"{path} mixes images at several depths: put one sub-folder a class")
    if len({folder.parent for folder in folders}) > 1:
        raise UserError(f"{path} nests folders in folders: put one sub-folder a class")
    classes = tuple(sorted((folder.name for folder in folders), key=natural_order))
    if len({name.casefold() for name in classes}) < len(classes):
        raise UserError(f"{path} has class folders that differ by upper and lower case alone")
    return classes


def natural_order(name: str) -> tuple[int, tuple[Any, ...], str]:
    """A sort key that orders numbers by their value, alone and within a name: 2 before 10.

    Names that are a number, with or without a sign, come before all others.
    """
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", name):
        return 0, (Decimal(name),), name
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn, beginning with text
    return 1, tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def _image_files(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield each image file's relative name and its bytes to read, sorted by name."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path).as_posix()
            if _is_image(name) and file.is_file():
                with file.open("rb") as opened:
                    yield name, opened
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in sorted(filter(_is_image, archive.namelist())):
                yield name, io.BytesIO(_read_member(path, archive, name))
    else:
        raise UserError(f"{path} is neither a folder nor a zip file")


def _read_member(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error) as error:
        raise UserError(f"{path}: {name} cannot be unpacked ({error})") from None


def _is_image(name: str) -> bool:
    """Whether a name is an image's, and not a hidden file or a Mac's shadow of one."""
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _square(image: Image.Image, resolution: int) -> np.ndarray:
    """Crop the middle square and scale it to uint8 [resolution, resolution, 3]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box))
