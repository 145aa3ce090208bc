"""The Fréchet distance between two clouds of features. Pure functions, float64."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """The Gaussian that stands for a set of images: mu [D] and sigma [D, D], float64."""

    mu: Array
    sigma: Array


def statistics(features: Array) -> Statistics:
    """Mean and covariance (N - 1) of features [N, D], summed in float64."""
    features = features.astype(np.float64)
    return Statistics(features.mean(axis=0), np.cov(features, rowvar=False))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) (Heusel et al. 2017, equation 6).

    The trace of the root of S_a S_b equals that of the symmetric R S_b R with R = S_a^(1/2),
    whose eigenvalues are real and not negative; rounding below zero is cut off.
    """
    values, vectors = linalg.eigh(a.sigma)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    eigenvalues = linalg.eigvalsh(root @ b.sigma @ root).clip(min=0)
    mean_term = np.square(a.mu - b.mu).sum()
    return float(mean_term + np.trace(a.sigma + b.sigma) - 2 * np.sqrt(eigenvalues).sum())
