"""The avatars that a model is trained on: drawn the same each time, in an order of their own."""

import sys
import zipfile

import pytest
from typer.testing import CliRunner

from distill.cli import app
from distill.data.avatars import STYLES, Task, check_size, draw, licences
from distill.data.datasets import load_dataset
from distill.errors import UserError

pytest.importorskip("dicebear")


def run(*arguments):
    return CliRunner().invoke(app, ["avatars", *map(str, arguments)])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three avatars a class."""
    out = tmp_path_factory.mktemp("avatars") / "new" / "avatars.zip"
    result = run("--out", out, "--count", 3, "--size", 16)
    assert result.exit_code == 0, result.output
    assert "30 avatars" in result.output
    return out


@pytest.mark.slow
def test_the_classes_are_in_their_own_order_and_bring_their_licences(drawn):
    dataset = load_dataset(drawn, resolution=16)
    assert dataset.classes == (
        "Voxel person", "Voxel robot", "Planet", "Thumb", "Critter",
        "Sprout", "Mood", "Clay", "Pixel person", "Landscape",
    )  # fmt: skip
    assert dataset.images.shape == (30, 3, 16, 16)
    assert dataset.labels.bincount().tolist() == [3] * 10
    with zipfile.ZipFile(drawn) as archive:
        lines = archive.read("LICENCES.txt").decode().splitlines()
    assert lines == licences()
    for name, line in zip(STYLES, lines, strict=True):
        assert line.startswith(f"{name}: ")
        assert "CC0 1.0" in line
    assert [file.name for file in drawn.parent.iterdir()] == ["avatars.zip"], "nothing is left"


@pytest.mark.slow
def test_corners_are_white_where_a_style_has_no_background(drawn):
    dataset = load_dataset(drawn, resolution=16)
    pixel_people = dataset.images[dataset.labels == 8]
    assert (pixel_people[:, :, 0, 0] == 255).all()


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes_and_the_test_split_other_avatars(drawn, tmp_path):
    again, held_out = tmp_path / "again.zip", tmp_path / "test.zip"
    assert run("--out", again, "--count", 3, "--size", 16).exit_code == 0
    assert again.read_bytes() == drawn.read_bytes()
    assert run("--out", held_out, "--count", 3, "--size", 16, "--test").exit_code == 0
    known = {image.numpy().tobytes() for image in load_dataset(drawn, resolution=16).images}
    others = load_dataset(held_out, resolution=16)
    assert others.classes == tuple(STYLES)
    seen = [image.numpy().tobytes() in known for image in others.images]
    assert sum(seen) <= 3, "a style may repeat itself at so small a size, but not as a rule"


def test_the_class_is_part_of_the_seed():
    """Critters and sprouts share their backgrounds: one number must not fix both."""
    task = {"split": "train", "numbers": range(12), "size": 8}
    corners = []
    for name in ("Critter", "Sprout"):
        pngs = draw(Task(class_name=name, **task))
        corners.append([png[-60:-12] for png in pngs])
    assert corners[0] != corners[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--size", 20), "choose a multiple of 8"),
        (("--count", 0), "--count"),
        (("--size", 0), "--size"),
    ],
)
def test_numbers_that_make_no_data_set_are_refused(tmp_path, arguments, said):
    result = run("--out", tmp_path / "a.zip", *arguments)
    assert result.exit_code != 0
    assert said in (str(result.exception) + result.output).replace("\n", " ")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_not_overwritten(drawn):
    content = drawn.read_bytes()
    result = run("--out", drawn, "--count", 1, "--size", 16)
    assert isinstance(result.exception, UserError)
    assert "exists already" in str(result.exception)
    assert drawn.read_bytes() == content


@pytest.mark.parametrize("package", ["dicebear", "dicebear_styles", "resvg_py"])
def test_a_missing_package_is_named_in_one_line(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    result = run("--out", tmp_path / "a.zip", "--count", 1, "--size", 8)
    assert isinstance(result.exception, UserError)
    assert f"needs {package}: pip install dicebear-core" in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_sizes_fit_the_recipe():
    from distill.recipe import load_recipe

    network = load_recipe("avatars").network
    check_size(network.img_resolution)
    assert network.img_resolution % (network.patch_size * 2 ** (len(network.channel_mult) - 1)) == 0
