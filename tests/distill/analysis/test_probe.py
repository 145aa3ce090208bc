"""The probe's numbers against closed forms: Gaussian data, a linear generator, exact denoisers.

Data N(0, s^2), G(z) = theta z, a = A y, b = B y with A = s^2/(s^2 + sigma^2) and B the same of
theta. Every expectation of the probe is then a polynomial (facts, section 3).
"""

import numpy as np
import pytest
import torch

from distill.analysis.probe import BEYOND, Levels, noise_levels, probe
from distill.schedules import generator_sigmas

S, THETA, SIGMA = 0.7, 0.4, 0.5
A = S**2 / (S**2 + SIGMA**2)
B = THETA**2 / (THETA**2 + SIGMA**2)
D = A - B
Y2 = THETA**2 + SIGMA**2  # E y^2


@pytest.fixture(scope="module")
def found():
    """A probe of 400 images of 400 pixels: each mean is over 160,000 draws."""
    images = THETA * torch.randn((400, 1, 20, 20), generator=torch.Generator().manual_seed(1))
    return probe(
        teacher=lambda y, _sigma, _labels: A * y,
        fake_score=lambda y, _sigma, _labels: B * y,
        images=images,
        one_hot=None,
        levels=Levels(np.array([SIGMA]), np.array([True])),
        preconditioning="edm",
    )


def test_the_gap_is_weighted(found):
    # x - a = (1 - A) x - A sigma eps is normal: its mean absolute value is std sqrt(2 / pi).
    w = np.sqrt(((1 - A) * THETA) ** 2 + (A * SIGMA) ** 2) * np.sqrt(2 / np.pi)
    assert found.gap.mean() == pytest.approx(D**2 * Y2 / w, rel=0.02)


def test_how_well_each_denoiser_knows_the_images(found):
    weight = (SIGMA**2 + 0.25) / (SIGMA * 0.5) ** 2
    for loss, factor in ((found.fake_loss, B), (found.teacher_loss, A)):
        expected = weight * ((factor - 1) ** 2 * THETA**2 + factor**2 * SIGMA**2)
        assert loss.mean() == pytest.approx(expected, rel=0.01)
    assert found.fake_loss.mean() < found.teacher_loss.mean()


def test_every_image_is_looked_at_and_labels_arrive():
    seen = []

    def teacher(y, sigma, labels):
        seen.append((sigma.item(), labels.argmax(dim=1).tolist()))
        return 0.5 * y

    images = torch.ones((3, 1, 2, 2))
    one_hot = torch.eye(3)
    levels = Levels(np.array([1e-6, 2e-6]), np.array([True, False]))
    found = probe(teacher, lambda y, _s, _c: 0.25 * y, images, one_hot, levels, "edm", 2)
    # Hardly any noise: a = 0.5, b = 0.25, w = 0.5: (a-b)^2/w = 0.125.
    assert found.gap == pytest.approx(np.full((2, 3), 0.125), rel=1e-3)
    assert [labels for _, labels in seen] == [[0, 1], [2]] * 2


def test_the_same_images_are_probed_alike():
    def look():
        levels = Levels(np.array([1.0]), np.array([True]))
        images = torch.zeros((2, 1, 2, 2))
        return probe(lambda y, _s, _c: y, lambda y, _s, _c: y / 2, images, None, levels, "edm")

    torch.manual_seed(0)
    first = look()
    torch.manual_seed(1)
    assert (look().gap == first.gap).all()


def test_noise_levels_stand_for_trainings_draws_and_go_beyond():
    levels = noise_levels(800, 12)
    assert levels.trained.sum() == 12
    assert len(levels.sigmas) == 12 + BEYOND
    assert (np.diff(levels.sigmas) > 0).all()
    assert levels.sigmas[levels.trained].max() < 24.4 < levels.sigmas[12] < levels.sigmas.max() < 80
    # The mean over the levels is the mean over u ~ U[0, 1]: ln sigma as an example.
    u = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    mean = generator_sigmas(u, 800).log().mean().item()
    assert np.log(levels.sigmas[:12]).mean() == pytest.approx(mean, abs=0.01)
    assert noise_levels(1000).trained.all()
    assert noise_levels(100).trained.sum() == 12
    assert len(noise_levels(100).sigmas) == 12 + BEYOND
