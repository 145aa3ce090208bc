"""A PNG file that anybody may have made: read in bounded time and memory, whatever it holds.

The chunks are walked here. Pillow sees those that hold the pixels and no others, so that no
compressed text or profile is inflated, and it sees them when the size is known to be small.

Source: the PNG specification, third edition (W3C, 2025).
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.serving.encoding import PNG_KEYWORD

_MOST_BYTES, _MOST_CHUNKS, _MOST_PIXELS = 1 << 26, 10_000, 1 << 24
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
# Text, and hints that no common program shows an opaque image otherwise for.
_HARMLESS = {b"tEXt", b"zTXt", b"iTXt", b"tIME", b"pHYs", b"sRGB", b"bKGD", b"hIST", b"sPLT"}
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
# What Pillow raises of broken pixel data.
_BROKEN = (OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error, zlib.error)


class PngError(Exception):
    """No PNG file that can be read; the message is one line for people."""


@dataclass(frozen=True)
class PngFile:
    """The chunks of a file, checked; nothing is decompressed yet.

    Attributes:
        name: what messages call it.
        width, height, depth: in pixels, and bits of a sample.
        provenance: the texts under our keyword, each with the kind of its chunk.
        changing: kinds of chunks by which programs may show the image otherwise (a colour profile,
            a rotation, an animation), in the order of the alphabet.
    """

    name: str
    width: int
    height: int
    depth: int
    provenance: tuple[tuple[str, bytes], ...]
    changing: tuple[str, ...]
    _pixels: bytes

    def rgba(self) -> npt.NDArray[np.uint8]:
        """The pixels, uint8 [H, W, 4]; of 16 bits the upper 8. Raises PngError if broken."""
        try:
            with (
                warnings.catch_warnings(),
                Image.open(io.BytesIO(self._pixels), formats=["PNG"]) as image,
            ):
                warnings.simplefilter("ignore")
                return np.asarray(image.convert("RGBA"))
        except _BROKEN as error:
            raise PngError(f"{self.name}: its pixels cannot be read: {error}") from error


def read_png_file(path: Path) -> PngFile:
    """Read a file of at most 64 MiB; raises PngError."""
    try:
        with path.open("rb") as file:
            return parse_png(str(path), file.read(_MOST_BYTES + 1))
    except OSError as error:
        raise PngError(f"{path}: {error.strerror}") from error


def parse_png(name: str, data: bytes) -> PngFile:
    """Check the chunks of a file.

    Args:
        name: what messages call it.
        data: its bytes.

    Raises:
        PngError: it is no PNG file, is cut off or damaged, or is larger than any image here.
    """
    if not data.startswith(_SIGNATURE):
        raise PngError(f"{name}: not a PNG file (JPEG and WebP files do not say what drew them)")
    if len(data) > _MOST_BYTES:
        raise PngError(f"{name}: larger than {_MOST_BYTES >> 20} MiB, so not an image drawn here")
    chunks = _chunks(name, data)
    first, head = chunks[0]
    if first != b"IHDR" or len(head) != 13:
        raise PngError(f"{name}: a damaged PNG file: it does not begin with its size")
    width, height, depth = struct.unpack(">IIB", head[:9])
    if not 0 < width * height <= _MOST_PIXELS:
        raise PngError(f"{name}: {width}x{height} pixels, so not an image drawn here")
    kinds = [kind for kind, _ in chunks]
    if kinds.count(b"IHDR") > 1 or b"IDAT" not in kinds:
        raise PngError(f"{name}: a damaged PNG file: two sizes, or no pixels")
    keyword = PNG_KEYWORD + b"\0"
    return PngFile(
        name,
        width,
        height,
        depth,
        tuple(
            (kind.decode("ascii"), content[len(keyword) :])
            for kind, content in chunks
            if kind in _TEXTS and content.startswith(keyword)
        ),
        tuple(sorted(kind.decode("ascii") for kind in {*kinds} - _PIXELS - _HARMLESS)),
        _SIGNATURE + b"".join(_chunk(kind, part) for kind, part in chunks if kind in _PIXELS),
    )


def _chunks(name: str, data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and content of each chunk up to IEND; raises PngError."""
    chunks: list[tuple[bytes, bytes]] = []
    start = len(_SIGNATURE)
    while not chunks or chunks[-1][0] != b"IEND":
        if len(chunks) == _MOST_CHUNKS:
            raise PngError(f"{name}: more than {_MOST_CHUNKS} chunks, so not an image drawn here")
        length, kind = struct.unpack(">I4s", data[start : start + 8].ljust(8, b"\0"))
        end = start + 8 + length
        if end + 4 > len(data):
            raise PngError(f"{name}: a PNG file that is cut off after {len(data)} bytes")
        if not (kind.isalpha() and kind.isascii()):
            raise PngError(f"{name}: a damaged PNG file: no chunk begins at byte {start}")
        (checksum,) = struct.unpack(">I", data[end : end + 4])
        if zlib.crc32(data[start + 4 : end]) != checksum:
            kind_shown = kind.decode("ascii")
            raise PngError(f"{name}: a damaged PNG file: the checksum of {kind_shown} is wrong")
        chunks.append((kind, data[start + 8 : end]))
        start = end + 4
    return chunks


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))
