"""Keys and signed bundles for tests; a module that needs them is skipped without cryptography."""

import json
from pathlib import Path

import pytest

from service.bundle import Manifest, sha256_file, write_manifest, write_signature

pytest.importorskip("cryptography")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY, OTHER = (Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2))


def public_pem(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def private_pem(key: Ed25519PrivateKey, passphrase: bytes | None = None) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def sign_bundle(folder: Path, key: Ed25519PrivateKey = KEY, **changed: object) -> Path:
    """Sign a bundle as `publish` does: with Triton's configuration in the manifest."""
    metadata = json.loads((folder / "manifest.json").read_text()) | changed
    metadata["files"]["config.pbtxt"] = sha256_file(folder / "config.pbtxt")
    write_manifest(folder, Manifest(**metadata))
    write_signature(folder, key)
    return folder
