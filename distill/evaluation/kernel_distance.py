"""The kernel distance (KID) between two clouds of features. Pure functions, float64."""

import numpy as np
from numpy.typing import NDArray

from distill.evaluation.frechet import Array

SUBSETS = 100
SUBSET_SIZE = 1000


def squared_mmd(a: Array, b: Array) -> float:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, equation 3).

    With the kernel (x . y / D + 1)^3 of Binkowski et al. 2018, section 4. It may be negative:
    that is what unbiased means where the clouds are alike.

    Args:
        a: features [N, D], N at least 2.
        b: features [M, D], M at least 2.
    """
    n, m = len(a), len(b)
    within_a, within_b = _kernel(a, a), _kernel(b, b)
    pairs_a = (within_a.sum() - np.trace(within_a)) / (n * (n - 1))
    pairs_b = (within_b.sum() - np.trace(within_b)) / (m * (m - 1))
    return float(pairs_a + pairs_b - 2 * _kernel(a, b).mean())


def _kernel(a: Array, b: Array) -> Array:
    base: Array = a @ b.T / a.shape[1] + 1
    cube: Array = base * base * base
    return cube


def kernel_distance(
    generated: NDArray[np.floating],
    real: NDArray[np.floating],
    subsets: int = SUBSETS,
    size: int = SUBSET_SIZE,
) -> tuple[float, float]:
    """Mean and standard deviation of `squared_mmd` over random subsets (Binkowski et al. 2018).

    The subsets are the ones that torch-fidelity draws, so its numbers can be compared digit by
    digit. The deviation is that of one subset, not of the mean, and says nothing where a subset
    is nearly all there is.

    Args:
        generated: features [N, D].
        real: features [M, D].
        subsets: how many.
        size: features in each; all there are where there are fewer.
    """
    size = min(size, len(generated), len(real))
    stream = np.random.RandomState(2020)  # frozen by numpy for good, unlike default_rng
    distances = []
    for _ in range(subsets):
        a = generated[stream.choice(len(generated), size, replace=False)]
        b = real[stream.choice(len(real), size, replace=False)]
        distances.append(squared_mmd(a.astype(np.float64), b.astype(np.float64)))
    return float(np.mean(distances)), float(np.std(distances))
