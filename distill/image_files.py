"""Finding the files of a data set, in a folder or a zip, and telling images from other files.

A folder's links are followed. Whatever is not read is noted with the reason.
"""

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import IO

from PIL import Image

from distill.data_notes import Notes
from distill.errors import UserError

# Formats that Pillow knows by name but cannot decode by itself. (EPS is a program, which it would
# give to Ghostscript.)
UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


@dataclass(frozen=True)
class SourceFile:
    """One file of a data set.

    Attributes:
        name: relative to the data set, with slashes.
        open: opens its content as a stream, from the beginning.
        read: reads its content whole.
    """

    name: PurePosixPath
    open: Callable[[], IO[bytes]]
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Sources:
    """What a folder or a zip holds, but for hidden files.

    Attributes:
        files: in the order of their names.
        folders: all folders, the empty ones too.
    """

    files: list[SourceFile] = field(default_factory=list)
    folders: set[PurePosixPath] = field(default_factory=set)


@contextmanager
def open_sources(path: Path, notes: Notes) -> Iterator[Sources]:
    """List the files of a folder or zip; a zip stays open meanwhile.

    Raises:
        UserError: `path` is neither.
    """
    if path.is_dir():
        sources = Sources()
        _walk(path, PurePosixPath(), [path.resolve()], sources, notes)
        sources.files.sort(key=lambda file: file.name)
        yield sources
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield _archived(path, archive, notes)
    else:
        raise UserError(f"{path} is neither a folder nor a zip file")


def _walk(
    folder: Path, name: PurePosixPath, above: list[Path], sources: Sources, notes: Notes
) -> None:
    """Collect what lies below a folder.

    Args:
        folder: where to look.
        name: its name relative to the data set.
        above: it and the folders above it, links resolved: a link to one of them is a loop.
        sources: receives files and folders.
        notes: receives what is passed over.
    """
    for entry in sorted(os.listdir(folder)):  # noqa: PTH208  # names are all that is needed
        path, relative = folder / entry, name / entry
        if _hidden(relative):
            notes.pass_over("hidden files", relative)
        elif path.is_dir():
            target = path.resolve()
            if target in above:
                notes.pass_over("links to a folder that holds them", relative)
                continue
            sources.folders.add(relative)
            _walk(path, relative, [*above, target], sources, notes)
        elif path.is_file():
            opened = partial(_open, path)
            sources.files.append(SourceFile(relative, opened, path.read_bytes))
        elif path.is_symlink():
            notes.pass_over("links that lead nowhere", relative)
        else:
            notes.pass_over("neither files nor folders", relative)


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _archived(path: Path, archive: zipfile.ZipFile, notes: Notes) -> Sources:
    sources = Sources()
    for info in archive.infolist():
        name = _archived_name(info)
        relative = PurePosixPath(name)
        if _hidden(relative):
            if not name.endswith("/"):
                notes.pass_over("hidden files", relative)
            continue
        sources.folders.update(parent for parent in relative.parents if parent.parts)
        if name.endswith("/"):
            sources.folders.add(relative)
        elif stat.S_ISLNK(info.external_attr >> 16):
            notes.pass_over("links stored in the zip", relative)
        else:
            opened, read = partial(archive.open, info), partial(_unpack, path, archive, info)
            sources.files.append(SourceFile(relative, opened, read))
    sources.files.sort(key=lambda file: str(file.name))
    return sources


def _archived_name(info: zipfile.ZipInfo) -> str:
    """A zip entry's name as its author meant it.

    Programs on Windows separate folders by backslashes, against the format's rule. Macs write
    UTF-8 without saying so, and Python then takes the bytes for those of MS-DOS.
    """
    name = info.filename
    if not info.flag_bits & 0x800:
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            name = info.filename
    return name.replace("\\", "/").lstrip("/")


def _unpack(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error, EOFError) as error:
        raise UserError(f"{path}: {info.filename} cannot be unpacked ({error})") from None


def _hidden(name: PurePosixPath) -> bool:
    """Whether a name is of a hidden file, or of a Mac's shadow of one."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


@cache
def formats() -> list[str]:
    """Pillow's names of the formats that can be read here, the common ones first."""
    Image.init()
    return [name for name in Image.ID if name in Image.OPEN and name not in UNREADABLE]


@cache
def _suffixes() -> set[str]:
    """Suffixes of those formats, in lower case."""
    known = Image.registered_extensions()
    return {suffix for suffix, name in known.items() if name in formats()}


@cache
def _signed_formats() -> list[str]:
    """The formats that are told by their first bytes; others would take many a file for theirs."""
    return [name for name in formats() if Image.OPEN[name][1] is not None]


def is_image(file: SourceFile) -> bool:
    """Whether a file is meant as an image: by its suffix, else by its content."""
    if file.name.suffix.lower() in _suffixes():
        return True
    try:
        with file.open() as opened, Image.open(opened, formats=_signed_formats()):
            return True
    except Image.DecompressionBombError:
        return True  # too large, and to be told so
    except OSError as error:
        if error.errno is not None:  # not Pillow's, but a file that cannot be read
            raise
    except (ValueError, RuntimeError, zipfile.BadZipFile, zlib.error):
        pass
    return False


def open_image(file: SourceFile) -> Image.Image:
    """Open an image with Pillow; raises what Pillow raises."""
    return Image.open(io.BytesIO(file.read()), formats=formats())
