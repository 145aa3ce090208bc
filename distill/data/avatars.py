"""A colour data set that anyone can draw: avatars of ten styles by DiceBear, all CC0 1.0.

A style is a definition in `dicebear-styles`; `dicebear-core` turns it and a seed string into an
SVG document, and resvg draws that. All three are deterministic and need no network, so the data
set is a function of the split, the count and the size.
"""

import io
import json
import multiprocessing
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from distill.errors import UserError
from distill.threads import available_cpus
from service.bundle import add_to_zip, write_atomically

Split = Literal["train", "test"]

# Class name: the style that draws it. Their order is the order of the labels.
STYLES = {
    "Voxel person": "voxel-art",
    "Voxel robot": "voxel-bot",
    "Planet": "planets",
    "Thumb": "thumbs",
    "Critter": "critters",
    "Sprout": "sprouts",
    "Mood": "moods",
    "Clay": "clay",
    "Pixel person": "pixel-art",
    "Landscape": "landscape",
}
OVERSAMPLING = 2
SIZE_STEP = 8  # the recipe's network halves maps of 2x2 patches twice
PER_TASK = 100  # avatars that a process draws at a time


@dataclass(frozen=True)
class Task:
    """Some avatars of one class, for one process to draw.

    Attributes:
        class_name: a key of `STYLES`.
        split: which seeds to draw from; no seed is in two splits.
        numbers: the avatars' numbers within class and split.
        size: width and height in pixels.
    """

    class_name: str
    split: Split
    numbers: range
    size: int


def check_size(size: int) -> None:
    """Raise UserError unless avatars of this size fit the recipe's network."""
    if size % SIZE_STEP:
        raise UserError(
            f"--size {size} does not fit the recipe's network, which sees patches of 2x2 pixels "
            f"and halves twice: choose a multiple of {SIZE_STEP}"
        )


def licences() -> list[str]:
    """One line a style: who made it, where it is from, and its licence.

    Raises:
        UserError: the packages are missing.
    """
    lines = []
    for name, style in STYLES.items():
        meta = _definition(style)["meta"]
        source, licence = meta["source"], meta["license"]
        lines.append(
            f"{name}: {source['name']} by {meta['creator']['name']} ({source['url']}): "
            f"{licence['name']} ({licence['url']})"
        )
    return lines


def draw(task: Task) -> list[bytes]:
    """Draw avatars on white; each is a PNG.

    They are drawn twice as large and averaged, so that edges are smooth at any size.

    Raises:
        UserError: the packages are missing.
    """
    avatar, resvg = _libraries()
    large = task.size * OVERSAMPLING
    pngs = []
    for number in task.numbers:
        # The class is part of the seed: styles that share an option (a background) would
        # otherwise all draw it alike for one number.
        seed = f"{task.class_name} {task.split} {number}"
        svg = avatar(_style(task.class_name), {"seed": seed, "size": large}).to_string()
        drawn = resvg.svg_to_bytes(
            svg_string=svg,
            background="#ffffff",
            width=large,
            height=large,
            skip_system_fonts=True,
        )
        with Image.open(io.BytesIO(drawn)) as image:
            png = io.BytesIO()
            image.convert("RGB").reduce(OVERSAMPLING).save(png, "PNG")
        pngs.append(png.getvalue())
    return pngs


def write_dataset(
    path: Path,
    count: int,
    size: int,
    split: Split,
    progress: Callable[[Iterable[list[bytes]], int], Iterable[list[bytes]]],
) -> None:
    """Draw a data set into a zip, with a folder a class, on all processors.

    The same arguments give the same bytes. Besides the folders the zip holds LICENCES.txt, and
    classes.txt, which gives the classes their order.

    Args:
        path: the zip; it appears when it is whole.
        count: avatars a class.
        size: their width and height.
        split: "train", or "test" for avatars that no training sees.
        progress: wraps the loop over the tasks' results, given their number, say by tqdm.

    Raises:
        UserError: the file exists, the size does not fit, or packages are missing.
    """
    check_size(size)
    if path.exists():
        raise UserError(f"{path} exists already: delete it, or name another file with --out")
    _libraries()  # a missing package is told here, not by another process
    text = {"LICENCES.txt": licences(), "classes.txt": list(STYLES)}
    tasks = list(_tasks(count, size, split))
    # Started afresh: a fork of a process that has threads (torch's) may hang.
    context = multiprocessing.get_context("spawn")

    def fill(file: Path) -> None:
        with (
            zipfile.ZipFile(file, "w") as archive,
            ProcessPoolExecutor(available_cpus(), mp_context=context) as pool,
        ):
            for name, lines in text.items():
                add_to_zip(archive, name, "\n".join([*lines, ""]).encode())
            drawn = progress(pool.map(draw, tasks), len(tasks))
            for task, pngs in zip(tasks, drawn, strict=True):
                for number, png in zip(task.numbers, pngs, strict=True):
                    add_to_zip(archive, f"{task.class_name}/{number:06}.png", png)

    write_atomically(path, fill)


def _tasks(count: int, size: int, split: Split) -> Iterator[Task]:
    for class_name in STYLES:
        for start in range(0, count, PER_TASK):
            yield Task(class_name, split, range(start, min(start + PER_TASK, count)), size)


def _libraries() -> tuple[Any, Any]:
    """dicebear's Avatar and the module resvg_py."""
    try:
        import resvg_py
        from dicebear import Avatar
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    return Avatar, resvg_py


@lru_cache
def _style(class_name: str) -> Any:
    from dicebear import Style

    return Style(_definition(STYLES[class_name]))


def _definition(style: str) -> dict[str, Any]:
    try:
        text = resources.files("dicebear_styles").joinpath(f"{style}.json").read_text("utf-8")
    except ModuleNotFoundError as error:
        raise _missing(error) from None
    definition: dict[str, Any] = json.loads(text)
    return definition


def _missing(error: ModuleNotFoundError) -> UserError:
    return UserError(
        f"drawing avatars needs {error.name}: pip install dicebear-core dicebear-styles resvg-py"
    )
