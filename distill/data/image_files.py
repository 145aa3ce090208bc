"""Finding the files of a data set, in a folder or a zip, and telling images from other files.

A folder's links are followed. Whatever is not read is noted with the reason.
"""

import io
import lzma
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path, PurePosixPath
from typing import IO

from PIL import Image

from distill.data.notes import Notes, printable
from distill.errors import UserError

# Formats that Pillow knows by name but cannot decode by itself. (EPS is a program, which it would
# give to Ghostscript.)
UNREADABLE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# What zipfile raises for damaged, encrypted (RuntimeError) and too new archives.
_DAMAGE = (
    zipfile.BadZipFile, RuntimeError, NotImplementedError, zlib.error, lzma.LZMAError, EOFError,
)  # fmt: skip


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
    else:
        with _opened_zip(path) as archive:
            yield _archived(path, archive, notes)


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


def _opened_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (*_DAMAGE, ValueError, struct.error) as error:
        with path.open("rb") as file:
            begins = file.read(4)
        if begins == b"PK\3\4" or zipfile.is_zipfile(path):
            reason = f"{path} cannot be read as a zip ({error}): pack or fetch it again"
        else:
            reason = f"{path} is neither a folder nor a zip file"
        raise UserError(reason) from None


def _archived(path: Path, archive: zipfile.ZipFile, notes: Notes) -> Sources:
    sources = Sources()
    infos: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name, guessed = _archived_name(info)
        if name in infos and not name.endswith("/"):
            notes.pass_over("files that the zip holds again in a newer state", name)
        infos[name] = info
        if guessed:
            notes.treated["names in no stated encoding, read as MS-DOS's"] += 1
    for name, info in infos.items():
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
            opened = partial(_unpacking, path, archive, info)
            sources.files.append(
                SourceFile(relative, opened, partial(_unpack, path, archive, info))
            )
    sources.files.sort(key=lambda file: str(file.name))
    return sources


def _archived_name(info: zipfile.ZipInfo) -> tuple[str, bool]:
    """A zip entry's name as its author meant it, and whether its encoding had to be guessed.

    The first of these that is there: Info-ZIP's name in UTF-8 beside one in a code page; the flag
    that says UTF-8; bytes that are UTF-8, as Macs and Linux's `zip` write them without the flag
    (Python took them for MS-DOS's); MS-DOS's code page, which is the guess. Programs on Windows
    separate folders by backslashes, against the format's rule.
    """
    name, guessed = info.orig_filename, False
    says_utf8 = bool(info.flag_bits & 0x800)
    raw = name.encode("utf-8" if says_utf8 else "cp437")
    if stated := _unicode_name(info.extra, raw):
        name = stated
    elif not says_utf8:
        try:
            name = raw.decode("utf-8")
        except UnicodeError:
            guessed = True
    name, _, _ = name.partition("\0")  # a name of C's ends there
    return name.replace("\\", "/").lstrip("/"), guessed


def _unicode_name(extra: bytes, raw: bytes) -> str | None:
    """The name in UTF-8 that Info-ZIP and WinRAR put beside one in a code page, if it is there.

    It goes with the very bytes of that name, by their checksum: a program that knows nothing of it
    may have renamed the file since.
    """
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        # A version, the checksum of the name that it goes with, and the name.
        if kind == 0x7075 and field[:1] == b"\1" and len(field) > 5:
            if field[1:5] != zlib.crc32(raw).to_bytes(4, "little"):
                return None
            try:
                return field[5:].decode("utf-8")
            except UnicodeError:
                return None
    return None


def _unpack(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except _DAMAGE as error:
        raise _not_unpacked(path, info.filename, error) from None


def _unpacking(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    try:
        return archive.open(info)
    except _DAMAGE as error:
        raise _not_unpacked(path, info.filename, error) from None


def _not_unpacked(path: Path, name: str, error: Exception) -> UserError:
    return UserError(f"{path}: {printable(name)} cannot be unpacked ({error})")


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
    registered = Image.registered_extensions()
    return {suffix for suffix, name in registered.items() if name in formats()}


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
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{printable(str(file.name))} cannot be unpacked ({error})") from None
    except (ValueError, RuntimeError):
        pass
    return False


def open_image(file: SourceFile) -> Image.Image:
    """Open an image with Pillow; raises what Pillow raises."""
    return Image.open(io.BytesIO(file.read()), formats=formats())
