"""Fetch bundles into a folder, each an archive of known SHA-256; run by an init container.

    python fetch_bundles.py BUNDLES.json FOLDER

BUNDLES.json is a list of {"name", "url", "sha256"}: a .tar.gz that holds the folder `name`, or what
belongs in it. Nothing that is not as stated reaches FOLDER/name: the archive's digest is compared
before it is unpacked, and its manifest's digests of all files afterwards. A pod whose init
container fails does not start, and is tried again by Kubernetes.
"""

import hashlib
import json
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

from service.bundle import MANIFEST_NAME, BundleError, load_bundle

_TIMEOUT_SECONDS = 60  # without a byte
_CHUNK = 1 << 20


class FetchError(Exception):
    """A bundle that cannot be had, or is not the one that was asked for; the message says why."""


def fetch(name: str, url: str, sha256: str, folder: Path) -> str:
    """Fetch one bundle to folder/name, and return its tag.

    What an earlier try has left there is replaced.

    Raises:
        FetchError: it cannot be fetched or unpacked, or has another digest.
        BundleError: it is unpacked, and no bundle or not a whole one.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
        archive, unpacked = Path(scratch, "archive"), Path(scratch, "unpacked")
        found = _download(url, archive)
        if found != sha256:
            raise FetchError(f"{name}: {url} has the SHA-256 {found}, and {sha256} is asked for")
        try:
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(unpacked, filter="data")  # nothing outside of it, no devices
        except (tarfile.TarError, OSError, EOFError) as error:
            raise FetchError(f"{name}: {url} cannot be unpacked: {error}") from error
        bundle = unpacked / name
        if (unpacked / MANIFEST_NAME).exists():
            bundle = unpacked.rename(Path(scratch, name))
        tag = load_bundle(bundle).tag
        target = folder / name
        if target.exists():
            shutil.rmtree(target)
        bundle.rename(target)
    return tag


def _download(url: str, file: Path) -> str:
    """Write what is at a URL into a file; returns its SHA-256."""
    digest = hashlib.sha256()
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer,
            file.open("wb") as out,
        ):
            while chunk := answer.read(_CHUNK):
                digest.update(chunk)
                out.write(chunk)
    except (OSError, HTTPException) as error:  # URLError is an OSError
        raise FetchError(f"{url}: {error}") from error
    return digest.hexdigest()


def main(bundles: str, folder: str) -> None:
    """Fetch all that a file names."""
    for bundle in json.loads(Path(bundles).read_text(encoding="utf-8")):
        print(fetch(**bundle, folder=Path(folder)), flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (FetchError, BundleError) as error:
        sys.exit(f"error: {error}")
