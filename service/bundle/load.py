"""Reading and writing bundles: nothing is served before every byte of it is verified."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from service.bundle.files import sha256_file, write_atomically
from service.bundle.graphs import Tolerance
from service.bundle.manifest import MANIFEST_NAME, Manifest
from service.bundle.signature import (
    SIGNATURE_NAME,
    KeyFileError,
    SignatureError,
    check_signature,
    fingerprint,
    sign,
)
from service.bundle.text import TextError, decode_text
from service.bundle.triton import CONFIG_NAME
from service.bundle.validation import first_error

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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
        signed_by: fingerprint of the trusted key that signed the manifest; None: not asked for.
    """

    manifest: Manifest
    folder: Path
    digest: str
    signed_by: str | None = None

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


def load_bundle(folder: Path, trusted: Collection[bytes] | None = None) -> Bundle:
    """Read a bundle and verify the SHA-256 of every file that its manifest lists.

    Args:
        folder: the bundle's.
        trusted: public keys, one of which has to have signed the manifest, and with its digests
            all that is served (see `signature.load_trusted_keys`); None: it need not be signed.

    Raises:
        BundleError: the manifest cannot be read or is not signed as it has to be, or a file is
            missing or not as published.
    """
    data = _read(folder / MANIFEST_NAME)
    signed_by = None if trusted is None else _signed_by(folder, data, trusted)
    manifest = _parse(folder, data)
    if signed_by and CONFIG_NAME not in manifest.files and (folder / CONFIG_NAME).exists():
        raise BundleError(
            f"{folder / CONFIG_NAME}: the manifest does not list it, so its signature does not "
            "cover it: publish the model again"
        )
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
    return Bundle(manifest, folder, hashlib.sha256(data).hexdigest()[:_DIGEST_LENGTH], signed_by)


def _signed_by(folder: Path, manifest: bytes, trusted: Collection[bytes]) -> str:
    """Return the fingerprint of the trusted key that signed a manifest's bytes.

    Raises:
        BundleError: it is not signed, or not by such a key, or was changed since.
    """
    path = folder / SIGNATURE_NAME
    try:
        return check_signature(manifest, path.read_bytes(), trusted)
    except FileNotFoundError:
        raise BundleError(
            f"{folder}: not signed, and SID_TRUSTED_KEYS asks for it: there is no {SIGNATURE_NAME} "
            "(sid-distill publish --sign KEY writes one)"
        ) from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    except (SignatureError, KeyFileError) as error:
        raise BundleError(f"{path}: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write `manifest` into `folder` atomically: a reader sees the old or the new, whole."""
    target = folder / MANIFEST_NAME

    def write(path: Path) -> None:
        path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        path.chmod(0o644)  # whatever the umask: servers run as other users

    write_atomically(target, write)
    return target


def write_signature(folder: Path, key: "Ed25519PrivateKey") -> Path:
    """Sign the manifest in `folder`: write its signature beside it, atomically."""
    target, signature = folder / SIGNATURE_NAME, sign(_read(folder / MANIFEST_NAME), key)

    def write(path: Path) -> None:
        path.write_bytes(signature)
        path.chmod(0o644)  # as the manifest

    write_atomically(target, write)
    return target


def describe_signature(folder: Path, trusted: Collection[bytes] | None) -> str:
    """Who signed a bundle, in a word or two for a table; `trusted` as for `load_bundle`."""
    path = folder / SIGNATURE_NAME
    if not path.exists():
        return "-"
    try:
        name = check_signature(_read(folder / MANIFEST_NAME), _read(path), None)
    except SignatureError:
        return "broken"
    except KeyFileError:
        return "not checked"
    is_trusted = trusted is None or name in map(fingerprint, trusted)
    return name if is_trusted else f"{name}, not trusted"


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
