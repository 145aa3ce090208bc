"""How both halves write files: whole or not at all, and the same content as the same bytes.

A bundle is a folder of files with their digests that one half writes while the other reads it,
so this is part of the contract; what else is written (networks, images, archives) is held to it.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

_ZIP_DATE: Final = (1980, 1, 1, 0, 0, 0)  # the first that a zip can state


def sha256_file(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path` and move it there; make the folder first.

    A reader sees the old file or the new one, whole, whatever is killed meanwhile. The temporary
    file is hidden, for readers of image folders, and always has the same name, so that the next
    writer takes away what a killed one left.

    Args:
        path: the file.
        write: is given the temporary file's path.
        durable: wait until the disk holds it, so that it outlasts a loss of power too; False for
            many small files that can be made again.

    Raises:
        OSError: it cannot be written, say on a full disk; the error names the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # a full disk, Ctrl-C: leave nothing half written about
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error  # write() names none
        raise


def add_to_zip(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file to an archive: stored, since images hardly deflate.

    Date, mode and system are fixed, so that the same files give the same bytes on every machine.
    """
    entry = zipfile.ZipInfo(name, _ZIP_DATE)
    entry.create_system = 3  # Unix, on every system
    entry.external_attr = 0o100644 << 16  # a file that its owner may write and all read
    archive.writestr(entry, content)
