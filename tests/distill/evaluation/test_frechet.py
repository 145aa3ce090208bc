"""The Fréchet distance against closed forms."""

import numpy as np
import pytest

from distill.evaluation.frechet import Statistics, frechet_distance, statistics


def random_statistics(rng, dims=6):
    root = rng.normal(size=(dims, dims))
    return Statistics(rng.normal(size=dims), root @ root.T)


def test_commuting_gaussians_have_a_closed_form():
    """Diagonal covariances: |mu_a - mu_b|^2 + sum (s_a - s_b)^2 over standard deviations."""
    a = Statistics(np.array([0.0, 1.0]), np.diag([4.0, 9.0]))
    b = Statistics(np.array([3.0, 1.0]), np.diag([1.0, 25.0]))
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 4)


def test_the_distance_is_symmetric_zero_on_itself_and_blind_to_rotations():
    rng = np.random.default_rng(0)
    a, b = random_statistics(rng), random_statistics(rng)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    turned = [Statistics(rotation @ s.mu, rotation @ s.sigma @ rotation.T) for s in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(frechet_distance(a, b))


def test_a_dead_feature_does_not_break_the_root():
    """A feature that is always zero makes both covariances singular."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 4)) * np.array([1, 2, 0, 3])
    other = features + np.array([0.5, 0, 0, 0])
    distance = frechet_distance(statistics(features), statistics(other))
    assert distance == pytest.approx(0.25)


def test_statistics_are_the_sample_mean_and_unbiased_covariance():
    stats = statistics(np.array([[1.0, 0.0], [3.0, 0.0], [5.0, 3.0]], np.float32))
    np.testing.assert_allclose(stats.mu, [3, 1])
    np.testing.assert_allclose(stats.sigma, [[4, 3], [3, 3]])
