"""The client by itself as a wheel, `sid_client`: what a server offers, and what pip builds here.

There is one copy of the client's code, in this folder. Within the server it is called
service.client, and to programs, which have no server, `sid_client`: for that reason its modules
import each other relatively. This module makes the wheel of them, for `GET /client`
(service/http/routes/client.py) and as the build backend of `pip wheel ./service/client`, so that
both give the same bytes. It imports nothing but the standard library, for pip runs it alone, and is
itself no part of the wheel.

Sources: PyPA's "Binary distribution format" (the wheel's files), PEP 517 (`build_wheel`).
"""

import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

VERSION = "0.1.0"
"""That of the server beside it (pyproject.toml)."""
NAME = f"sid_client-{VERSION}-py3-none-any.whl"
"""The file's name, which pip reads name and version from."""

_HERE = Path(__file__)
_METADATA = f"""\
Metadata-Version: 2.4
Name: sid-client
Version: {VERSION}
Summary: A client of SiD Serve: images in a few milliseconds, over HTTP.
License-Expression: Apache-2.0
Requires-Python: >=3.11
Requires-Dist: httpx>=0.27
"""
_WHEEL = """\
Wheel-Version: 1.0
Generator: SiD Serve
Root-Is-Purelib: true
Tag: py3-none-any
"""


def content() -> bytes:
    """The wheel; the same sources give the same bytes. Raises OSError where they are not there."""
    sources = sorted(path for path in _HERE.parent.glob("*.py") if path.name != _HERE.name)
    files = {f"sid_client/{path.name}": path.read_bytes() for path in sources}
    files["sid_client/py.typed"] = b""  # its annotations are for its users' type checkers
    info = f"sid_client-{VERSION}.dist-info"
    files[f"{info}/METADATA"] = _METADATA.encode()
    files[f"{info}/WHEEL"] = _WHEEL.encode()
    record = [f"{name},sha256={_digest(file)},{len(file)}\n" for name, file in files.items()]
    files[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored: another zlib would give other bytes
        for name, file in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980, whenever it is made
            entry.create_system = 3  # Unix, wherever it is made, for the mode that follows
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, file)
    return buffer.getvalue()


def build_wheel(
    wheel_directory: str,
    config_settings: object = None,  # noqa: ARG001
    metadata_directory: str | None = None,  # noqa: ARG001
) -> str:
    """Write the wheel into a folder and return its name, as pip asks for it (PEP 517)."""
    (Path(wheel_directory) / NAME).write_bytes(content())
    return NAME


def _digest(file: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(file).digest()).rstrip(b"=").decode()
