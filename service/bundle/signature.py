"""Signatures of bundles: Ed25519 over the bytes of the manifest, which holds all other digests.

A signature lies beside the manifest, in a file of one line: `ed25519`, the public key (32 bytes)
and the signature (64 bytes) in lower-case hexadecimal. The key in it only tells a wrong key from a
changed manifest: trusted are those that the reader was given.

Sources: RFC 8032 (Ed25519), RFC 8410 (its keys in PEM files, as `openssl genpkey` makes them).
"""

import hashlib
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from service.bundle.text import TextError, decode_text
from service.extras import how_to_install

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_NAME: Final = "manifest.sig"
_LINE = re.compile(rb"ed25519 ([0-9a-f]{64}) ([0-9a-f]{128})\n")
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_DER_HEAD = bytes.fromhex("302a300506032b6570032100")  # of every Ed25519 public key (RFC 8410)
_FINGERPRINT_LENGTH = 32


class SignatureError(Exception):
    """A signature that does not hold; the message says why, not of which bundle."""


class KeyFileError(Exception):
    """A file that holds no such key, or a key that cannot be used here; the message is one line."""


def fingerprint(public_key: bytes) -> str:
    """The name of a key, given as its 32 bytes: the first 32 digits of its SHA-256 in DER.

    `openssl pkey -pubin -in FILE -outform DER | sha256sum` says the same.
    """
    return hashlib.sha256(_DER_HEAD + public_key).hexdigest()[:_FINGERPRINT_LENGTH]


def load_trusted_keys(path: Path) -> frozenset[bytes]:
    """The public keys, 32 bytes each, of a PEM file or of all files of a folder but hidden ones.

    Raises:
        KeyFileError: there is none, or a file holds something else.
    """
    try:
        files = (
            sorted(one for one in path.iterdir() if not one.name.startswith("."))
            if path.is_dir()
            else [path]
        )
        keys = [key for file in files for key in _public_keys(file)]
    except OSError as error:
        raise KeyFileError(f"{error.filename or path}: {error.strerror}") from error
    if not keys:
        raise KeyFileError(f"{path}: holds no key, so no bundle could be served")
    return frozenset(keys)


def load_private_key(path: Path) -> "Ed25519PrivateKey":
    """The private key of a PEM file, as `openssl genpkey -algorithm ed25519` writes it.

    Raises:
        KeyFileError: the file cannot be read, or holds no such key, or one under a passphrase.
    """
    serialization, ed25519 = _library()
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    except TypeError:  # as cryptography says that it is encrypted
        raise KeyFileError(
            f"{path}: the key is encrypted; openssl pkey -in {path.name} -out PLAIN takes the "
            "passphrase off"
        ) from None
    except Exception as error:  # ValueError and UnsupportedAlgorithm, and what ASN.1 may raise
        raise KeyFileError(
            f"{path}: not a private key in PEM form; openssl genpkey -algorithm ed25519 makes one"
        ) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise KeyFileError(f"{path}: not an Ed25519 key, but {_kind(key)}")
    return cast("Ed25519PrivateKey", key)


def sign(manifest: bytes, key: "Ed25519PrivateKey") -> bytes:
    """The content of the signature file for a manifest."""
    public = key.public_key().public_bytes_raw()
    return f"ed25519 {public.hex()} {key.sign(manifest).hex()}\n".encode("ascii")


def check_signature(manifest: bytes, signature: bytes, trusted: Collection[bytes] | None) -> str:
    """Return the fingerprint of the key that signed a manifest.

    Args:
        manifest: its bytes.
        signature: the content of the signature file.
        trusted: the public keys that are believed; None: any.

    Raises:
        SignatureError: the file is no signature, its key is not trusted, or the manifest is not
            what was signed.
        KeyFileError: what checks signatures is not installed.
    """
    match = _LINE.fullmatch(signature)
    if match is None:
        raise SignatureError("not a signature (it is cut off or changed): publish the model again")
    public = bytes.fromhex(match[1].decode("ascii"))
    if trusted is not None and public not in trusted:
        known = ", ".join(sorted(map(fingerprint, trusted)))
        raise SignatureError(
            f"signed by the key {fingerprint(public)}, which is none of SID_TRUSTED_KEYS ({known})"
        )
    _, ed25519 = _library()
    from cryptography.exceptions import InvalidSignature

    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(public)
        key.verify(bytes.fromhex(match[2].decode("ascii")), manifest)
    except (InvalidSignature, ValueError):
        raise SignatureError(
            f"the manifest is not the one that the key {fingerprint(public)} signed: it was changed"
        ) from None
    return fingerprint(public)


def _public_keys(file: Path) -> list[bytes]:
    """All public keys of a PEM file; raises OSError or KeyFileError."""
    serialization, ed25519 = _library()
    try:
        text = decode_text(file.read_bytes())
    except TextError as error:
        raise KeyFileError(f"{file}: {error}") from error
    keys = []
    blocks = list(_PEM.finditer(text))
    for block in blocks:
        if "PRIVATE" in block[1]:
            raise KeyFileError(
                f"{file}: a private key, which belongs to the publisher alone; openssl pkey "
                f"-in {file.name} -pubout makes the public one"
            )
        try:
            key = serialization.load_pem_public_key(block[0].encode("ascii"))
        except Exception as error:  # as above
            raise KeyFileError(f"{file}: not a public key in PEM form") from error
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise KeyFileError(f"{file}: not an Ed25519 key, but {_kind(key)}")
        keys.append(key.public_bytes_raw())
    if not blocks or text.count("-----BEGIN") > len(blocks):
        raise KeyFileError(f"{file}: not a public key in PEM form, or one that is cut off")
    return keys


def _kind(key: Any) -> str:
    return type(key).__name__.lstrip("_").removesuffix("PrivateKey").removesuffix("PublicKey")


def _library() -> tuple[Any, Any]:
    """The modules `serialization` and `ed25519` of cryptography; raises KeyFileError."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise KeyFileError(
            f"signatures need the package cryptography: {how_to_install('signing')}"
        ) from error
    return serialization, ed25519
