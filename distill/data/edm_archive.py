"""Archives of EDM's dataset_tool: labels stand in dataset.json, folders only count thousands.

    00000/img00000000.png ... 00001/img00001000.png ... dataset.json

dataset.json holds {"labels": [["00000/img00000000.png", 6], ...]}, or null where the images have no
labels. (facts: EDM, data sets; StyleGAN's tools write the same.)
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from distill.data.image_files import SourceFile
from distill.data.notes import Notes, printable
from distill.errors import UserError
from service.bundle.text import TextError, decode_text

LABELS_FILE = "dataset.json"
MOST_CLASSES = 100_000  # a label above is a mistake: every class has a row in the network
_NUMBERED = re.compile(r"img(\d{8})")


def find_labels_file(files: Sequence[SourceFile]) -> SourceFile | None:
    """dataset.json at the top, or in the one folder there; other files may lie beside that."""
    tops = {file.name.parts[0] for file in files if len(file.name.parts) > 1}
    for file in files:
        at_top = len(file.name.parts) == 1 or (len(file.name.parts) == 2 and len(tops) == 1)
        if file.name.name == LABELS_FILE and at_top:
            return file
    return None


def read_labels(path: Path, file: SourceFile) -> dict[PurePosixPath, int] | None:
    """The label of each image, by its name in the data set; empty where it says "no labels".

    Returns:
        None if the file is of another kind: a JSON object without "labels".

    Raises:
        UserError: it is no JSON, or its labels are not whole numbers from 0 on.
    """
    where = f"{path}: {file.name}"
    try:
        content = json.loads(decode_text(file.read()))
    except TextError as error:
        raise UserError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is no JSON ({error}): write it again or remove it") from None
    if not isinstance(content, dict) or "labels" not in content:
        return None
    listed = content["labels"]
    if listed is None:
        return {}
    if isinstance(listed, dict):
        listed = list(listed.items())
    if not isinstance(listed, list):
        raise UserError(f'{where}: "labels" is {_shown(listed)}, {_EXPECTED}')
    labels: dict[PurePosixPath, int] = {}
    for entry in listed:
        name, label = _entry(where, entry)
        if labels.setdefault(_plain(file.name.parent / name), label) != label:
            raise UserError(f"{where}: two labels for {printable(str(name))}")
    return labels


_EXPECTED = 'expected [["name.png", 3], ...] with class numbers from 0 on, or null for no classes'


def _entry(where: str, entry: Any) -> tuple[PurePosixPath, int]:
    if not (isinstance(entry, list | tuple) and len(entry) == 2 and isinstance(entry[0], str)):
        raise UserError(f'{where}: an entry of "labels" is {_shown(entry)}, {_EXPECTED}')
    name, label = entry
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < MOST_CLASSES:
        raise UserError(f"{where}: the label of {printable(name)} is {_shown(label)}, {_EXPECTED}")
    return PurePosixPath(name.replace("\\", "/")), label


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def labels_of(
    where: str, labels: dict[PurePosixPath, int], names: Sequence[PurePosixPath], notes: Notes
) -> list[int]:
    """The label of each image in turn; entries without an image are noted.

    Raises:
        UserError: an image has no label.
    """
    sought = [_plain(name) for name in names]
    missing = [name for name in sought if name not in labels]
    if missing:
        others = f" (nor have {len(missing) - 1:,} others)" if len(missing) > 1 else ""
        raise UserError(
            f"{where} has no label for {printable(str(missing[0]))}{others}: label every image, "
            'or none ("labels": null)'
        )
    for name in sorted(labels.keys() - set(sought)):
        notes.pass_over(f"entries of {LABELS_FILE} without an image", name)
    return [labels[name] for name in sought]


def _plain(name: PurePosixPath) -> PurePosixPath:
    """A name with its accents in one spelling: files that came from a Mac have another."""
    return PurePosixPath(unicodedata.normalize("NFC", str(name)))


def counts_thousands(names: Sequence[PurePosixPath]) -> bool:
    """Whether folders only number the images' thousands, as dataset_tool lays them out."""

    def fits(name: PurePosixPath) -> bool:
        number, folder = _NUMBERED.fullmatch(name.stem), name.parent.name
        return number is not None and folder == f"{int(number[1]) // 1000:05d}"

    return all(map(fits, names))
