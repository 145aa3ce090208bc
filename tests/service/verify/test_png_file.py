"""A PNG file that anybody may have made is read in bounded memory, or refused in one line."""

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.serving.encoding import encode_png
from service.verify.png_file import PngError, parse_png, read_png_file
from tests.service.verify.png_chunks import SIGNATURE, chunk, head, png

TEXT = b'{"model":"tiny"}'
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
FILE = encode_png(IMAGE, TEXT)
MIB = 1 << 20


def refused(data: bytes) -> str:
    with pytest.raises(PngError) as error:
        parse_png("x.png", data).rgba()
    message = str(error.value)
    assert message.startswith("x.png: ")
    assert "\n" not in message
    return message


def test_it_has_the_text_and_the_pixels():
    file = parse_png("x.png", FILE)
    assert file.provenance == (("tEXt", TEXT),)
    assert (file.width, file.height, file.depth, file.changing) == (6, 8, 8, ())
    assert np.array_equal(file.rgba()[:, :, :3], IMAGE)
    assert file.rgba()[:, :, 3].min() == 255


@given(st.integers(0, len(FILE) - 1))
def test_a_file_that_is_cut_off_is_refused(length):
    refused(FILE[:length])


@given(st.integers(0, 8 * len(FILE) - 1))
def test_a_file_with_any_bit_flipped_is_refused(bit):
    flipped = bytearray(FILE)
    flipped[bit // 8] ^= 1 << bit % 8
    refused(bytes(flipped))


@given(st.binary(max_size=200))
def test_whatever_follows_the_signature_is_one_line(rest):
    refused(SIGNATURE + rest)


@given(st.binary(max_size=300), st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([0, 2, 3, 4, 6]))
def test_whatever_the_pixels_are_made_of_they_are_read_or_refused_in_one_line(data, depth, colour):
    whole = zlib.compress(data)
    for rows in (data, whole, whole[:-3]):
        parts = (head(5, 3, depth, colour), chunk(b"PLTE", data[:9]), chunk(b"tRNS", data[:4]))
        pixels = chunk(b"IDAT", rows) + chunk(b"IEND")
        file = parse_png("x.png", SIGNATURE + b"".join(parts) + pixels)
        with contextlib.suppress(PngError):
            assert file.rgba().shape == (3, 5, 4)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a PNG file"),
        (b"\xff\xd8\xff\xe0JFIF", "not a PNG file (JPEG and WebP files do not say"),
        (png(size=(1 << 30, 1 << 30), rows=b""), "1073741824x1073741824 pixels"),
        (png(size=(0, 4), rows=b""), "0x4 pixels"),
        (png(*[chunk(b"tEXt")] * 10_001), "more than 10000 chunks"),
        (png(head(4, 4)), "two sizes"),
        (SIGNATURE + head(4, 4) + chunk(b"IEND"), "no pixels"),
        (SIGNATURE + chunk(b"IDAT") + chunk(b"IEND"), "does not begin with its size"),
        (SIGNATURE + struct.pack(">I", 2**31) + b"IHDR", "cut off after 16 bytes"),
        (png(chunk(b"a\x1b[m")), "no chunk begins at byte 33"),
        (png(rows=b"no zlib"), "its pixels cannot be read"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_file_is_one_line(data, says):
    assert says in refused(data)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_what_is_compressed_beside_the_pixels_is_never_inflated(kind):
    bomb = zlib.compress(bytes(64 * MIB))
    method = b"\0\1\0\0\0" if kind == b"iTXt" else b"\0\0"
    data = png(chunk(kind, b"Comment" + method + bomb), chunk(kind, b"sid-provenance\0" + bomb))
    tracemalloc.start()
    file = parse_png("x.png", data)
    assert file.rgba().shape == (4, 4, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MIB
    assert [one for one, _ in file.provenance] == [kind.decode()] * (kind != b"iCCP")


def test_pixels_that_inflate_without_end_take_the_image_s_size_only():
    data = png(rows=zlib.compress(bytes(64 * MIB)))
    tracemalloc.start()
    file = parse_png("x.png", data)
    assert file.rgba().shape == (4, 4, 4)
    assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    tracemalloc.stop()


def test_what_changes_how_an_image_is_shown_is_named():
    data = png(
        chunk(b"iCCP", b"x\0\0"), chunk(b"tEXt", b"Author\0me"), chunk(b"acTL"), chunk(b"pHYs")
    )
    assert parse_png("x.png", data).changing == ("acTL", "iCCP")


def test_a_file_that_another_program_saved_is_read(tmp_path):
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        Image.fromarray(IMAGE).convert(mode).save(tmp_path / "x.png")
        expected = np.asarray(Image.fromarray(IMAGE).convert(mode).convert("RGBA"))
        assert np.array_equal(read_png_file(tmp_path / "x.png").rgba(), expected)
    sixteen = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(sixteen, "PNG")
    assert parse_png("x.png", sixteen.getvalue()).depth == 16


def test_a_file_that_is_not_there_or_no_file_is_one_line(tmp_path):
    for path, says in ((tmp_path / "no.png", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(PngError, match=says):
            read_png_file(path)
