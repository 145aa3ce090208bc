"""Pixels as people see them: wide values scaled, transparent pixels on a background."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from distill.data.datasets import load_dataset
from distill.errors import UserError

RAMP = np.linspace(0, 65535, 64).reshape(8, 8)
UPPER = RAMP.astype(np.uint16) >> 8


def read(folder, **options):
    """The one image below a folder, int64 [8, 8] if grey, else [3, 8, 8]; and what was said."""
    dataset = load_dataset(folder, resolution=8, **options)
    return dataset.images[0].squeeze(0).long().numpy(), dataset.summary


def write_png(path, bits, colour_type, rows, transparent=None):
    """A PNG that Pillow cannot write: rows of packed samples, with a colour that is transparent."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 8, 8, bits, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + (
            b""
            if transparent is None
            else chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
        )
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (RAMP.astype(np.uint16), ".png"),
        (RAMP.astype(np.uint16), ".tif"),
        (RAMP.astype(">u2"), ".tif"),
        (RAMP.astype(np.uint16), ".pgm"),
        (RAMP.astype(np.int32), ".tif"),
        ((RAMP / 257).astype(np.int32), ".tif"),
        (RAMP.astype(np.float32), ".tif"),
        ((RAMP / 257).astype(np.float32), ".tif"),
        ((RAMP / 65535).astype(np.float32), ".tif"),
        ((RAMP / 65535).astype(np.float32), ".pfm"),
        (np.where(RAMP > 65000, 1.01, RAMP / 65535).astype(np.float32), ".tif"),
    ],
)
def test_wide_grey_values_are_scaled(tmp_path, values, suffix):
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    pixels, said = read(tmp_path)
    assert np.abs(pixels - UPPER).max() <= 2
    assert "1 of more than 8 bits, scaled to 8" in said


def test_sixteen_bits_of_colour_and_alpha_are_scaled(tmp_path):
    colour = struct.pack(">6H", 2560, 5120, 7680, 256, 512, 768) * 4
    write_png(tmp_path / "a.png", 16, 2, [colour] * 8)
    pixels, said = read(tmp_path)
    assert pixels[:, 0, :2].tolist() == [[10, 1], [20, 2], [30, 3]]
    assert "scaled to 8" in said
    write_png(tmp_path / "a.png", 16, 4, [struct.pack(">4H", 2560, 65535, 256, 0) * 4] * 8)
    assert read(tmp_path)[0][0, :2].tolist() == [10, 255]


def test_a_tiff_whose_zero_is_white_is_no_negative(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert np.abs(read(tmp_path)[0] - (255 - UPPER)).max() <= 1


@pytest.mark.parametrize("values", [RAMP - 70_000, RAMP * 2, RAMP * np.nan])
def test_values_without_a_known_scale_are_refused(tmp_path, values):
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif is not .*its values go from .* scale them to"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("mode", "value", "rgb"),
    [
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
    ],
)
def test_other_colour_spaces_become_rgb(tmp_path, mode, value, rgb):
    Image.new(mode, (8, 8), value).save(tmp_path / "a.tif")
    pixels, said = read(tmp_path)
    assert np.broadcast_to(pixels, (3, 8, 8))[:, 4, 4] == pytest.approx(rgb, abs=1)
    assert "bits" not in said


HIDDEN_RED = Image.new("RGBA", (8, 8), (255, 0, 0, 0))


@pytest.mark.parametrize(
    ("suffix", "image", "options"),
    [
        (".png", HIDDEN_RED, {}),
        (".png", Image.new("LA", (8, 8), (7, 0)), {}),
        (".png", HIDDEN_RED.quantize(), {}),
        (".png", Image.new("P", (8, 8), 0), {"transparency": 0}),
        (".png", Image.new("L", (8, 8), 7), {"transparency": 7}),
        (".png", Image.new("RGB", (8, 8), (7, 8, 9)), {"transparency": (7, 8, 9)}),
        (".gif", HIDDEN_RED, {}),
        (".webp", HIDDEN_RED, {"lossless": True, "exact": True}),
        (".tif", HIDDEN_RED, {}),
        (".tga", HIDDEN_RED, {}),
        (".ico", HIDDEN_RED, {}),
        (".jp2", HIDDEN_RED, {}),
    ],
)
@pytest.mark.parametrize(
    ("background", "seen"), [(None, (255, 255, 255)), ("#102030", (16, 32, 48))]
)
def test_transparent_pixels_show_the_background(tmp_path, suffix, image, options, background, seen):
    image.save(tmp_path / f"a{suffix}", **options)
    pixels, said = read(tmp_path, **({"background": background} if background else {}))
    assert np.broadcast_to(pixels, (3, 8, 8))[:, 4, 4].tolist() == list(seen)
    assert f"1 with transparent pixels, put on {background or 'white'}" in said


@pytest.mark.parametrize(
    ("bits", "row", "key", "seen"),
    [
        (1, bytes([0b01010101]), 0, [99, 255]),
        (1, bytes([0b01010101]), 1, [0, 99]),
        (2, bytes([0b00011011] * 2), 1, [0, 99, 170, 255]),
        (4, bytes([0x05, 0x1F] * 2), 5, [0, 99, 17, 255]),
        (8, bytes([0, 5, 1, 255] * 2), 5, [0, 99, 1, 255]),
        (16, struct.pack(">4H", 0, 1280, 1281, 65535) * 2, 1280, [0, 99, 5, 255]),
    ],
)
def test_a_colour_key_is_met_at_every_depth(tmp_path, bits, row, key, seen):
    write_png(tmp_path / "a.png", bits, 0, [row] * 8, [key])
    assert read(tmp_path, background="rgb(99,99,99)")[0][0, : len(seen)].tolist() == seen


def test_a_colour_key_of_sixteen_bits_is_met(tmp_path):
    row = struct.pack(">6H", 2560, 5120, 7680, 256, 512, 768) * 4
    write_png(tmp_path / "a.png", 16, 2, [row] * 8, [256, 512, 768])
    assert read(tmp_path)[0][:, 0, :2].tolist() == [[10, 255], [20, 255], [30, 255]]


def test_half_transparent_pixels_are_mixed_and_opaque_ones_not_spoken_of(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert read(tmp_path)[0][4, 4] == 127
    Image.new("RGBA", (8, 8), (0, 0, 0, 255)).save(tmp_path / "a.png")
    pixels, said = read(tmp_path)
    assert pixels[4, 4] == 0
    assert "put on" not in said


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(tmp_path, suffix):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    red.save(tmp_path / f"a{suffix}", save_all=True, append_images=[blue])
    pixels, said = read(tmp_path)
    assert pixels[:, 4, 4] == pytest.approx([255, 0, 0], abs=2)
    assert "1 with several frames, of which the first is taken" in said


def test_a_turned_photo_stands_upright_at_sixteen_bits_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / "a.png", exif=exif)
    assert np.abs(read(tmp_path)[0] - np.rot90(UPPER, -1)).max() <= 1


def test_a_background_that_is_no_colour_is_refused(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"--background 'whit' is no colour: say white, .*#rrggbb"):
        read(tmp_path, background="whit")
