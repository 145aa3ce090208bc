"""Pixels to files. The same pixels always give the same bytes."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

PNG = "image/png"
JSON = "application/json"


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode uint8 [H, W, C] pixels, C being 1 (grey) or 3 (RGB), as a PNG file."""
    buffer = io.BytesIO()
    squeezed = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    Image.fromarray(squeezed).save(buffer, format="PNG")
    return buffer.getvalue()
