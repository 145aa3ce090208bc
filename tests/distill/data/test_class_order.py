"""Class folders named by numbers: in which order they become classes, and what publish says."""

import random

import pytest
from PIL import Image
from typer.testing import CliRunner

from distill.cli import app
from distill.data.classes import natural_order
from distill.data.datasets import load_dataset
from tests.bundles import write_bundle


@pytest.mark.parametrize(
    "names",
    [
        [str(i) for i in range(12)],
        ["-10", "-2", "0", "3", "20"],
        ["0.25", "0.5", "2", "10.0"],
        ["01", "2", "10"],
        ["class 2", "class 10", "class 10b"],
        ["7", "20", "", "a", "a1", "a1b", "a2", "b"],
        ["Coat", "Dress", "T-shirt/top", "Trouser"],  # names without numbers: as before
    ],
)
def test_numbers_are_ordered_by_their_value(names):
    shuffled = random.Random(0).sample(names, len(names))
    assert sorted(shuffled, key=natural_order) == names


def test_folders_of_numbers_become_classes_in_their_order(tmp_path):
    for number in range(12):
        (tmp_path / str(number)).mkdir()
        Image.new("L", (4, 4), number).save(tmp_path / str(number) / "a.png")
    dataset = load_dataset(tmp_path, resolution=4)
    assert dataset.classes == tuple(str(number) for number in range(12))
    levels = {
        int(label): int(image.max())
        for image, label in zip(dataset.images, dataset.labels, strict=True)
    }
    assert levels == {number: number for number in range(12)}


@pytest.mark.parametrize(
    ("classes", "warned"),
    [(["1", "2", "3"], True), (["0", "1", "2"], False), (["Coat", "Dress"], False)],
)
def test_publish_warns_of_names_that_are_other_classes_indices(
    tmp_path, monkeypatch, classes, warned
):
    folder = write_bundle(tmp_path, "digits", classes=classes)
    monkeypatch.setattr("distill.export.publish.publish", lambda *_: folder)
    done = CliRunner().invoke(app, ["publish", "generator.safetensors", "--name", "digits"])
    assert done.exit_code == 0, done.output
    assert ("warning: 2 class names are other classes' indices" in done.stderr) is warned
    assert ("1 draws the class named '2'" in done.stderr) is warned
