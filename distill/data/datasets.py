"""Images to learn from: Fashion-MNIST's idx files, or an image folder or zip of one's own.

A data set is held in memory as uint8 [N, C, H, W] with an int64 class per image. How a folder's
files are found stands in image_files.py, what becomes of each in decoding.py.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from distill.data.decoding import decode, parse_colour
from distill.data.edm_archive import (
    LABELS_FILE,
    counts_thousands,
    find_labels_file,
    labels_of,
    read_labels,
)
from distill.data.idx_files import read_idx
from distill.data.image_files import is_image, open_image, open_sources
from distill.data.notes import Notes, printable
from distill.errors import UserError
from service.bundle.text import TextError, decode_text

FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FAULTS_SHOWN = 20  # images that cannot be read, by name and reason
CLASS_ORDER = "classes.txt"  # beside the class folders: their names in order, one a line


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
    return _load_images(folder, resolution, background)


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
    """Read a folder or zip of images, with classes by sub-folder or by EDM's dataset.json.

    Sub-folders are in natural order, or in that of a file `classes.txt` beside them. What is
    damaged is looked for to the end, so that all of it can be mended at once.
    """
    colour, notes = parse_colour(background), Notes()
    names: list[PurePosixPath] = []
    images: list[np.ndarray] = []
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
                images.clear()  # nobody will need them
                continue
            names.append(file.name)
            if not damaged:
                images.append(decoded)
    if damaged:
        raise UserError(_damaged(path, damaged))
    for folder in _without_images(sources.folders, names):
        notes.pass_over("folders without images", folder)
    if not images:
        raise UserError(
            f"{path} holds no images: expected files that Pillow reads (PNG, JPEG, WebP, TIFF, "
            f"...){notes.passed_over_summary()}"
        )
    classes, labels = _classes_and_labels(path, listed, orders, names, notes)
    for folder in sorted(orders):  # not beside class folders
        notes.pass_over("files that are no images", folder / CLASS_ORDER)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    if (pixels == pixels[:, :1]).all():  # every image is grey: one channel says it all
        pixels = pixels[:, :1]
    return _described(path, notes, path.stem, pixels.contiguous(), torch.tensor(labels), classes)


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
    path: Path, notes: Notes, name: str, images: Tensor, labels: Tensor, classes: tuple[str, ...]
) -> Dataset:
    """A data set with the line that says what was read."""
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    summary = notes.summary(path, images.shape, classes, counts)
    return Dataset(name, images, labels, classes, summary)


def _without_images(folders: set[PurePosixPath], names: list[PurePosixPath]) -> list[PurePosixPath]:
    """The topmost folders below which no image lies."""
    filled = {PurePosixPath()}.union(*(name.parents for name in names))
    return sorted(folder for folder in folders - filled if folder.parent in filled)


def _classes_and_labels(
    path: Path,
    listed: dict[PurePosixPath, int] | None,
    orders: dict[PurePosixPath, bytes],
    names: list[PurePosixPath],
    notes: Notes,
) -> tuple[tuple[str, ...], list[int]]:
    """The classes, and that of each image: as dataset.json lists them, else the sub-folders."""
    none: tuple[tuple[str, ...], list[int]] = (), [0] * len(names)
    if listed:
        labels = labels_of(f"{path}: {LABELS_FILE}", listed, names, notes)
        notes.remarks.append(f"labels from {LABELS_FILE}")
        classes = tuple(map(str, range(max(labels) + 1)))
    elif listed is not None:
        notes.remarks.append(f"{LABELS_FILE} has no labels")
        return none
    elif counts_thousands(names):
        notes.remarks.append(f"folders that count thousands, but no labels in a {LABELS_FILE}")
        return none
    else:
        classes, beside = _classes_of(path, names), names[0].parent.parent
        if beside in orders and names[0].parent.parts:
            classes = _in_order(path, classes, orders.pop(beside))
            notes.remarks.append(f"their order from {CLASS_ORDER}")
        labels = [classes.index(name.parent.name) for name in names]
    return none if len(classes) == 1 else (classes, labels)


def _classes_of(path: Path, names: list[PurePosixPath]) -> tuple[str, ...]:
    """The folders that directly hold images; a single one (a zip's top folder) is no class."""
    folders = {name.parent for name in names}
    for folder in folders:
        _check_name(path, folder)
    if len({len(folder.parts) for folder in folders}) > 1:
        raise UserError(f"{path} mixes images at several depths: put one sub-folder a class")
    if len({folder.parent for folder in folders}) > 1:
        raise UserError(f"{path} nests folders in folders: put one sub-folder a class")
    classes = tuple(sorted((folder.name for folder in folders), key=natural_order))
    alike = {unicodedata.normalize("NFC", name).strip().casefold() for name in classes}
    if len(alike) < len(classes):
        raise UserError(
            f"{path} has class folders that differ by upper and lower case, outer blanks or the "
            "spelling of accents alone"
        )
    return classes


def _check_name(path: Path, folder: PurePosixPath) -> None:
    """Refuse a class name that no one could type or that no file could hold."""
    # Control characters, halves of a character (bytes that are no UTF-8), and U+FEFF.
    letters = [c for c in folder.name if unicodedata.category(c) in ("Cc", "Cs") or c == "\ufeff"]
    if letters:
        raise UserError(
            f"{path}: the name of class folder {printable(folder.name)!r} holds "
            f"U+{ord(letters[0]):04X}, which is no character of a name: rename the folder"
        )


def natural_order(name: str) -> tuple[int, tuple[Any, ...], str]:
    """A sort key that orders numbers by their value, alone and within a name: 2 before 10.

    Names that are a number, with or without a sign, come before all others.
    """
    if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", name):
        return 0, (Decimal(name),), name
    parts = re.split(r"([0-9]+)", name)  # text and digits in turn, beginning with text
    return 1, tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name


def _in_order(path: Path, classes: tuple[str, ...], content: bytes) -> tuple[str, ...]:
    """Put class names into the order of `classes.txt`.

    Raises:
        UserError: it names other classes than there are folders.
    """
    try:
        text = decode_text(content)
    except TextError as error:
        raise UserError(f"{path}: {CLASS_ORDER}: {error}") from None
    # Folders that came from a Mac spell accents in another way than the text does.
    spelled = {unicodedata.normalize("NFC", name).strip(): name for name in classes}
    lines = (line.strip() for line in text.split("\n") if line.strip())
    order = tuple(spelled.get(unicodedata.normalize("NFC", line), line) for line in lines)
    if sorted(order) != sorted(classes):
        different = sorted(set(order) ^ set(classes)) or sorted(order)
        raise UserError(
            f"{path}: {CLASS_ORDER} and the class folders differ in "
            f"{printable(', '.join(different))}: it lists each folder once, in the order of the "
            "labels"
        )
    return order
