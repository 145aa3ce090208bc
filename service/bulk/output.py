"""Where a bulk run's pictures go: a folder, or an archive that is made of one at the end.

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

from service.bulk.errors import BulkError
from service.bulk.plan import DEFAULTS, Plan

RECORD = "sid-generate.json"
"""The file that says what is drawn into a folder, as `Plan.record` has it."""

_ELSE = "name another with -o, or remove this one"


class Folder:
    """A folder of pictures, one sub-folder a class.

    Args:
        path: the folder.
        plan: what is drawn into it.

    Attributes:
        folder: where its pictures are until it is finished.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path = self.folder = path
        self._plan = plan
        self._lock: int | None = None

    def begin(self) -> set[str]:
        """Make the folder, or go on with it; returns the names of the pictures that it holds.

        Raises:
            BulkError: something else lies there, or another plan's pictures; another run draws
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
            return _pictures(self.folder, self._plan.form)
        if any(not entry.name.startswith(".") for entry in self.folder.iterdir()):
            raise BulkError(f"{self.path} holds other files: {_ELSE}")
        _replace(record, _record(self._plan))
        return set()

    def write(self, names: Sequence[str], files: Sequence[bytes]) -> None:
        """Write pictures; raises OSError."""
        for name, content in zip(names, files, strict=True):
            _replace(self.folder / name, content)

    def finish(self) -> None:
        """All are written. Raises OSError."""
        self.close()

    def close(self) -> None:
        """Let others draw into the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Archive(Folder):
    """A .zip of pictures, collected in a folder beside it until all are there."""

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
                names = set(archive.namelist()) - {RECORD}
        except (zipfile.BadZipFile, KeyError):
            raise BulkError(f"{self.path} is not of this command: {_ELSE}") from None
        shutil.rmtree(self.folder, ignore_errors=True)  # of a run killed after its last step
        return names

    def finish(self) -> None:
        """Write the archive and remove the folder. The same pictures give the same bytes."""
        if not self.path.exists():
            partial = self.path.with_name(f".{self.path.name}.partial")
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
                _add(archive, RECORD, _record(self._plan))
                for piece in self._plan.pieces(set(), 1):
                    (name,) = self._plan.names(piece)
                    _add(archive, name, (self.folder / name).read_bytes())
            partial.replace(self.path)
            shutil.rmtree(self.folder)
        self.close()


def open_output(path: Path, plan: Plan) -> Folder:
    """The archive, if the name says so, or the folder."""
    return Archive(path, plan) if path.suffix.lower() == ".zip" else Folder(path, plan)


def _compare(path: Path, recorded: bytes, plan: Plan) -> None:
    """Raise BulkError unless the record says the same as the plan."""
    wanted = plan.record()
    try:
        # A run of before there were inputs has none in its record.
        found = {"inputs": DEFAULTS} | json.loads(recorded)
        differing = [name for name in wanted if found[name] != wanted[name]]
    except (ValueError, KeyError, TypeError):
        raise BulkError(f"{path}: its {RECORD} is not of this command: {_ELSE}") from None
    if differing:
        what = ", ".join(f"{name} {found[name]} and not {wanted[name]}" for name in differing)
        raise BulkError(f"{path} was begun with {what}: {_ELSE}")


def _record(plan: Plan) -> bytes:
    return (json.dumps(plan.record(), indent=1) + "\n").encode()


def _pictures(folder: Path, form: str) -> set[str]:
    """The names of the whole pictures below a folder: with their class's, if they have one."""
    found = set()
    for path, _, files in os.walk(folder):
        prefix = "" if Path(path) == folder else f"{Path(path).name}/"
        found |= {prefix + name for name in files if name[0] != "." and name.endswith(f".{form}")}
    return found


def _replace(path: Path, content: bytes) -> None:
    """Write a file that has its name only when it is whole."""
    # Hidden, for readers of image folders; always the same, so that the next run takes it away.
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
    except FileNotFoundError:  # the first of its class
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(content)
    partial.replace(path)


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file, stored, since pictures hardly deflate; with zip's first date."""
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3  # Unix, on every system
    entry.external_attr = 0o100644 << 16  # a file that its owner may write and all read
    archive.writestr(entry, content)
