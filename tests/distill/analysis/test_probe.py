"""The probe's numbers against closed forms: Gaussian data, a linear generator, exact denoisers.

Data N(0, s^2), G(z) = theta z, a = A y, b = B y with A = s^2/(s^2 + sigma^2) and B the same of
theta. Every expectation of the probe is then a polynomial (facts, section 3).
"""

import numpy as np
import pytest
import torch

from distill.analysis.decomposition import Products, level_below, shares
from distill.analysis.probe import BEYOND, Levels, noise_levels, probe
from distill.schedules import generator_sigmas

S, THETA, SIGMA, ALPHA = 0.7, 0.4, 0.5, 0.8
A = S**2 / (S**2 + SIGMA**2)
B = THETA**2 / (THETA**2 + SIGMA**2)
D = A - B
Y2 = THETA**2 + SIGMA**2  # E y^2


@pytest.fixture(scope="module")
def found():
    """A probe of 400 pictures of 400 pixels: each mean is over 320,000 draws."""
    images = THETA * torch.randn((400, 1, 20, 20), generator=torch.Generator().manual_seed(1))
    return probe(
        teacher=lambda y, _sigma, _labels: A * y,
        fake_score=lambda y, _sigma, _labels: B * y,
        images=images,
        labels=torch.arange(400) % 3,
        one_hot=None,
        levels=Levels(np.array([SIGMA]), np.array([True])),
        weighting="none",
    )


def products(parts):
    return Products(*(part.mean(axis=1) for part in parts))


def test_both_parts_of_the_loss(found):
    # E[(a-b)(a-x)] = D (A E y^2 - theta^2); with the exact b it equals E[(a-b)^2]: the identity.
    assert found.mean("identity")[0] == pytest.approx(D * (A * Y2 - THETA**2), rel=0.02)
    assert found.mean("squared")[0] == pytest.approx(D**2 * Y2, rel=0.01)
    assert found.mean("identity")[0] == pytest.approx(found.mean("squared")[0], rel=0.03)
    assert found.mean("difference")[0] == pytest.approx(D**2 * Y2, rel=0.01)


def test_gap_is_weighted_whatever_the_loss_is(found):
    # x - a = (1 - A) x - A sigma eps is normal: its mean absolute value is std sqrt(2 / pi).
    w = np.sqrt(((1 - A) * THETA) ** 2 + (A * SIGMA) ** 2) * np.sqrt(2 / np.pi)
    assert found.mean("weight")[0] == pytest.approx(w, rel=0.01)
    assert found.mean("gap")[0] == pytest.approx(D**2 * Y2 / w, rel=0.02)


def test_how_well_each_denoiser_knows_the_pictures(found):
    weight = (SIGMA**2 + 0.25) / (SIGMA * 0.5) ** 2
    for name, factor in (("fake_loss", B), ("teacher_loss", A)):
        expected = weight * ((factor - 1) ** 2 * THETA**2 + factor**2 * SIGMA**2)
        assert found.mean(name)[0] == pytest.approx(expected, rel=0.01)
    assert found.mean("fake_loss")[0] < found.mean("teacher_loss")[0]


def test_gradients_of_one_draw(found):
    # d[D y (A y - x)]/dx = D ((2A - 1) y - x), d[(D y)^2]/dx = 2 D^2 y.
    g = products(found.gradient)
    assert g.identity[0] == pytest.approx(
        D**2 * ((2 * A - 2) ** 2 * THETA**2 + (2 * A - 1) ** 2 * SIGMA**2), rel=0.02
    )
    assert g.squared[0] == pytest.approx(4 * D**4 * Y2, rel=0.02)
    assert g.product[0] == pytest.approx(
        2 * D**3 * ((2 * A - 2) * THETA**2 + (2 * A - 1) * SIGMA**2), rel=0.02
    )


@pytest.mark.parametrize("alpha", [0.0, ALPHA, 1.2])
def test_what_noise_does_not_average_away_is_the_gradient_of_the_closed_form(found, alpha):
    # Averaged over eps the gradient to x is dL/dtheta (facts, section 3) over theta, times x.
    slope = 2 * D * ((A - 1) - alpha * D)
    signal = products(found.signal)
    assert signal.squared_norm(alpha)[0] == pytest.approx(slope**2 * THETA**2, rel=0.03)
    share = D * (2 * A - 2) / slope
    assert signal.identity_share(alpha)[0] == pytest.approx(share, rel=0.03)


def test_classes_are_told_apart(found):
    by_class = found.by_class("gap", 4)
    assert by_class.shape == (4, 1)
    assert by_class[0, 0] == pytest.approx(found.values["gap"][0, ::3].mean())
    assert np.isnan(by_class[3, 0])


def test_the_weighted_loss_is_divided_and_labels_arrive():
    seen = []

    def teacher(y, sigma, labels):
        seen.append((sigma.item(), labels.argmax(dim=1).tolist()))
        return 0.5 * y

    images = torch.ones((3, 1, 2, 2))
    one_hot = torch.eye(3)
    levels = Levels(np.array([1e-6, 2e-6]), np.array([True, False]))
    found = probe(
        teacher, lambda y, _s, _c: 0.25 * y, images, torch.arange(3), one_hot, levels, "sid", 2
    )
    # Hardly any noise: a = 0.5, b = 0.25, w = 0.5: (a-b)(a-x)/w = -0.25, (a-b)^2/w = 0.125.
    assert found.values["identity"] == pytest.approx(np.full((2, 3), -0.25), rel=1e-3)
    assert found.values["squared"] == pytest.approx(np.full((2, 3), 0.125), rel=1e-3)
    assert found.values["gap"] == pytest.approx(np.full((2, 3), 0.125), rel=1e-3)
    assert [labels for _, labels in seen] == [[0, 1], [0, 1], [2], [2]] * 2  # two draws each


def test_the_same_pictures_are_probed_alike():
    def look():
        levels = Levels(np.array([1.0]), np.array([True]))
        images = torch.zeros((2, 1, 2, 2))
        return probe(
            lambda y, _s, _c: y,
            lambda y, _s, _c: y / 2,
            images,
            torch.zeros(2),
            None,
            levels,
            "sid",
        )

    torch.manual_seed(0)
    first = look()
    torch.manual_seed(1)
    assert (look().values["gap"] == first.values["gap"]).all()


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


def test_products_tell_norms_angles_and_shares_for_every_alpha():
    g1, g2 = np.array([3.0, 0.0]), np.array([1.0, 1.0])
    p = Products(np.array([g1 @ g1]), np.array([g2 @ g2]), np.array([g1 @ g2]))
    for alpha in (0.0, 0.5, 1.2):
        g = g1 - alpha * g2
        assert p.norm(alpha)[0] == pytest.approx(np.linalg.norm(g))
        assert p.identity_share(alpha)[0] == pytest.approx(g1 @ g / (g @ g))
        cosine = g @ g1 / np.linalg.norm(g) / np.linalg.norm(g1)
        assert p.cosine(alpha, 0.0)[0] == pytest.approx(cosine)
    nothing = Products(np.zeros(2), np.zeros(2), np.zeros(2))
    assert np.isnan(nothing.identity_share(1.0)).all()
    assert np.isnan(nothing.cosine(1.0, 0.0)).all()
    noisy = Products(np.array([-0.1]), np.array([0.2]), np.array([0.0]))
    assert noisy.norm(0.0)[0] == 0  # an unbiased square may fall below zero
    assert p.over(np.array([True])).identity[0] == 9
    assert shares(np.array([1.0, 3.0])).tolist() == [0.25, 0.75]
    assert shares(np.zeros(2)).tolist() == [0, 0]
    assert level_below(np.array([1.0, 2.0, 4.0]), np.array([0.2, 0.5, 0.3])) == (2.0, 0.7)
