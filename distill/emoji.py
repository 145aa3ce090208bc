"""A colour data set of one's own making: emoji of three free icon sets, drawn small.

The icon sets are npm packages in Iconify's format: icons.json holds the SVG body of each icon,
metadata.json names its category (Unicode's groups), info.json its licence.
"""

import hashlib
import io
import json
import re
import shutil
import subprocess
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from distill.errors import UserError

SETS = {"fluent-emoji-flat": "1.2.6", "noto": "1.2.9", "twemoji": "1.2.5"}
PACKAGES = tuple(f"@iconify-json/{name}@{version}" for name, version in SETS.items())
PEOPLE = "People & Body"
SKIPPED = {"Component"}  # swatches of skin and hair: parts of emoji, not emoji
OVERSAMPLING = 4
FIXED_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say: the same bytes on every day

# "-dark-skin-tone", or fluent's "-dark"; for two people twice; "man-dark-skin-tone-beard" too.
_TONE = re.compile(r"-(?:medium-)?(?:light|medium|dark)(?:-skin-tone)?(?=-|$)")


@dataclass(frozen=True)
class Icon:
    """One picture to draw.

    Attributes:
        source: the icon set it is from.
        name: its name there, such as "red-apple".
        category: its class, such as "Food & Drink".
        svg: a whole SVG document.
    """

    source: str
    name: str
    category: str
    svg: str

    @property
    def path(self) -> str:
        """Where it lies in the data set."""
        return f"{self.category}/{self.source}-{self.name}.png"


def fetch_icons(folder: Path) -> Path:
    """Let npm install the pinned icon sets into an empty folder; return where they lie.

    Raises:
        UserError: there is no npm, or it failed.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            "npm is not installed: install it, or name a node_modules/@iconify-json folder that "
            f"holds {', '.join(SETS)} with --icons"
        )
    command = [npm, "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit"]
    command += ["--no-fund", "--no-save", "--loglevel=error", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(f"npm could not fetch the icon sets: {lines[0] if lines else 'no reason'}")
    return folder / "node_modules" / "@iconify-json"


def read_icons(folder: Path) -> list[Icon]:
    """Read the icons of every set that have a category, sorted by their place in the data set.

    An icon's aliases and those it hides (older names and drawings) are left out.

    Raises:
        UserError: a set is not there, or is not in Iconify's format.
    """
    icons = [icon for source in SETS for icon in _read_set(folder / source, source)]
    return sorted(icons, key=lambda icon: icon.path)


def _read_set(folder: Path, source: str) -> Iterator[Icon]:
    content = _read_json(folder / "icons.json")
    metadata = _read_json(folder / "metadata.json")
    try:
        for category, names in metadata["categories"].items():
            for name in sorted(set(names)) if category not in SKIPPED else ():
                yield Icon(source, name, category, _document(content["icons"][name], content))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is not an icon set in Iconify's format ({error!r})") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"no {path}: --icons names a node_modules/@iconify-json folder that holds "
            f"{', '.join(SETS)}"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from None


def _document(icon: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Put an icon's body into an SVG document; what it leaves out is its set's."""

    def entry(name: str, otherwise: int) -> float:
        return float(icon.get(name, defaults.get(name, otherwise)))

    box = f"{entry('left', 0):g} {entry('top', 0):g} {entry('width', 16):g} {entry('height', 16):g}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'


def licence_of(folder: Path, source: str) -> str:
    """One line on where a set comes from and under which licence."""
    info = _read_json(folder / source / "info.json")
    try:
        return (
            f"{info['name']} by {info['author']['name']} ({info['author']['url']}): "
            f"{info['license']['title']} ({info['license']['url']})"
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / source / 'info.json'} lacks {error}") from None


def one_tone_each(icons: Iterable[Icon]) -> list[Icon]:
    """Keep one of the skin tones in which a set draws the same people.

    Five tones (25 for couples) and the yellow one differ by little else than colour, and make
    people six pictures in ten: a network would spend itself on them, and a distance compare
    classes of equal shares with a set that is mostly one of them. Which tone stays is drawn by
    a hash of the name, so that the data set shows all of them.
    """
    kept, people = [], defaultdict(list)
    for icon in icons:
        if icon.category == PEOPLE:
            people[icon.source, _TONE.sub("", icon.name)].append(icon)
        else:
            kept.append(icon)
    for (source, figure), tones in people.items():
        tones.sort(key=lambda icon: icon.name)
        draw = hashlib.sha256(f"{source} {figure}".encode()).digest()
        kept.append(tones[int.from_bytes(draw[:8]) % len(tones)])
    return sorted(kept, key=lambda icon: icon.path)


def draw(icon: Icon, size: int) -> Image.Image:
    """Draw an icon on white, `size` pixels square.

    It is drawn four times as large and averaged: where two shapes share an edge, a renderer's
    own antialiasing lets the background through, which at 32 pixels shows as pale seams.

    Raises:
        UserError: resvg is not installed, or cannot draw it.
    """
    try:
        import resvg_py
    except ImportError:
        raise UserError("drawing emoji needs resvg: pip install resvg-py") from None
    large = size * OVERSAMPLING
    try:
        drawn = resvg_py.svg_to_bytes(
            svg_string=icon.svg,
            background="#ffffff",
            width=large,
            height=large,
            skip_system_fonts=True,
        )
    except ValueError as error:
        raise UserError(f"{icon.source}'s {icon.name} cannot be drawn ({error})") from None
    with Image.open(io.BytesIO(drawn)) as image:
        return image.convert("RGB").reduce(OVERSAMPLING)


def write_dataset(
    path: Path,
    icons: list[Icon],
    size: int,
    licences: Iterable[str],
    progress: Callable[[list[Icon]], Iterable[Icon]] = iter,
) -> Counter[str]:
    """Draw icons into a zip with a folder a class; the same icons give the same bytes.

    Args:
        path: the zip; it appears when it is whole.
        icons: what to draw, in the order in which to write it.
        size: width and height of a picture.
        licences: lines for the zip's LICENCES.txt.
        progress: wraps the loop over the icons, say by tqdm.

    Returns:
        How many pictures each class got.
    """
    counts: Counter[str] = Counter()
    unfinished = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(unfinished, "w") as archive:
            _add(archive, "LICENCES.txt", "\n".join([*licences, ""]).encode())
            for icon in progress(icons):
                png = io.BytesIO()
                draw(icon, size).save(png, "PNG")
                _add(archive, icon.path, png.getvalue())
                counts[icon.category] += 1
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return counts


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, FIXED_DATE)  # stored: a PNG does not shrink again
    entry.create_system = 3  # a zip otherwise says on which system it was made
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, content)
