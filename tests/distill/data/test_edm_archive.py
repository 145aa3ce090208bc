"""Archives of EDM's dataset_tool: classes by dataset.json, never by the thousands-folders."""

import io
import json
import zipfile

import pytest
from PIL import Image

from distill.data.datasets import load_dataset
from distill.errors import UserError


def png(i):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * i, 9, 200)).save(file, "png")
    return file.getvalue()


NAMES = [f"{i // 2:05d}/img{1000 * (i // 2) + i:08d}.png" for i in range(6)]
LABELS = [[name, i % 2] for i, name in enumerate(NAMES)]


def write(folder, content, zipped=True, prefix=""):
    """An archive with that dataset.json (bytes as they are, None for no such file)."""
    files = {name: png(i) for i, name in enumerate(NAMES)}
    if content is not None:
        files["dataset.json"] = content if isinstance(content, bytes) else json.dumps(content)
    if zipped:
        with zipfile.ZipFile(folder / "set.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(prefix + name, data)
        return folder / "set.zip"
    for name, data in files.items():
        path = folder / "set" / prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder / "set"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "cifar10/"])
def test_labels_stand_in_dataset_json(tmp_path, zipped, prefix):
    dataset = load_dataset(write(tmp_path, {"labels": LABELS}, zipped, prefix), resolution=8)
    assert dataset.classes == ("0", "1")
    assert dataset.labels.tolist() == [0, 1] * 3
    assert "2 classes: 0 (3), 1 (3); labels from dataset.json" in dataset.summary
    assert "passed over" not in dataset.summary


@pytest.mark.parametrize(
    "labels",
    [
        dict(LABELS),
        [[name.replace("/", "\\"), label] for name, label in LABELS],
        [[name, float(label)] for name, label in LABELS],
    ],
)
def test_labels_as_other_tools_write_them(tmp_path, labels):
    dataset = load_dataset(write(tmp_path, {"labels": labels}), resolution=8)
    assert dataset.labels.tolist() == [0, 1] * 3


def test_labels_are_found_with_other_files_beside_the_archives_folder(tmp_path):
    folder = write(tmp_path, {"labels": LABELS}, zipped=False, prefix="cifar10")
    (folder / "README.txt").write_text("what this is")
    assert load_dataset(folder, resolution=8).labels.tolist() == [0, 1] * 3


def test_labels_are_found_by_names_that_spell_accents_in_another_way(tmp_path):
    for name in ("Cafe\u0301.png", "b.png"):
        (tmp_path / name).write_bytes(png(1))
    labels = {"labels": [["Caf\u00e9.png", 1], ["b.png", 0]]}
    (tmp_path / "dataset.json").write_text(json.dumps(labels))
    assert sorted(load_dataset(tmp_path, resolution=8).labels.tolist()) == [0, 1]


@pytest.mark.parametrize("mark", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_matter(tmp_path, mark):
    content = json.dumps({"labels": LABELS}).encode(mark)
    assert load_dataset(write(tmp_path, content), resolution=8).classes == ("0", "1")


@pytest.mark.parametrize("content", [{"labels": None}, {"labels": []}, None])
def test_without_labels_there_are_no_classes(tmp_path, content):
    dataset = load_dataset(write(tmp_path, content), resolution=8)
    assert dataset.classes == ()
    assert dataset.labels.tolist() == [0] * 6
    assert "dataset.json" in dataset.summary


def test_a_class_without_images_keeps_its_number(tmp_path):
    labels = [[name, 2 * label] for name, label in LABELS]
    path = write(tmp_path, {"labels": [*labels, ["gone.png", 1]]})
    dataset = load_dataset(path, resolution=8)
    assert dataset.classes == ("0", "1", "2")
    assert "0 (3), 1 (0), 2 (3)" in dataset.summary
    assert "entries of dataset.json without an image (1: gone.png)" in dataset.summary


@pytest.mark.parametrize("zipped", [True, False])
def test_a_json_of_another_kind_is_passed_over(tmp_path, zipped):
    path = write(tmp_path, {"name": "mine"}, zipped)
    summary = load_dataset(path, resolution=8).summary
    assert "files that are no images (1: dataset.json)" in summary


def test_numbered_folders_that_count_no_thousands_are_classes(tmp_path):
    for name in ("00000/img00000000.png", "00001/img00000001.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png(1))
    assert load_dataset(tmp_path, resolution=8).classes == ("00000", "00001")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"labels": LABELS[1:]}, "has no label for 00000/img00000000.png: label every image"),
        ({"labels": LABELS[2:]}, r"has no label for .*0.png \(nor have 1 others\)"),
        ({"labels": [[NAMES[0], "cat"]]}, r'the label of 00000/img00000000.png is "cat", expected'),
        ({"labels": [[NAMES[0], None]]}, "is null, expected"),
        ({"labels": [[NAMES[0], True]]}, "is true, expected"),
        ({"labels": [[NAMES[0], -1]]}, "is -1, expected"),
        ({"labels": [[NAMES[0], 0.5]]}, "is 0.5, expected"),
        ({"labels": [[NAMES[0], [0, 1]]]}, r"is \[0, 1\], expected"),
        ({"labels": [[NAMES[0], 10**9]]}, "is 1000000000, expected"),
        ({"labels": [NAMES[0]]}, 'an entry of "labels" is "00000/img00000000.png", expected'),
        ({"labels": 3}, '"labels" is 3, expected'),
        ({"labels": [*LABELS, [NAMES[0], 1]]}, "two labels for 00000/img00000000.png"),
        (b'{"labels": ', "dataset.json is no JSON"),
        (b"[" * 100_000, "dataset.json is no JSON"),
        (b'{"labels": "caf\xe9"}', "dataset.json: not UTF-8 text .byte 0xe9 in line 1"),
    ],
)
def test_labels_that_cannot_be_meant_are_named(tmp_path, content, said):
    with pytest.raises(UserError, match=said) as raised:
        load_dataset(write(tmp_path, content), resolution=8)
    assert "\n" not in str(raised.value)
