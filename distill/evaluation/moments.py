"""Mean and covariance of features that come in parts: batches, or processes."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from distill.evaluation.frechet import Array, Statistics


@dataclass(frozen=True)
class Moments:
    """What is kept of N features [N, D] that need not be in memory at once.

    Sums of deviations from the mean, not of squares: the latter lose all their digits where
    features are large and vary little.

    Attributes:
        count: N.
        mean: float64 [D].
        scatter: float64 [D, D], the sum of (f - mean) (f - mean)^T.
    """

    count: int
    mean: Array
    scatter: Array

    @classmethod
    def none(cls, dimensions: int) -> Self:
        """Moments of no features."""
        return cls(0, np.zeros(dimensions), np.zeros((dimensions, dimensions)))

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Self:
        """Moments of features [N, D], computed in float64; N is at least 1."""
        wide = features.astype(np.float64)
        mean = wide.mean(axis=0)
        centred = wide - mean
        return cls(len(wide), mean, centred.T @ centred)

    def merge(self, other: Self) -> Self:
        """Moments of both together (Chan, Golub, LeVeque 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        between = np.outer(gap, gap) * (self.count * other.count / count)
        return type(self)(count, mean, self.scatter + other.scatter + between)

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance (N - 1); at least 2 features are needed."""
        return Statistics(self.mean, self.scatter / (self.count - 1))
