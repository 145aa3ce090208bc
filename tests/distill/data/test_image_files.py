"""What of a folder or a zip is read as images, and the line that says what was not."""

import contextlib
import io
import os
import random
import shutil
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from distill.cli import app
from distill.data.datasets import load_dataset
from distill.errors import UserError
from tests.distill.test_cli import RECIPE

COMMANDS = Path(__file__).parents[3] / "distill" / "commands"


def write_image(path, form="png", colour=(200, 0, 9), size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, form)


def png():
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("x.tif", "tiff"), ("x.TIFF", "tiff"), ("x.PNG", "png"), ("x.jfif", "jpeg"),
        ("x.jpe", "jpeg"), ("x.ppm", "ppm"), ("x.avif", "avif"), ("x.jp2", "jpeg2000"),
        ("x.tga", "tga"), ("x.ico", "ico"), ("x.dds", "dds"), ("x.qoi", "qoi"), ("x.pcx", "pcx"),
        ("x", "png"), ("x", "webp"), ("x.png.bak", "png"), ("x.jpg", "png"), ("0001.2", "gif"),
    ],
)  # fmt: skip
def test_every_format_of_pillow_is_read_whatever_its_name(tmp_path, name, form):
    write_image(tmp_path / "red" / "x.png")
    try:
        write_image(tmp_path / "blue" / name, form, size=(16, 16))
    except (KeyError, OSError):
        pytest.skip(f"this Pillow has no {form}")
    dataset = load_dataset(tmp_path, resolution=8)
    assert dataset.classes == ("blue", "red")
    assert dataset.labels.tolist() == [0, 1]


def test_linked_folders_and_files_are_read_and_loops_are_not(tmp_path):
    data, kept = tmp_path / "data", tmp_path / "kept"
    write_image(data / "cat" / "x.png")
    write_image(kept / "deep.png")
    write_image(kept / "other.png")
    for link, target in [
        ("dog", kept), ("cat/y.png", kept / "deep.png"), ("cat/up", data), ("dog/back", data),
        ("cat/gone.png", "nowhere"), ("self", "self"),
    ]:  # fmt: skip
        (data / link).symlink_to(target)
    linked = tmp_path / "linked"
    linked.symlink_to(data)
    dataset = load_dataset(linked, resolution=8)
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert "links to a folder that holds them (2: cat/up, dog/back)" in dataset.summary
    assert "links that lead nowhere (2: cat/gone.png, self)" in dataset.summary


def test_one_line_says_what_was_read_and_what_was_not(tmp_path):
    for i in range(5):
        write_image(tmp_path / "cat" / f"{i}.png", size=(20 + i, 16))
    write_image(tmp_path / "dog" / "a.jpg", "jpeg")
    (tmp_path / "mouse" / "none").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.xml").write_text("<a/>")
    (tmp_path / "dog" / "line\nbreak.txt").write_text("Python")
    (tmp_path / "dog" / "two.txt").write_text("P1 is\nno PBM")
    (tmp_path / "dog" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "dog" / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    os.mkfifo(tmp_path / "cat" / "pipe")
    assert load_dataset(tmp_path, resolution=8).summary == (
        f"{tmp_path}: 6 colour images, 6 sizes from 8x8 to 24x16 (the middle square, scaled to "
        "8x8), 2 classes: cat (5), dog (1); passed over: "
        "files that are no images (4: dog/line?break.txt, dog/two.txt, dog/x.h5, ...), "
        "folders without images (2: mouse, notes), hidden files (1: dog/.DS_Store), "
        "neither files nor folders (1: cat/pipe)"
    )


def test_many_classes_are_told_by_their_counts(tmp_path):
    for i in range(30):
        for j in range(1 + i % 3):
            write_image(tmp_path / f"c{i}" / f"{j}.png", colour=(9, 9, 9))
    summary = load_dataset(tmp_path, resolution=8).summary
    assert summary == f"{tmp_path}: 60 grey images, 8x8, 30 classes of 1 to 3 images each"


def test_a_folder_without_images_says_what_lies_there(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=r"holds no images.*passed over.*1: a\.heic"):
        load_dataset(tmp_path, resolution=8)


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.png", b""), ("x.jpg", b"no"), ("x", png()[:-30]), ("x.png", png()[:48])],
)
def test_a_damaged_image_is_named_whatever_its_name(tmp_path, name, content):
    write_image(tmp_path / "ok.png")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf": {name} is not a readable image \([^<]*\)$"):
        load_dataset(tmp_path, resolution=8)


@pytest.mark.parametrize("zipped", [False, True])
def test_all_damaged_images_are_listed_in_one_run(tmp_path, zipped):
    damaged = [f"{name}/{i:02}.png" for name in ("cat", "dog") for i in range(13)]
    for name in damaged:
        write_image(tmp_path / "pets" / name)
        (tmp_path / "pets" / name).write_bytes(png()[:-30] if "cat" in name else b"")
    write_image(tmp_path / "pets" / "cat" / "whole.png")
    path = tmp_path / "pets"
    if zipped:
        path = Path(shutil.make_archive(str(path), "zip", path))
    with pytest.raises(UserError) as caught:
        load_dataset(path, resolution=8)
    told = str(caught.value)
    assert told.startswith(f"{path}: 26 images cannot be read, replace or remove them: cat/00.png")
    assert "dog/00.png is not a readable image (Pillow knows it as none)" in told
    assert [name in told for name in damaged] == [True] * 20 + [False] * 6
    assert told.endswith("; and 6 more")


def test_an_image_that_cannot_be_unpacked_is_listed_with_the_others(tmp_path):
    path = zip_of(tmp_path / "set.zip", "a/1.png", "b/2.png", compression=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDAZ"))  # both checksums are wrong now
    with pytest.raises(UserError, match=r"2 images .*: a/1\.png cannot be .*; b/2\.png cannot be"):
        load_dataset(path, resolution=8)


def test_a_zip_made_on_windows_has_folders(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        for folder in ("pets\\", "pets\\cat\\", "pets\\mouse\\"):
            archive.writestr(folder, "")
        archive.writestr("pets\\cat\\a.png", png())
        archive.writestr("pets\\dog\\b.PNG", png())
        link = zipfile.ZipInfo("pets/fox")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "cat")
    dataset = load_dataset(tmp_path / "w.zip", resolution=8)
    assert dataset.classes == ("cat", "dog")
    assert "folders without images (1: pets/mouse)" in dataset.summary
    assert "links stored in the zip (1: pets/fox)" in dataset.summary


def test_a_macs_zip_that_does_not_say_utf8_keeps_its_letters(tmp_path):
    path = tmp_path / "mac.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("café/a.png", png())
        archive.writestr("tea/a.png", png())
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        start = -1
        while (start := data.find(signature, start + 1)) >= 0:
            flags = struct.unpack_from("<H", data, start + offset)[0] & ~0x800
            struct.pack_into("<H", data, start + offset, flags)
    path.write_bytes(data)
    assert load_dataset(path, resolution=8).classes == ("café", "tea")


def zip_of(path, *names, compression=zipfile.ZIP_DEFLATED):
    """A zip of images under those names; bytes stand in it as they are, without an encoding."""
    stand_ins = [name if isinstance(name, str) else "~" * len(name) for name in names]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in stand_ins:
            archive.writestr(name, png())
    content = path.read_bytes()
    for name, stand_in in zip(names, stand_ins, strict=True):
        if isinstance(name, bytes):
            content = content.replace(stand_in.encode(), name)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_damaged_zip_is_refused_or_read(tmp_path, compression):
    content = zip_of(tmp_path / "whole.zip", "a/1.png", "b/2", compression=compression).read_bytes()
    chance = random.Random(0)
    path = tmp_path / "set.zip"
    for _ in range(150):
        damaged = bytearray(content)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])])
        with contextlib.suppress(UserError):  # anything else fails
            load_dataset(path, resolution=8)


def test_a_zip_cut_short_is_called_a_zip(tmp_path):
    path = zip_of(tmp_path / "set.zip", "a/1.png", "b/1.png")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read as a zip"):
        load_dataset(path, resolution=8)


def test_a_damaged_file_of_a_zip_is_named_without_a_suffix_too(tmp_path):
    path = zip_of(tmp_path / "set.zip", "a/1.png", "b/photo")
    content = bytearray(path.read_bytes())
    start = content.index(b"b/photo") + len(b"b/photo")
    content[start : start + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(UserError, match="b/photo cannot be unpacked"):
        load_dataset(path, resolution=8)


def test_a_file_that_a_zip_holds_twice_is_read_once(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        path = zip_of(tmp_path / "set.zip", "a/1.png", "b/1.png", "a/1.png")
    dataset = load_dataset(path, resolution=8)
    assert len(dataset) == 2
    assert "(1: a/1.png)" in dataset.summary


def test_names_whose_encoding_a_zip_does_not_say_are_told(tmp_path):
    path = zip_of(tmp_path / "set.zip", "кот".encode("cp866") + b"/1.png", "b/1.png")
    assert "1 names in no stated encoding" in load_dataset(path, resolution=8).summary
    path = zip_of(tmp_path / "set.zip", "кот".encode() + b"/1.png", "b/1.png")
    assert "no stated" not in load_dataset(path, resolution=8).summary


def with_unicode_name(path, legacy, name, goes_with=None):
    """A zip with Info-ZIP's and WinRAR's extra field 0x7075: a name in UTF-8 beside other bytes."""
    info = zipfile.ZipInfo("~" * len(legacy))
    crc = zlib.crc32(legacy if goes_with is None else goes_with).to_bytes(4, "little")
    field = b"\1" + crc + (name if isinstance(name, bytes) else name.encode())
    # After another field, as Info-ZIP puts it behind the times.
    info.extra = struct.pack("<HHB", 0x5455, 1, 0) + struct.pack("<HH", 0x7075, len(field)) + field
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, png())
        archive.writestr("b/1.png", png())
    path.write_bytes(path.read_bytes().replace(info.filename.encode(), legacy))
    return path


@pytest.mark.parametrize("legacy", ["кот".encode("cp866"), b"\xc3\xa9", b"#U043a#U043e#U0442"])
def test_a_name_in_unicode_beside_one_in_a_code_page_is_the_name(tmp_path, legacy):
    """Whatever the other name is: in a code page, valid UTF-8 by chance, or escaped to ASCII."""
    path = with_unicode_name(tmp_path / "set.zip", legacy + b"/1.png", "кот/1.png")
    dataset = load_dataset(path, resolution=8)
    assert dataset.classes == ("b", "кот")
    assert "no stated" not in dataset.summary


@pytest.mark.parametrize(
    ("name", "goes_with"), [("кот/1.png", b"before it was renamed"), (b"\xff/1.png", None)]
)
def test_a_name_in_unicode_that_is_stale_or_damaged_does_not_count(tmp_path, name, goes_with):
    path = with_unicode_name(tmp_path / "set.zip", "é/1.png".encode(), name, goes_with)
    assert load_dataset(path, resolution=8).classes == ("b", "é")


@pytest.mark.skipif(shutil.which("zip") is None, reason="there is no zip program here")
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_zip_of_linuxs_own_program_keeps_the_names_of_classes(tmp_path, locale):
    names = ("Ärger", "дом", "日本")
    for name in names:
        write_image(tmp_path / "photos" / name / "ü.png")
    subprocess.run(
        ["zip", "-qr", "../photos.zip", "."],
        cwd=tmp_path / "photos",
        env=os.environ | {"LC_ALL": locale},
        check=True,
    )
    dataset = load_dataset(tmp_path / "photos.zip", resolution=8)
    assert dataset.classes == names
    assert "no stated" not in dataset.summary


def test_classes_txt_may_spell_accents_and_blanks_in_another_way(tmp_path):
    for name in ("Cafe\u0301", "b "):
        write_image(tmp_path / name / "1.png")
    (tmp_path / "classes.txt").write_text("b\nCaf\u00e9\n")
    assert load_dataset(tmp_path, resolution=8).classes == ("b ", "Cafe\u0301")


@pytest.mark.parametrize("prefix", ["", "pets/"])
@pytest.mark.parametrize("zipped", [False, True])
def test_classes_txt_orders_the_classes(tmp_path, prefix, zipped):
    order = "dog\r\ncat\r\n".encode("utf-8-sig")
    files = {
        "cat/a.png": png(),
        "dog/a.png": png(),
        "classes.txt": order,
        "cat/classes.txt": b"\xe9",
    }
    if zipped:
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(prefix + name, content)
    for name, content in {} if zipped else files.items():
        path = tmp_path / "set.zip" / prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    dataset = load_dataset(tmp_path / "set.zip", resolution=8)
    assert dataset.classes == ("dog", "cat")
    assert dataset.labels.tolist() == [1, 0]
    assert "dog (1), cat (1); their order from classes.txt; passed over:" in dataset.summary
    assert f"files that are no images (1: {prefix}cat/classes.txt)" in dataset.summary


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"dog\ncat\nfox", "differ in fox: it lists each folder once"),
        (b"dog\ncat\ncat", "differ in cat, cat, dog"),
        (b"caf\xe9", "classes.txt: not UTF-8 text"),
    ],
)
def test_a_classes_txt_of_other_classes_is_refused(tmp_path, content, said):
    for name in ("cat", "dog"):
        write_image(tmp_path / name / "x.png")
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_dataset(tmp_path, resolution=8)


@pytest.mark.parametrize("twin", ["Café", "cafe\u0301", "café "])
def test_classes_that_look_alike_are_refused(tmp_path, twin):
    for name in ("café", twin):
        write_image(tmp_path / name / "x.png")
    with pytest.raises(UserError, match="differ by upper and lower case, outer blanks or"):
        load_dataset(tmp_path, resolution=8)


def test_a_file_that_cannot_be_opened_is_not_taken_for_another_kind(tmp_path, monkeypatch):
    write_image(tmp_path / "ok.png")
    (tmp_path / "x").write_bytes(png())
    real_open = Path.open

    def deny(path, *arguments, **options):
        if path.name == "x":
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(PermissionError):  # main() says it in one line
        load_dataset(tmp_path, resolution=8)


def test_an_image_too_large_is_named_without_a_suffix_too(tmp_path, monkeypatch):
    write_image(tmp_path / "huge")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"huge is not a readable image .*exceeds limit"):
        load_dataset(tmp_path, resolution=8)


@pytest.mark.parametrize("name", [b"\xef\xbb\xbfcat", b"caf\xe9", b"two\nlines"])
def test_a_class_name_that_is_no_text_is_refused(tmp_path, name):
    write_image(tmp_path / "dog" / "x.png")
    write_image(tmp_path / os.fsdecode(name) / "x.png")
    with pytest.raises(UserError, match=r"class folder '.*\?.*' holds U\+.*: rename"):
        load_dataset(tmp_path, resolution=8)


@pytest.mark.parametrize(
    "arguments",
    [
        ["reference", "--out", "r.npz", "--features", "fashion-cnn", "--resolution", "28"],
        ["features", "--out", "f.safetensors", "--epochs", "1"],
        ["teacher", "--out", "run", "--recipe", "tiny.toml", "--images", "32"],
    ],
)
def test_commands_that_read_images_say_what_they_read(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    for name in ("cat", "dog"):
        for i in range(2):
            write_image(tmp_path / "pets" / name / f"{i}.png", colour=(9, 9, 9))
    result = CliRunner().invoke(app, [*arguments, "--data", "pets", "--background", "#102030"])
    assert result.stderr.startswith("pets: 4 grey images, 8x8")
    assert "2 classes: cat (2), dog (2)\n" in result.stderr
    # Four images are too few for a covariance: the classifier is trained and then refused.
    assert result.exit_code == 0 or "at least 256" in str(result.exception)


def test_no_command_reads_images_without_saying_so():
    for file in COMMANDS.glob("*.py"):
        assert "load_dataset" not in file.read_text() or file.name == "options.py", file
