"""Feature networks: what they know, and what they refuse to judge."""

import pytest
import torch

from distill.data import Dataset
from distill.errors import UserError
from distill.evaluation.features import load_detector, save_detector, train_detector
from distill.networks import Denoiser, NetworkConfig


def noise(count, classes=("dark", "bright")):
    """Random 8x8 pictures, dark ones and bright ones."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images += (labels * 120).to(torch.uint8).reshape(-1, 1, 1, 1)
    return Dataset("noise", images, labels, classes)


def network(**changes):
    shape = {"img_resolution": 8, "img_channels": 1, "label_dim": 2} | changes
    return Denoiser(
        NetworkConfig(model_channels=8, channel_mult=(1,), attn_resolutions=(), **shape)
    )


def test_it_learns_its_classes_and_survives_its_file(tmp_path):
    detector = train_detector("noise", noise(600), noise(300), epochs=4)
    assert detector.facts.test_accuracy > 0.95
    save_detector(tmp_path / "noise.safetensors", detector)
    again = load_detector(str(tmp_path / "noise.safetensors"))
    assert again.facts == detector.facts
    pixels = noise(10).images
    for before, after in zip(detector.embed(pixels), again.embed(pixels), strict=True):
        assert (before == after).all()
    assert (again.reference.sigma == detector.reference.sigma).all()


def test_it_refuses_pictures_that_it_does_not_know():
    detector = train_detector("noise", noise(256), None, epochs=1)
    classes = ["dark", "bright"]
    detector.check_fits(network(), classes)
    detector.check_fits(network(label_dim=0), [])  # any network without classes will do
    for changes, names in (
        ({"img_channels": 3}, classes),
        ({"img_resolution": 16}, classes),
        ({}, ["cats", "dogs"]),
    ):
        with pytest.raises(UserError, match="sid-distill features"):
            detector.check_fits(network(**changes), names)


def test_data_that_cannot_train_one_is_refused():
    with pytest.raises(UserError, match="100 images are too few"):
        train_detector("few", noise(100), None, epochs=1)
    with pytest.raises(UserError, match="the data set has none"):
        train_detector("flat", noise(300, classes=()), None, epochs=1)


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="or one of: fashion-cnn"):
        load_detector("nonsense")
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"broken.safetensors is not a feature network"):
        load_detector(str(path))
