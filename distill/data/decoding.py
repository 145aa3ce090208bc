"""From an image file of any kind to the pixels of a training image: uint8, RGB, square.

Values of more than 8 bits are scaled, transparent pixels are put on a background, and of several
frames the first is taken; each is noted, for it changes what a person sees in other programs.
"""

import re

import numpy as np
from PIL import Image, ImageColor, ImageOps

from distill.data.notes import Notes
from distill.errors import UserError

PHOTOMETRIC = 262  # TIFF's tag that says what 0 means: 0 white, 1 black
# Pillow's words for samples of 16 bits that it stores in 8. ("BGR;16" is 16 bits a pixel.)
_DEEP_RAWMODE = re.compile(r"(LA?|RGB[AXa]?|CMYK);16.*")
# Grey PNGs of 2 and 4 bits are spread over 0..255 when they are read, their colour key is not.
_KEY_FACTOR = {"L;2": 85, "L;4": 17}


def parse_colour(name: str) -> tuple[int, int, int]:
    """Red, green and blue of a colour's name or code.

    Raises:
        UserError: there is no such colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError:
        raise UserError(
            f"--background {name!r} is no colour: say white, black, ... or '#rrggbb'"
        ) from None
    return red, green, blue


def decode(
    image: Image.Image, resolution: int, background: tuple[int, int, int], notes: Notes
) -> np.ndarray:
    """Turn an opened image into uint8 [resolution, resolution, 3].

    Args:
        image: as Pillow opened it, not loaded yet.
        resolution: the middle square is scaled to that many pixels a side.
        background: red, green, blue behind transparent pixels.
        notes: receives the size and what was done.

    Raises:
        ValueError: its values have no scale that is known; others as Pillow raises them.
    """
    form, rawmode = image.format or "", _rawmode(image)
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0
    if getattr(image, "is_animated", False) and form not in ("MPO", "PSD"):
        notes.treated["with several frames, of which the first is taken"] += 1
    upright = ImageOps.exif_transpose(image)
    notes.sizes[upright.size] += 1
    opaque = _colour_key(upright, rawmode)
    if upright.mode.startswith(("I", "F")):
        upright = _eight_bits(upright, form, rawmode)
        if white_is_zero:  # Pillow turns only TIFFs of 8 bits and fewer
            upright = ImageOps.invert(upright)
        notes.treated["of more than 8 bits, scaled to 8"] += 1
    elif _DEEP_RAWMODE.fullmatch(rawmode):
        notes.treated["of more than 8 bits, scaled to 8"] += 1
    return _square(_on_background(upright, opaque, background, notes), resolution)


def _rawmode(image: Image.Image) -> str:
    """How the samples lie in the file, in Pillow's words; empty where it does not say."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if arguments and isinstance(arguments[0], str):
            return arguments[0]
    return ""


def _colour_key(image: Image.Image, rawmode: str) -> Image.Image | None:
    """Where an image differs from the one colour that its file calls transparent, as a mask."""
    key = image.info.get("transparency")
    if key is None or image.mode not in ("1", "L", "RGB", "I", "I;16"):
        return None  # a palette's transparency is Pillow's business
    wanted = np.asarray(key)
    if image.mode == "1":
        wanted = wanted > 0  # Pillow says 1 or 255
    elif rawmode.startswith("RGB;16"):
        wanted = wanted >> 8
    differs = np.asarray(image) != wanted * _KEY_FACTOR.get(rawmode, 1)
    if differs.ndim == 3:
        differs = differs.any(axis=2)
    return Image.fromarray(differs.astype(np.uint8) * 255)


def _eight_bits(image: Image.Image, form: str, rawmode: str) -> Image.Image:
    """Scale grey values of 16 or 32 bits, or floats, to 8 bits.

    Sixteen bits keep the upper eight, as Pillow does it with colours. Wider values come without
    a scale: the smallest of the usual ones that holds them is taken.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and form in ("PNG", "PPM")):
        bits = 12 if rawmode == "I;12" else 16
        return Image.fromarray(
            (values.astype(np.int64) >> (bits - 8)).clip(0, 255).astype(np.uint8)
        )
    low, high = values.min(), values.max()
    if image.mode == "F" and high < 2:  # resampling takes bright edges a little above 1
        values, high = values.clip(max=1), 1
    scales = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    top = next((scale for scale in scales if high <= scale), None)
    if top is None or not low >= 0:
        raise ValueError(f"its values go from {low} to {high}: scale them to 0..255 or 0..65535")
    eight = values / 256 if top == 65535 else (values * (255 / top)).round()
    return Image.fromarray(eight.astype(np.uint8))


def _on_background(
    image: Image.Image,
    opaque: Image.Image | None,
    background: tuple[int, int, int],
    notes: Notes,
) -> Image.Image:
    """An image as RGB, its transparent pixels mixed with the background."""
    if opaque is None and not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # Pillow leads from here to LA only
        image = image.convert("LA")
    if opaque is None:
        layered = image.convert("RGBA")
    else:
        image.info.pop("transparency", None)  # it is in the mask, and here it may mislead
        layered = image.convert("RGBA")
        layered.putalpha(opaque)
    if layered.getchannel("A").getextrema() == (255, 255):
        return layered.convert("RGB")
    name = "white" if background == (255, 255, 255) else "#{:02x}{:02x}{:02x}".format(*background)
    notes.treated[f"with transparent pixels, put on {name}"] += 1
    behind = Image.new("RGBA", layered.size, background)
    return Image.alpha_composite(behind, layered).convert("RGB")


def _square(image: Image.Image, resolution: int) -> np.ndarray:
    """Crop the middle square and scale it to uint8 [resolution, resolution, 3]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box))
