"""The Inception score: are images clear each, and various together? A pure function, float64."""

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

SPLITS = 10


def inception_score(
    probabilities: NDArray[np.floating], splits: int = SPLITS
) -> tuple[float, float]:
    """exp(mean over images of KL(p(class | image) || p(class))) (Salimans et al. 2016).

    Args:
        probabilities: of each class for each image [N, K], rows summing to 1; N at least
            `splits`.
        splits: parts, in order, each scored against its own p(class).

    Returns:
        Mean and standard deviation over the parts; the score lies between 1 and K.
    """
    scores = []
    for part in np.array_split(probabilities.astype(np.float64), splits):
        divergence = rel_entr(part, part.mean(axis=0)).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))
