"""Pixels to files: each form holds what it says, and the same pixels give the same bytes."""

import ast
import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.serving.encoding import (
    ENCODER,
    JPEG,
    NPY,
    PNG,
    WEBP,
    encode,
    encode_png,
    npy,
    zip_archive,
)

# Both kinds of our PNG files: stored below 14 kB, deflated above.
SHAPES = [
    (1, 1, 1),
    (1, 7, 3),
    (28, 28, 1),
    (32, 32, 3),
    (64, 64, 3),
    (139, 100, 1),
    (96, 80, 3),
    (200, 301, 3),
]


def noise(shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def smooth(shape):
    """Slopes in every direction, as images have them."""
    axes = np.meshgrid(*(np.linspace(0, 1, size) for size in shape), indexing="ij")
    return np.round(sum(axes) / len(axes) * 255).astype(np.uint8)


def images():
    return [image for shape in SHAPES for image in (noise(shape), smooth(shape))]


def open_with_pillow(file):
    image = Image.open(io.BytesIO(file))
    image.load()
    pixels = np.asarray(image)
    return image, pixels if pixels.ndim == 3 else pixels[:, :, None]


def read_png(file):
    """A PNG reader written from the specification, for 8-bit grey and RGB."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, rest = [], file[8:]
    while rest:
        (length,) = struct.unpack(">I", rest[:4])
        body, (crc,) = rest[4 : 8 + length], struct.unpack(">I", rest[8 + length : 12 + length])
        assert zlib.crc32(body) == crc
        chunks.append((body[:4], body[4:]))
        rest = rest[12 + length :]
    texts = [content for kind, content in chunks if kind == b"tEXt"]
    chunks = [one for one in chunks if one[0] != b"tEXt"]
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks[2][1] == b""
    width, height, depth, colour, *methods = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, methods) == (8, [0, 0, 0])
    stride = width * {0: 1, 2: 3}[colour]
    data = np.frombuffer(zlib.decompress(chunks[1][1]), np.uint8).reshape(height, 1 + stride)
    pixels, above = np.empty((height, stride), np.uint8), np.zeros(stride, np.uint8)
    for row, line in enumerate(data):
        assert line[0] in (0, 2)  # no filter, or the difference to the row above
        above = pixels[row] = line[1:] + above if line[0] == 2 else line[1:]
    return pixels.reshape(height, width, -1), texts


@pytest.mark.parametrize("pixels", images(), ids=lambda pixels: "x".join(map(str, pixels.shape)))
def test_a_png_holds_the_exact_pixels_for_two_readers(pixels):
    file = encode(pixels, PNG)
    image, seen = open_with_pillow(file)
    assert (image.format, image.mode) == ("PNG", "L" if pixels.shape[2] == 1 else "RGB")
    assert np.array_equal(seen, pixels)
    assert np.array_equal(read_png(file)[0], pixels)
    assert encode_png(pixels) == file


@pytest.mark.parametrize("pixels", images()[::5], ids=lambda pixels: str(pixels.shape))
def test_a_text_in_a_png_leaves_its_pixels_alone(pixels):
    file = encode(pixels, PNG, b'{"seed":7}')
    image, seen = open_with_pillow(file)
    assert image.text == {"sid-provenance": '{"seed":7}'}
    assert np.array_equal(seen, pixels)
    again, texts = read_png(file)
    assert np.array_equal(again, pixels)
    assert texts == [b'sid-provenance\0{"seed":7}']
    for form in (WEBP, JPEG, NPY):
        assert encode(pixels, form, b"text") == encode(pixels, form)


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([1, 3]), st.integers(0, 2**32 - 1))
def test_a_png_of_any_size_holds_the_exact_pixels(height, width, channels, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    file = encode(pixels, PNG)
    assert np.array_equal(open_with_pillow(file)[1], pixels)
    assert np.array_equal(read_png(file)[0], pixels)


def test_a_small_png_is_hardly_larger_than_its_pixels_and_a_large_one_is_deflated():
    assert len(encode(smooth((64, 64, 3)), PNG)) < 64 * 64 * 3 + 64 + 80
    assert len(encode(smooth((256, 256, 3)), PNG)) < 256 * 256 * 3 / 10


@pytest.mark.parametrize("pixels", images(), ids=lambda pixels: "x".join(map(str, pixels.shape)))
def test_a_webp_holds_the_exact_pixels(pixels):
    file = encode(pixels, WEBP)
    assert (file[:4], file[8:16]) == (b"RIFF", b"WEBPVP8L")  # L: the lossless coding
    assert struct.unpack("<I", file[4:8]) == (len(file) - 8,)
    image, seen = open_with_pillow(file)
    assert (image.format, image.mode) == ("WEBP", "RGB")
    assert np.array_equal(seen, np.broadcast_to(pixels, seen.shape))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_jpeg_is_close_to_the_pixels(shape):
    pixels = smooth(shape)
    image, seen = open_with_pillow(encode(pixels, JPEG))
    assert (image.format, image.mode) == ("JPEG", "L" if shape[2] == 1 else "RGB")
    assert seen.shape == shape
    assert np.abs(seen.astype(int) - pixels).max() <= 12


@pytest.mark.parametrize("side", [104, 105, 512])
def test_a_jpeg_of_pure_noise_is_one_too(side):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    image, _ = open_with_pillow(encode(pixels, JPEG))
    assert image.size == (side, side)


def test_a_jpeg_keeps_colour_at_full_resolution():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, ::2, 0] = pixels[:, 1::2, 2] = 200  # red and blue lines, one pixel wide
    _, seen = open_with_pillow(encode(pixels, JPEG))
    assert np.abs(seen.astype(int) - pixels).max() <= 30


@pytest.mark.parametrize("shape", SHAPES)
def test_an_npy_of_one_image_is_the_array(shape):
    file = encode(noise(shape), NPY)
    assert file == npy(noise(shape))
    loaded = np.load(io.BytesIO(file), allow_pickle=False)
    assert loaded.dtype == np.uint8
    assert np.array_equal(loaded, noise(shape))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_an_npy_of_several_images_is_their_array(count):
    images = noise((count, 28, 28, 1))
    file = npy(images)
    assert np.array_equal(np.load(io.BytesIO(file), allow_pickle=False), images)
    # And as the format's description reads it: version 1.0, a literal, the plain bytes.
    assert file[:8] == b"\x93NUMPY\x01\x00"
    end = 10 + struct.unpack("<H", file[8:10])[0]
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 28, 28, 1)}
    assert ast.literal_eval(file[10:end].decode("latin1")) == header
    assert file[end:] == images.tobytes()


@pytest.mark.parametrize("form", [PNG, WEBP, JPEG, NPY])
@pytest.mark.parametrize("shape", [(28, 28, 1), (96, 80, 3)])
def test_the_same_pixels_give_the_same_bytes_wherever_they_lie_in_memory(form, shape):
    pixels = smooth(shape)
    file = encode(pixels, form)
    batch = np.stack([noise(shape), pixels, noise(shape)])
    spread = np.repeat(np.repeat(pixels, 2, axis=0), 2, axis=1)[::2, ::2]
    for same in (pixels.copy(), batch[1], spread, np.asfortranarray(pixels)):
        assert encode(same, form) == file
    assert encode(255 - pixels, form) != file


def test_a_zip_holds_its_files_in_order_and_not_deflated():
    files = [(f"class{i}-seed{i}.png", encode(noise((8, 8, 1)), PNG)) for i in (2, 0, 1)]
    with zipfile.ZipFile(io.BytesIO(zip_archive(iter(files)))) as archive:
        assert archive.testzip() is None
        assert [(name, archive.read(name)) for name in archive.namelist()] == files
        for entry in archive.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert (entry.create_system, entry.external_attr >> 16) == (3, 0o100644)


def test_a_zip_of_the_same_files_has_the_same_bytes(monkeypatch):
    files = [("a.png", b"1"), ("b.png", b"22")]
    before = zip_archive(files)
    monkeypatch.setattr("time.time", lambda: 2e9)
    monkeypatch.setattr("sys.platform", "win32")
    assert zip_archive(files) == before


def test_an_empty_zip_opens():
    assert zipfile.ZipFile(io.BytesIO(zip_archive([]))).namelist() == []


def test_the_encoders_name_changes_with_the_libraries():
    assert Image.__version__ in ENCODER
    assert zlib.ZLIB_RUNTIME_VERSION in ENCODER
