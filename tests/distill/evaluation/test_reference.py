"""References: EDM's and pytorch-fid's files are read, other files are refused in one line."""

import numpy as np
import pytest
import torch

from distill.data.datasets import Dataset
from distill.errors import UserError
from distill.evaluation.feature_extractor import FeatureExtractor, FeatureModule
from distill.evaluation.frechet import statistics
from distill.evaluation.reference import (
    bundled_reference,
    load_references,
    make_reference,
    save_reference,
)


class Corners(FeatureModule):
    """The four corner pixels of a grey image."""

    dimensions = 4

    def extract(self, pixels, probabilities):
        assert not probabilities
        return pixels[:, 0, ::7, ::7].flatten(1).float(), None


EXTRACTOR = FeatureExtractor("corners", Corners(), "c" * 64)
OTHER = FeatureExtractor("others", Corners(), "0" * 64)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1200, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Dataset("noise", images, torch.zeros(1200, dtype=torch.int64), ())


def load(path, extractors=(EXTRACTOR,)):
    return load_references([path], extractors)[EXTRACTOR.sha256]


def test_it_is_the_statistics_of_the_data_and_survives_its_file(data, tmp_path):
    made = make_reference(data, EXTRACTOR)
    features = EXTRACTOR.extract(data.images).features
    expected = statistics(features)
    np.testing.assert_allclose(made.statistics.mu, expected.mu)
    np.testing.assert_allclose(made.statistics.sigma, expected.sigma)
    path = tmp_path / "noise.npz"
    save_reference(path, made, EXTRACTOR)
    again = load(path, [OTHER, EXTRACTOR])
    assert (again.statistics.sigma == made.statistics.sigma).all()
    assert (again.features == features).all()
    assert (again.count, again.data_sha256) == (1200, data.digest())
    assert again.described == "1200 images of noise in noise.npz"
    with np.load(path) as file:  # what other programs read
        assert file["mu"].dtype == file["sigma"].dtype == np.float64


def test_fewer_images_are_the_same_ones_each_time(data):
    some, again = (make_reference(data, EXTRACTOR, images=300) for _ in range(2))
    assert (some.features == again.features).all()
    assert some.count == 300
    assert make_reference(data, EXTRACTOR, 300, keep_features=False).features is None
    with pytest.raises(UserError, match="noise has 1200 images: a reference of 2000"):
        make_reference(data, EXTRACTOR, images=2000)


def test_files_of_edm_and_pytorch_fid_are_read(tmp_path):
    """mu and sigma, and whatever else they hold."""
    np.savez(tmp_path / "edm.npz", mu=np.zeros(4, np.float32), sigma=np.eye(4), pr=np.ones(7))
    reference = load(tmp_path / "edm.npz")
    assert reference.statistics.mu.dtype == np.float64
    assert reference.features is None
    with pytest.raises(UserError, match="does not say over which feature extractor"):
        load(tmp_path / "edm.npz", [EXTRACTOR, OTHER])


def test_a_reference_over_other_features_is_refused(data, tmp_path):
    save_reference(tmp_path / "r.npz", make_reference(data, OTHER), OTHER)
    with pytest.raises(UserError, match=r"was made over others \(0+\), not over corners \(c+\)"):
        load(tmp_path / "r.npz")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(4)}, "is no reference"),
        ({"mu": np.zeros(4), "sigma": np.eye(3)}, r"sigma \(3, 3\)"),
        ({"mu": np.zeros((2, 2)), "sigma": np.eye(4)}, r"mu has shape \(2, 2\)"),
        ({"mu": np.zeros(3), "sigma": np.eye(3)}, "holds 3 features an image, corners has 4"),
        ({"mu": np.full(4, np.nan), "sigma": np.eye(4)}, "not finite"),
        ({"mu": np.zeros(4), "sigma": np.full((4, 4), np.inf)}, "not finite"),
        ({"mu": np.array(["a"] * 4), "sigma": np.eye(4)}, "not finite numbers"),
        ({"mu": np.array([None] * 4), "sigma": np.eye(4)}, "is no reference"),  # a pickle
        ({"mu": np.zeros(4), "sigma": np.eye(4), "features": np.zeros((9, 5))}, r"\(9, 5\)"),
        ({"mu": np.zeros(4), "sigma": np.eye(4), "count": np.array("many")}, "count"),
    ],
)
def test_what_is_no_reference_is_refused(arrays, said, tmp_path):
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(UserError, match=said) as error:
        load(tmp_path / "r.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"broken", b"PK\x03\x04 broken"])
def test_broken_files_are_refused(content, tmp_path):
    (tmp_path / "r.npz").write_bytes(content)
    with pytest.raises(UserError, match="is no reference"):
        load(tmp_path / "r.npz")


def test_other_files_are_refused(data, tmp_path):
    np.save(tmp_path / "r.npy", np.zeros(4))
    with pytest.raises(UserError, match="is no reference"):
        load(tmp_path / "r.npy")
    with pytest.raises(UserError, match="sid-distill reference"):
        load(tmp_path / "missing.npz")
    save_reference(tmp_path / "whole.npz", make_reference(data, EXTRACTOR), EXTRACTOR)
    content = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is no reference"):
        load(tmp_path / "cut.npz")


def test_only_our_own_networks_bring_a_reference():
    assert bundled_reference(EXTRACTOR) is None
