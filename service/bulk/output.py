"""Where a bulk run's images go: a folder, or an archive that is made of one at the end.

A file has its name only when it is whole, so a run that was killed at any moment goes on from
what is there. (A machine that loses power may lose more: the disk is not waited for.)
"""

import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

from service.bulk.class_folders import CLASS_LIST, RECORD
from service.bulk.errors import BulkError
from service.bulk.plan import DEFAULTS, INDICES, Plan
from service.bundle import add_to_zip, write_atomically

_ELSE = "name another with -o, or remove this one"


class Folder:
    """A folder of images, one sub-folder per class.

    Args:
        path: the folder.
        plan: what is drawn into it.

    Attributes:
        folder: where its images are until it is finished.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = self.folder = path
        self._plan = plan
        self._lock: int | None = None

    def begin(self) -> set[str]:
        """Make the folder, or go on with it; returns the names of the images that it holds.

        Raises:
            BulkError: something else lies there, or another plan's images; another run draws
                into it now.
            OSError: it cannot be written.
        """
        if not self.folder.parent.is_dir():
            raise BulkError(f"{self.folder.parent}: there is no such folder")
        self.folder.mkdir(exist_ok=True)
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError:
            raise BulkError(f"{self.path}: another sid generate draws into it now") from None
        record = self.folder / RECORD
        if record.exists():
            _compare(self.path, record.read_bytes(), self._plan)
            self._write_classes()
            return _images(self.folder, self._plan.form)
        if any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
            raise BulkError(f"{self.path} holds other files: {_ELSE}")
        _write(record, _record(self._plan))
        self._write_classes()
        return set()

    def _write_classes(self) -> None:
        if (listed := self._plan.class_list) is not None:
            _write(self.folder / CLASS_LIST, listed.encode())

    def write(self, names: Sequence[str], files: Sequence[bytes]) -> None:
        """Write images; raises OSError."""
        for name, content in zip(names, files, strict=True):
            _write(self.folder / name, content)

    def finish(self) -> None:
        """All are written. Raises OSError."""
        self.close()

    def close(self) -> None:
        """Let others draw into the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Archive(Folder):
    """A .zip of images, collected in a folder beside it until all are there."""

    def __init__(self, path: Path, plan: Plan) -> None:
        super().__init__(path, plan)
        self.folder = path.with_name(f"{path.name}.parts")

    def begin(self) -> set[str]:
        """As of a folder; an archive that is there is finished."""
        if not self.path.exists():
            return super().begin()
        try:
            with zipfile.ZipFile(self.path) as archive:
                _compare(self.path, archive.read(RECORD), self._plan)
                names = set(archive.namelist()) - {RECORD, CLASS_LIST}
        except (zipfile.BadZipFile, KeyError):
            raise BulkError(f"{self.path} is not of this command: {_ELSE}") from None
        shutil.rmtree(self.folder, ignore_errors=True)  # of a run killed after its last step
        return names

    def finish(self) -> None:
        """Write the archive and remove the folder. The same images give the same bytes."""
        if not self.path.exists():
            write_atomically(self.path, self._pack, durable=False)
            shutil.rmtree(self.folder)
        self.close()

    def _pack(self, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            add_to_zip(archive, RECORD, _record(self._plan))
            if (listed := self._plan.class_list) is not None:
                add_to_zip(archive, CLASS_LIST, listed.encode())
            for piece in self._plan.pieces(set(), 1):
                (name,) = self._plan.names(piece)
                add_to_zip(archive, name, (self.folder / name).read_bytes())


def open_output(path: Path, plan: Plan) -> Folder:
    """The archive, if the name says so, or the folder."""
    return Archive(path, plan) if path.suffix.lower() == ".zip" else Folder(path, plan)


def _compare(path: Path, recorded: bytes, plan: Plan) -> None:
    """Raise BulkError unless the record says the same as the plan."""
    wanted = plan.record()
    try:
        # An older run has no inputs in its record, or did not say how its folders are called.
        previous = {"inputs": DEFAULTS, "folders": INDICES} | json.loads(recorded)
        differing = [name for name in wanted if previous[name] != wanted[name]]
    except (ValueError, KeyError, TypeError):
        raise BulkError(f"{path}: its {RECORD} is not of this command: {_ELSE}") from None
    if differing:
        what = ", ".join(f"{name} {previous[name]} and not {wanted[name]}" for name in differing)
        raise BulkError(f"{path} was begun with {what}: {_ELSE}")


def _record(plan: Plan) -> bytes:
    return (json.dumps(plan.record(), indent=1) + "\n").encode()


def _images(folder: Path, form: str) -> set[str]:
    """The names of the whole images below a folder: with their class's, if they have one."""
    names = set()
    for path, _, files in os.walk(folder):
        prefix = "" if Path(path) == folder else f"{Path(path).name}/"
        names |= {prefix + name for name in files if name[0] != "." and name.endswith(f".{form}")}
    return names


def _write(path: Path, content: bytes) -> None:
    """Write a file that has its name only when it is whole."""
    path.parent.mkdir(exist_ok=True)  # the first of its class
    write_atomically(path, lambda partial: partial.write_bytes(content), durable=False)
