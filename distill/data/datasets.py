"""Images to learn from: Fashion-MNIST's idx files, or an image folder or zip of one's own.

A data set is held in memory as uint8 [N, C, H, W] with an int64 class per image. How a folder's
files are found stands in image_files.py, what becomes of each in decoding.py.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from distill.data.classes import CLASS_ORDER, classes_and_labels
from distill.data.decoding import decode, parse_colour
from distill.data.edm_archive import find_labels_file, read_labels
from distill.data.idx_files import read_idx
from distill.data.image_files import is_image, open_image, open_sources
from distill.data.images import from_pixels
from distill.data.notes import Notes, printable
from distill.errors import UserError

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FAULTS_SHOWN = 20  # images that cannot be read, by name and reason
LATENTS_FILE = "latents.json"  # of a folder of latents (`distill.data.latents`)


@dataclass(frozen=True)
class Dataset:
    """Labelled images.

    Attributes:
        name: of the folder or file they came from.
        images: uint8 [N, C, H, W].
        labels: int64 [N], all zero without classes.
        classes: class names, in label order; empty when the images carry no classes.
        summary: what was read and what was passed over, in one line.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    summary: str = ""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of what a network learns."""
        return tuple(self.images.shape[1:])

    @property
    def rows(self) -> Tensor:
        """What `to_images` takes, a row an image."""
        return self.images

    def to_images(self, rows: Tensor) -> Tensor:
        """What a network learns of some of `rows`, float32 [n, C, H, W] in [-1, 1]."""
        return from_pixels(rows)

    def digest(self) -> str:
        """SHA-256 over pixels, labels and class names."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images.numpy()).data)  # no copy
        digest.update(np.ascontiguousarray(self.labels.numpy()).data)
        digest.update("\n".join(self.classes).encode())
        return digest.hexdigest()


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Turn int64 [N], each below `classes`, into float32 [N, classes]."""
    # Not torch's own, which reads the smallest and largest label back from some devices.
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def load_dataset(
    path: Path | None,
    split: str = "train",
    resolution: int | None = None,
    background: str = "white",
) -> Dataset:
    """Read a data set, of whichever kind lies at `path`.

    Args:
        path: a folder with Fashion-MNIST's four idx files (gzipped or not; any files of those
            names are taken for them); or a folder or zip of images, one sub-folder a class, or
            all at the top for no classes, or as EDM's dataset_tool writes it. None looks where
            Debian's package puts Fashion-MNIST.
        split: "train" or "test", for idx files only; an image folder is one split.
        resolution: size to which an image folder's images are cropped and scaled.
        background: colour behind transparent pixels, by its CSS name or as "#rrggbb".

    Raises:
        UserError: nothing readable is there; the message says what would provide it. Or latents
            are, and no images.
    """
    folder = _data_folder(path)
    if is_latents(folder):
        raise UserError(
            f"{folder} holds latents of an autoencoder, and images are needed: name those that "
            "they were made of"
        )
    if _is_fashion(folder):
        return _load_fashion(folder, "train" if split == "train" else "t10k")
    if resolution is None:
        raise UserError(f"an image folder needs a resolution to scale {folder} to")
    return _load_images(folder, resolution, background)


def is_latents(path: Path | None) -> bool:
    """Whether a folder is one of latents (`distill.data.latents`)."""
    return path is not None and (path / LATENTS_FILE).is_file()


def stream_images(
    path: Path | None,
    resolution: int,
    background: str,
    consume: Callable[[np.ndarray], None],
) -> Dataset:
    """Read a data set as `load_dataset` does, one image after the other: memory holds none.

    Args:
        path, resolution, background: see there.
        consume: is given each image, uint8 [H, W, C], in order.

    Returns:
        The data set without its images.

    Raises:
        UserError: see `load_dataset`.
    """
    folder = _data_folder(path)
    if is_latents(folder) or _is_fashion(folder):
        whole = load_dataset(path)
        for image in whole.images.permute(0, 2, 3, 1).numpy():
            consume(image)
        return replace(whole, images=whole.images[:0])
    notes, (classes, labels) = _walk(folder, resolution, background, consume)
    shape = (len(labels), 3, resolution, resolution)
    none = torch.empty(0, *shape[1:], dtype=torch.uint8)
    return _described(folder, notes, folder.stem, none, torch.tensor(labels), classes, shape)


def _data_folder(path: Path | None) -> Path:
    folder = path or FASHION_FOLDER
    if not folder.exists():
        raise UserError(
            f"no data set at {folder}: install Debian's package dataset-fashion-mnist "
            "(apt-get install dataset-fashion-mnist), or name a folder with --data: Fashion-"
            "MNIST's four idx files, or images in one sub-folder a class (a .zip will do)"
        )
    return folder


def _is_fashion(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*-images-idx3-ubyte*"))


def has_test_split(path: Path | None) -> bool:
    """Tell whether `load_dataset(path, "test")` is another set than "train"."""
    return any((path or FASHION_FOLDER).glob("t10k-images-idx3-ubyte*"))


def _load_fashion(folder: Path, prefix: str) -> Dataset:
    images = read_idx(folder, f"{prefix}-images-idx3-ubyte")
    labels = read_idx(folder, f"{prefix}-labels-idx1-ubyte")
    fits = images.ndim == 3 and labels.ndim == 1 and len(images) == len(labels)
    if not fits or labels.max(initial=0) >= len(FASHION_CLASSES):
        raise UserError(
            f"{folder} is not Fashion-MNIST: {prefix} images of shape {images.shape}, labels of "
            f"shape {labels.shape} up to {labels.max(initial=0)}"
        )
    pixels, classes = torch.from_numpy(images)[:, None], torch.from_numpy(labels).long()
    notes = Notes()
    notes.sizes[images.shape[2], images.shape[1]] = len(images)
    return _described(folder, notes, folder.name, pixels, classes, FASHION_CLASSES)


def _load_images(path: Path, resolution: int, background: str) -> Dataset:
    """Read a folder or zip of images, with classes by sub-folder or by EDM's dataset.json."""
    images: list[np.ndarray] = []
    notes, (classes, labels) = _walk(path, resolution, background, images.append)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    if (pixels == pixels[:, :1]).all():  # every image is grey: one channel says it all
        pixels = pixels[:, :1]
    return _described(path, notes, path.stem, pixels.contiguous(), torch.tensor(labels), classes)


def _walk(
    path: Path, resolution: int, background: str, consume: Callable[[np.ndarray], None]
) -> tuple[Notes, tuple[tuple[str, ...], list[int]]]:
    """Decode the images of a folder or zip, each RGB [H, W, 3]; return the classes and labels.

    Sub-folders are in natural order, or in that of a file `classes.txt` beside them. What is
    damaged is looked for to the end, so that all of it can be mended at once; from the first such
    image on none is consumed.
    """
    colour, notes = parse_colour(background), Notes()
    names: list[PurePosixPath] = []
    damaged: list[str] = []
    with open_sources(path, notes) as sources:
        labels_file = find_labels_file(sources.files)
        listed = None if labels_file is None else read_labels(path, labels_file)
        orders = {}
        for file in sources.files:
            if file is labels_file and listed is not None:
                continue
            if file.name.name == CLASS_ORDER:
                orders[file.name.parent] = file.read()
                continue
            try:
                if not is_image(file):
                    notes.pass_over("files that are no images", file.name)
                    continue
                with open_image(file) as image:
                    decoded = decode(image, resolution, colour, notes)
            except PermissionError:
                raise  # the file may be a good one
            except Exception as error:  # Pillow raises many types for damaged files
                damaged.append(_fault(path, file.name, error))
                continue
            names.append(file.name)
            if not damaged:
                consume(decoded)
    if damaged:
        raise UserError(_damaged(path, damaged))
    for folder in _without_images(sources.folders, names):
        notes.pass_over("folders without images", folder)
    if not names:
        raise UserError(
            f"{path} holds no images: expected files that Pillow reads (PNG, JPEG, WebP, TIFF, "
            f"...){notes.passed_over_summary()}"
        )
    labelled = classes_and_labels(path, listed, orders, names, notes)
    for folder in sorted(orders):  # not beside class folders
        notes.pass_over("files that are no images", folder / CLASS_ORDER)
    return notes, labelled


def _fault(path: Path, name: PurePosixPath, error: Exception) -> str:
    """What is wrong with an image that could not be read, in words that begin with its name."""
    if isinstance(error, UserError):  # of a zip
        return str(error).removeprefix(f"{path}: ")
    reason = "Pillow knows it as none" if isinstance(error, UnidentifiedImageError) else error
    return f"{printable(str(name))} is not a readable image ({reason})"


def _damaged(path: Path, faults: list[str]) -> str:
    """All that is wrong with the images of a data set, as far as it can be shown."""
    if len(faults) == 1:
        return f"{path}: {faults[0]}"
    more = len(faults) - FAULTS_SHOWN
    shown = "; ".join(faults[:FAULTS_SHOWN]) + (f"; and {more:,} more" if more > 0 else "")
    return f"{path}: {len(faults):,} images cannot be read, replace or remove them: {shown}"


def _described(
    path: Path,
    notes: Notes,
    name: str,
    images: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    shape: Sequence[int] = (),
) -> Dataset:
    """A data set with the line that says what was read; `shape` is of images that are not kept."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    summary = notes.summary(path, shape or images.shape, classes, counts)
    return Dataset(name, images, labels, classes, summary)


def _without_images(folders: set[PurePosixPath], names: list[PurePosixPath]) -> list[PurePosixPath]:
    """The topmost folders below which no image lies."""
    filled = {PurePosixPath()}.union(*(name.parents for name in names))
    return sorted(folder for folder in folders - filled if folder.parent in filled)
