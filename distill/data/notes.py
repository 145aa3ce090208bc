"""What was read of a data set, and what was not, in one line for the person who brought it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

EXAMPLES = 3  # names shown of those that are alike
CLASSES_NAMED = 20  # with more classes only the smallest and the largest count is told


@dataclass
class Notes:
    """What is noted while a data set is read.

    Attributes:
        sizes: width and height of the images as they were found.
        treated: images that were changed by more than cropping and scaling, by what was done.
        passed_over: names of what was not read, by the reason, in the plural.
        remarks: whatever else a person should know.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    treated: Counter[str] = field(default_factory=Counter)
    passed_over: dict[str, list[str]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def pass_over(self, reason: str, name: PurePath | str) -> None:
        """Note something that is not read."""
        self.passed_over.setdefault(reason, []).append(printable(str(name)))

    def summary(
        self, path: Path, shape: Sequence[int], classes: Sequence[str], counts: Sequence[int]
    ) -> str:
        """Say in one line what was read.

        Args:
            path: where the data set lies.
            shape: of the images, [N, C, H, W].
            classes: their names; empty for none.
            counts: images of each class.
        """
        n, channels, height, width = shape
        kind = f"{'grey' if channels == 1 else 'colour'} image{'s' * (n != 1)}"
        parts = [f"{printable(str(path))}: {n:,} {kind}, {self._sizes()}"]
        if set(self.sizes) - {(width, height)}:
            parts[0] += f" (the middle square, scaled to {width}x{height})"
        parts[0] += f", {_classes(classes, counts)}"
        parts += self.remarks
        parts += [f"{count:,} {what}" for what, count in sorted(self.treated.items())]
        return "; ".join(parts) + self.passed_over_summary()

    def passed_over_summary(self) -> str:
        """What was passed over and why, as the end of a line; empty if nothing was."""
        if not self.passed_over:
            return ""
        reasons = (_examples(*each) for each in sorted(self.passed_over.items()))
        return f"; passed over: {', '.join(reasons)}"

    def _sizes(self) -> str:
        sizes = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
        shown = [f"{width}x{height}" for width, height in sizes]
        if len(shown) <= EXAMPLES:
            return ", ".join(shown)
        return f"{len(shown):,} sizes from {shown[0]} to {shown[-1]}"


def _classes(classes: Sequence[str], counts: Sequence[int]) -> str:
    if not classes:
        return "no classes"
    if len(classes) > CLASSES_NAMED:
        return f"{len(classes):,} classes of {min(counts):,} to {max(counts):,} images each"
    named = (f"{name} ({count:,})" for name, count in zip(classes, counts, strict=True))
    return f"{len(classes)} classes: {', '.join(named)}"


def _examples(reason: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > EXAMPLES else ""
    return f"{reason} ({len(names):,}: {', '.join(names[:EXAMPLES])}{more})"


def printable(text: str) -> str:
    """Text that neither breaks a line nor fails to be printed."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
