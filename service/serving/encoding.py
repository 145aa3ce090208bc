"""Pixels to files. The same pixels always give the same bytes.

`encode` makes one image's file, `npy` and `zip_archive` hold several images. PNG, lossless
WebP and NPY hold the exact pixels; JPEG does not.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image, features

from service.bundle import add_to_zip

PNG: Final = "image/png"
WEBP: Final = "image/webp"
JPEG: Final = "image/jpeg"
NPY: Final = "application/x-npy"
ZIP: Final = "application/zip"
JSON: Final = "application/json"
PIXELS: Final = "pixels"
"""No file: what to ask for where the pixels themselves are wanted. Not a media type."""

ENCODER: Final = (
    f"2, zlib {zlib.ZLIB_RUNTIME_VERSION}, Pillow {PIL.__version__}, "
    f"libwebp {features.version('webp')}, libjpeg-turbo {features.version('libjpeg_turbo')}"
)
"""What fixes the bytes beside the pixels; the number rises with each change here that changes
them."""

Pixels = npt.NDArray[np.uint8]

# Bytes of pixels up to which a JPEG file surely fits into Pillow's buffer, 64 KiB. With optimised
# tables it has to: Pillow fails on larger files, such as noise of 512x512 pixels makes.
_JPEG_OPTIMISED_UP_TO = 32_768
# Deflate is nearly all of the time of a PNG file: without it 28x28 grey takes 5 us and not 42,
# 64x64 RGB 14 and not 220, for a tenth to a third more bytes. Below this size those arrive no
# later: a TCP connection sends its first ten segments, 14 kB, without waiting.
_PNG_STORED_BELOW = 14_000
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_FILTER_NONE, _PNG_FILTER_UP = 0, 2
_PNG_COLOUR_TYPES = {1: 0, 3: 2}  # by channels: grey, RGB
PNG_KEYWORD: Final = b"sid-provenance"
"""Of the text chunk that says what drew the image (see `provenance`)."""


def encode(pixels: Pixels, media_type: str, provenance: bytes = b"") -> bytes:
    """Encode one image.

    - PNG: exact. Made for speed, above all that of small images: up to 14 kB their pixels are
      stored and not deflated.
    - WEBP: exact (lossless), and usually the smallest of the exact forms. Grey becomes RGB, as
      WebP has no grey.
    - JPEG: quality 95, colour at full resolution.
    - NPY: the array itself.

    Args:
        pixels: uint8 [H, W, C], C being 1 (grey) or 3 (RGB).
        media_type: PNG, WEBP, JPEG or NPY.
        provenance: what a PNG file says of itself (see `provenance.text_of`); the other forms
            say nothing.
    """
    if media_type == PNG:
        return encode_png(pixels, provenance)
    return _ENCODERS[media_type](pixels)


def encode_png(pixels: Pixels, provenance: bytes = b"") -> bytes:
    """Encode uint8 [H, W, C] pixels, C being 1 (grey) or 3 (RGB), as a PNG file.

    `provenance`, if any, is the Latin-1 text of a tEXt chunk before the pixels.
    """
    height, width, channels = pixels.shape
    lines = pixels.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    if filtered.size < _PNG_STORED_BELOW:
        filtered[:, 0] = _PNG_FILTER_NONE
        filtered[:, 1:] = lines
        data = zlib.compress(filtered.data, 0)
    else:
        filtered[:, 0] = _PNG_FILTER_UP
        filtered[0, 1:] = lines[0]
        np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
        data = zlib.compress(filtered.data, 1)
    text = _png_chunk(b"tEXt", PNG_KEYWORD + b"\0" + provenance) if provenance else b""
    return _png_head(height, width, channels) + text + _png_chunk(b"IDAT", data) + _PNG_END


def npy(images: Pixels) -> bytes:
    """Encode an array, such as uint8 [N, H, W, C] images, as a .npy file (numpy.load)."""
    buffer = io.BytesIO()
    # Contiguous: the header says the memory order, and the same pixels must give the same bytes.
    np.save(buffer, np.ascontiguousarray(images), allow_pickle=False)
    return buffer.getvalue()


def zip_archive(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Put (name, content) files into a .zip archive, as `add_to_zip` does; names must differ."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            add_to_zip(archive, name, content)
    return buffer.getvalue()


def _encode_webp(pixels: Pixels) -> bytes:
    # Least effort: more of it takes up to thirty times as long and saves a sixth at most.
    return _encode_with_pillow(pixels, "WEBP", lossless=True, method=0, quality=0)


def _encode_jpeg(pixels: Pixels) -> bytes:
    # Colour at half resolution, the default, is visible in small images. Optimised Huffman
    # tables take a tenth to a fifth off the bytes of small images for 10 to 80 us.
    small = pixels.size <= _JPEG_OPTIMISED_UP_TO
    return _encode_with_pillow(pixels, "JPEG", quality=95, subsampling=0, optimize=small)


def _encode_with_pillow(pixels: Pixels, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.save(buffer, form, **options)
    return buffer.getvalue()


_ENCODERS: dict[str, Callable[[Pixels], bytes]] = {
    WEBP: _encode_webp,
    JPEG: _encode_jpeg,
    NPY: npy,
}


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


@lru_cache(maxsize=64)
def _png_head(height: int, width: int, channels: int) -> bytes:
    depth, deflate, adaptive, not_interlaced = 8, 0, 0, 0
    colour = _PNG_COLOUR_TYPES[channels]
    header = (width, height, depth, colour, deflate, adaptive, not_interlaced)
    return _PNG_SIGNATURE + _png_chunk(b"IHDR", struct.pack(">IIBBBBB", *header))


_PNG_END = _png_chunk(b"IEND", b"")
