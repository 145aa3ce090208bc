"""Which images a bulk run draws, in which order, and what their files are called."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from service.bulk.class_folders import class_folders, indexed_folders
from service.bulk.errors import BulkError
from service.bundle.seeds import SEED_MAX

ALL_CLASSES = "all"
DEFAULTS = "defaults"
"""What a record says of a run that names no inputs."""
INDICES = "class indices"
"""What a record says of a run whose folders are called by index, as all once were."""
_SHORTEST_SEED = 7  # digits


@dataclass(frozen=True)
class Piece:
    """Images of consecutive seeds, which are asked for together.

    Attributes:
        class_label: index; None: each seed's own class, or a model without classes.
        first: the first seed.
        count: how many.
    """

    class_label: int | None
    first: int
    count: int

    def after(self, drawn: int) -> "Piece | None":
        """What is left when so many are drawn."""
        if drawn == self.count:
            return None
        return Piece(self.class_label, self.first + drawn, self.count - drawn)


class Drawn(NamedTuple):
    """One image, wherever it was drawn: its file, seed, class, class's name and model."""

    content: bytes
    seed: int
    class_label: int | None
    class_name: str | None
    model: str


@dataclass(frozen=True)
class Plan:
    """What is drawn: every seed with every label.

    Attributes:
        model: name:version:digest:graph.
        classes: the model's, by index; empty: it has none.
        labels: class indices; (None,): each seed modulo the number of classes, or no class.
        seeds: as `parse_seeds` returns them.
        form: png, webp or jpeg.
        inputs: labels and vectors of the model that are named.
    """

    model: str
    classes: Sequence[str]
    labels: tuple[int | None, ...]
    seeds: tuple[range, ...]
    form: str
    inputs: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def folders(self) -> tuple[str, ...]:
        """The folder of each class."""
        return class_folders(self.classes)

    @property
    def class_list(self) -> str | None:
        """The folders that there will be, one a line; None where sorting them by name does."""
        if self.folders == indexed_folders(len(self.classes)):
            return None
        count = len(self.classes)
        drawn = set(self.labels)
        if None in drawn:
            drawn = {seed % count for part in self.seeds for seed in part[:count]}
        return "".join(f"{name}\n" for i, name in enumerate(self.folders) if i in drawn)

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.labels) * count_seeds(self.seeds)

    def pieces(self, done: Set[str], size: int) -> Iterator[Piece]:
        """The images whose names are not in `done`, at most `size` in a piece."""
        for label in self.labels:
            for seeds in self.seeds:
                first = seeds.start
                for seed in seeds:
                    missing = self.name(label, seed) not in done
                    if not missing or seed - first == size:
                        if seed > first:
                            yield Piece(label, first, seed - first)
                        first = seed if missing else seed + 1
                if seeds.stop > first:
                    yield Piece(label, first, seeds.stop - first)

    def names(self, piece: Piece) -> list[str]:
        """The names of a piece's files."""
        return [self.name(piece.class_label, piece.first + i) for i in range(piece.count)]

    def name(self, label: int | None, seed: int) -> str:
        """A file's name, in its class's folder: sorted by name they are sorted by number."""
        digits = max(_SHORTEST_SEED, len(str(self.seeds[-1].stop - 1)))
        file = f"seed{seed:0{digits}d}.{self.form}"
        if not self.classes:
            return file
        return f"{self.folders[seed % len(self.classes) if label is None else label]}/{file}"

    def record(self) -> dict[str, str]:
        """The plan in words: two are the same if these are."""
        labels = "each seed modulo their number" if self.classes else "none"
        if self.labels != (None,):
            labels = ", ".join(str(label) for label in self.labels)
            if len(self.labels) == len(self.classes):
                labels = ALL_CLASSES
        seeds = ",".join(
            f"{part.start}-{part.stop - 1}" if part.stop - part.start > 1 else f"{part.start}"
            for part in self.seeds
        )
        named = json.dumps(self.inputs, sort_keys=True) if self.inputs else DEFAULTS
        return {
            "model": self.model,
            "classes": labels,
            "seeds": seeds,
            "form": self.form,
            "inputs": named,
            "folders": INDICES if self.class_list is None else "class names",
        }


def parse_inputs(texts: Sequence[str]) -> dict[str, object]:
    """Read `style=3` and `mix=[0.2, 0.8]`; what the model takes of them is asked later.

    Raises:
        BulkError: one is nothing of the kind, or names an input that another names too.
    """
    inputs: dict[str, object] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name in inputs:
            raise BulkError(f"--input {text}: {name} is named twice")
        try:
            inputs[name] = json.loads(value)
            # A request cannot hold NaN, infinity or an unpaired surrogate.
            json.dumps(inputs, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise BulkError(
                f"--input {text}: inputs are written as style=3 or 'mix=[0.2, 0.8]'"
            ) from None
    return inputs


def parse_seeds(text: str) -> tuple[range, ...]:
    """Read `0-9,20` (both ends count), in order and without doubles.

    Raises:
        BulkError: it is nothing of the kind, or a seed is out of range.
    """
    spans = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", part.strip(), re.ASCII)
        if match is None:
            raise BulkError(f"--seeds {text}: seeds are written as 0-49999, 7 or 0-9,20")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise BulkError(f"--seeds {part.strip()}: the first is above the last")
        if last > SEED_MAX:
            raise BulkError(f"--seeds {part.strip()}: seeds are from 0 to {SEED_MAX}")
        spans.append(range(first, last + 1))
    merged: list[range] = []
    for span in sorted(spans, key=lambda span: span.start):
        if merged and span.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(merged[-1].stop, span.stop))
        else:
            merged.append(span)
    return tuple(merged)


def count_seeds(seeds: tuple[range, ...]) -> int:
    """How many seeds; `len` of a range ends at 2^63."""
    return sum(part.stop - part.start for part in seeds)
