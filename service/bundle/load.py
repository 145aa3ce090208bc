"""Reading and writing bundles: nothing is served before every byte of it is verified."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from service.bundle.files import sha256_file, write_atomically
from service.bundle.graphs import Tolerance
from service.bundle.manifest import MANIFEST_NAME, Manifest
from service.bundle.text import TextError, decode_text
from service.bundle.validation import first_error

_DIGEST_LENGTH = 12


class BundleError(Exception):
    """A bundle that cannot be served; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Bundle:
    """A verified model folder.

    Attributes:
        manifest: what the model is.
        folder: where it lies.
        digest: first 12 hexadecimal digits of the manifest's SHA-256. The manifest holds the
            digest of every file, so this one stands for all of the bundle's bytes.
    """

    manifest: Manifest
    folder: Path
    digest: str

    @property
    def tag(self) -> str:
        """`name:version:digest`: which weights; `ServedModel.tag` says which graph draws them."""
        return f"{self.manifest.name}:{self.manifest.version}:{self.digest}"

    def graph(self, filename: str) -> Path:
        """Path of the graph `filename` (see `service.bundle.graphs`).

        Raises:
            BundleError: the bundle does not hold it.
        """
        relative = f"{self.manifest.version}/{filename}"
        if relative not in self.manifest.files:
            raise BundleError(f"{self.folder}: the bundle holds no {relative}")
        return self.folder / relative

    def holds(self, filename: str) -> bool:
        """Whether the bundle has the graph `filename`."""
        return f"{self.manifest.version}/{filename}" in self.manifest.files

    def tolerance(self, filename: str) -> Tolerance | None:
        """How far the images of the graph `filename` may be off; None: as the golden ones say."""
        graph = self.manifest.graphs.get(filename)
        return graph.allowed if graph else None


def list_bundles(models: Path) -> list[Path]:
    """The sub-folders of `models` that hold a manifest, by name.

    Raises:
        BundleError: there is no such folder, or no bundle in it.
    """
    hint = "run from the repository root, or say --models DIR (or SID_MODELS=DIR)"
    if not models.is_dir():
        raise BundleError(f"{models}: there is no such folder; {hint}")
    # A hidden folder is a publish that is under way, or was killed: no bundle (yet).
    folders = sorted(path.parent for path in models.glob(f"[!.]*/{MANIFEST_NAME}"))
    if not folders:
        raise BundleError(f"{models}: no model in it (no */{MANIFEST_NAME}); {hint}")
    return folders


def load_manifest(folder: Path) -> Manifest:
    """Read a bundle's manifest without looking at its other files.

    Raises:
        BundleError: it is missing, not JSON, breaks the schema or names another folder.
    """
    return _parse(folder, _read(folder / MANIFEST_NAME))


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle and verify the SHA-256 of every file that its manifest lists.

    Raises:
        BundleError: the manifest cannot be read, or a file is missing or not as published.
    """
    data = _read(folder / MANIFEST_NAME)
    manifest = _parse(folder, data)
    for relative, expected in manifest.files.items():
        path = folder / relative
        try:
            digest = sha256_file(path)
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror}, but the manifest lists it") from error
        if digest != expected:
            raise BundleError(
                f"{path}: not the file that was published (truncated or changed): SHA-256 "
                f"{digest[:12]}..., in the manifest {expected[:12]}...; restore it or publish again"
            )
    return Bundle(manifest, folder, hashlib.sha256(data).hexdigest()[:_DIGEST_LENGTH])


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write `manifest` into `folder` atomically: a reader sees the old or the new, whole."""
    target = folder / MANIFEST_NAME

    def write(path: Path) -> None:
        path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        path.chmod(0o644)  # whatever the umask: servers run as other users

    write_atomically(target, write)
    return target


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error


def _parse(folder: Path, data: bytes) -> Manifest:
    path = folder / MANIFEST_NAME
    try:
        manifest = Manifest.model_validate_json(decode_text(data))
    except TextError as error:
        raise BundleError(f"{path}: {error}") from error
    except ValidationError as error:
        others = error.error_count() - 1
        more = f" (and {others} more)" if others else ""
        raise BundleError(f"{path}: {first_error(error)}{more}") from error
    if manifest.name != folder.resolve().name:
        raise BundleError(
            f"{path}: names the model {manifest.name!r}, but its folder is "
            f"{folder.resolve().name!r}; the two must be equal"
        )
    return manifest
