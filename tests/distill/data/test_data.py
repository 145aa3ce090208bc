"""Reading data sets, and what a person is told when one cannot be read."""

import gzip
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.datasets import FASHION_CLASSES, load_dataset, one_hot
from distill.errors import UserError


def write_idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fashion(tmp_path):
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 6), ("t10k", 3)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8))
    return tmp_path


def write_images(folder, mode="RGB"):
    for name, colour in (("cats", 10), ("dogs", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            value = (colour, colour, 255) if mode == "RGB" else colour
            Image.new(mode, (20, 16), value).save(folder / name / f"{i}.png")


def test_idx_files_give_images_labels_and_names(fashion):
    train, test = load_dataset(fashion), load_dataset(fashion, "test")
    assert train.images.shape == (6, 1, 28, 28)
    assert train.images.dtype == torch.uint8
    assert (len(train), len(test)) == (6, 3)
    assert train.classes == FASHION_CLASSES
    assert train.summary.startswith(
        f"{fashion}: 6 grey images, 28x28, 10 classes: T-shirt/top (1), "
    )
    assert one_hot(train.labels, 10)[5].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_a_missing_data_set_says_what_would_provide_it(tmp_path):
    with pytest.raises(UserError, match=r"dataset-fashion-mnist.*--data"):
        load_dataset(tmp_path / "nowhere")


def test_a_missing_idx_file_is_named(fashion):
    (fashion / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"lacks train-labels-idx1-ubyte.gz"):
        load_dataset(fashion)


@pytest.mark.parametrize("keep", [0, 3, 40, -8])
def test_a_truncated_idx_file_is_named(fashion, keep):
    path = fashion / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz.*fetch it again"):
        load_dataset(fashion)


@pytest.mark.parametrize("zipped", [False, True])
def test_sub_folders_are_classes(tmp_path, zipped):
    folder = tmp_path / "pets"
    write_images(folder)
    if zipped:
        with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
            for file in folder.rglob("*.png"):
                archive.write(file, file.relative_to(folder))
        folder = tmp_path / "pets.zip"
    dataset = load_dataset(folder, resolution=8)
    assert dataset.images.shape == (4, 3, 8, 8)
    assert dataset.classes == ("cats", "dogs")
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert dataset.images[2, :, 4, 4].tolist() == [200, 200, 255]


def test_grey_images_take_one_channel_and_a_flat_folder_no_classes(tmp_path):
    write_images(tmp_path / "pets", mode="L")
    flat = load_dataset(tmp_path / "pets" / "cats", resolution=8)
    assert flat.images.shape == (2, 1, 8, 8)
    assert flat.classes == ()


def test_a_file_that_is_no_image_is_named(tmp_path):
    write_images(tmp_path / "pets")
    (tmp_path / "pets" / "dogs" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"dogs/broken.png is not a readable image"):
        load_dataset(tmp_path / "pets", resolution=8)


def test_images_beside_class_folders_are_refused(tmp_path):
    write_images(tmp_path / "pets")
    Image.new("L", (8, 8)).save(tmp_path / "pets" / "stray.png")
    with pytest.raises(UserError, match="mixes images at several depths"):
        load_dataset(tmp_path / "pets", resolution=8)


def test_nested_folders_are_refused_not_merged(tmp_path):
    write_images(tmp_path / "pets" / "train")
    write_images(tmp_path / "pets" / "test")
    with pytest.raises(UserError, match="nests folders in folders"):
        load_dataset(tmp_path / "pets", resolution=8)


def test_a_macs_shadow_files_are_passed_over(tmp_path):
    write_images(tmp_path / "pets")
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for file in (tmp_path / "pets").rglob("*.png"):
            archive.write(file, file.relative_to(tmp_path))
            shadow = file.relative_to(tmp_path).with_name(f"._{file.name}")
            archive.writestr(f"__MACOSX/{shadow.as_posix()}", b"shadow")
    dataset = load_dataset(tmp_path / "pets.zip", resolution=8)
    assert dataset.classes == ("cats", "dogs")


def test_idx_files_that_are_not_fashion_mnist_are_refused(fashion):
    write_idx(fashion / "train-labels-idx1-ubyte.gz", np.arange(10, 16, dtype=np.uint8))
    with pytest.raises(UserError, match=r"is not Fashion-MNIST.*up to 15"):
        load_dataset(fashion)
