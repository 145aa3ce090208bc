"""What the folders of classes are called: as the classes, where that makes good folders."""

import unicodedata
from collections.abc import Sequence

CLASS_LIST = "classes.txt"
"""The file beside class folders that lists them in the order of the classes: `sid-distill` takes
them in that order, and else in that of their names."""
RECORD = "sid-generate.json"
"""The file that says what is drawn into a folder, as `Plan.record` has it."""

_FORBIDDEN = '/\\:*?"<>|\ufeff'  # by some system or other
_LONGEST = 200  # bytes; most file systems take 255
_SHORTEST_INDEX = 2  # digits


def class_folders(classes: Sequence[str]) -> tuple[str, ...]:
    """The folder of each class: `T-shirt_top` for T-shirt/top, with _ for what no folder may hold.

    Where that leaves two alike, or one too long, all are called by index: `class03`, and sorted by
    name they are sorted by number.
    """
    named = tuple(map(_named, classes))
    alike = {unicodedata.normalize("NFC", name).casefold() for name in named}
    longest = max((len(name.encode()) for name in named), default=0)
    if len(alike) == len(named) and longest <= _LONGEST and not alike & {CLASS_LIST, RECORD}:
        return named
    return indexed_folders(len(classes))


def indexed_folders(count: int) -> tuple[str, ...]:
    """The folders of so many classes by index."""
    digits = max(_SHORTEST_INDEX, len(str(count - 1)))
    return tuple(f"class{index:0{digits}d}" for index in range(count))


def _named(name: str) -> str:
    kept = "".join(
        "_" if letter in _FORBIDDEN or unicodedata.category(letter) in ("Cc", "Cs") else letter
        for letter in name.strip()
    )
    if kept.startswith("."):  # hidden
        kept = "_" + kept[1:]
    return kept[:-1] + "_" if kept.endswith(".") else kept
