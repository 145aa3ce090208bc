"""The classes of a folder's or zip's images: by sub-folder, or as EDM's dataset.json lists them."""

import re
import unicodedata
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

from distill.data.edm_archive import LABELS_FILE, counts_thousands, labels_of
from distill.data.notes import Notes, printable
from distill.errors import UserError
from service.bundle.text import TextError, decode_text

CLASS_ORDER = "classes.txt"  # beside the class folders: their names in order, one a line


def classes_and_labels(
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
