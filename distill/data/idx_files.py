"""Reading the idx files in which MNIST and Fashion-MNIST come."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from distill.errors import UserError


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Read one idx file: 0, 0, type 8 (uint8), rank, each dimension big-endian, then bytes.

    Args:
        folder: where it lies.
        name: of the file, which may also have the suffix .gz.

    Raises:
        UserError: it is missing, or not whole.
    """
    for path in (folder / f"{name}.gz", folder / name):
        if path.exists():
            break
    else:
        raise UserError(
            f"{folder} lacks {name}.gz: Debian's package dataset-fashion-mnist has all four files"
        )
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from None
    rank = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    header = 4 + 4 * rank
    shape = struct.unpack(f">{rank}I", raw[4:header]) if len(raw) >= header else ()
    if not shape or len(raw) - header != int(np.prod(shape)):
        raise UserError(f"{path} is not a whole idx file of bytes: fetch it again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()
