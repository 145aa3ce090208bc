"""The way between two seeds: noise that moves from one image's to another's."""

import numpy as np
import numpy.typing as npt

Noise = npt.NDArray[np.float32]

_PARALLEL = 1e-6  # radians: closer than this the two are the same noise


def slerp(start: Noise, end: Noise, mix: float) -> Noise:
    """Go along the arc from one noise to another: float32, of the inputs' shape.

    Normal noise of many values lies near a sphere; a straight line would leave it for shorter
    noise, which no network has seen, and the images between would fade. Source: K. Shoemake,
    "Animating rotation with quaternion curves" (SIGGRAPH 1985), equation 3.3; for noise, T. White,
    "Sampling generative networks" (arXiv 1609.04468).

    Args:
        start: what `mix` 0 gives, to the bit; neither it nor `end` is 0 everywhere.
        end: what `mix` 1 gives, to the bit.
        mix: how far to go, 0 to 1, in shares of the angle between them.
    """
    if mix == 0:
        return start
    if mix == 1:
        return end
    a, b = start.astype(np.float64).ravel(), end.astype(np.float64).ravel()
    cosine = np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))
    angle = np.arccos(np.clip(cosine, -1.0, 1.0))
    if angle < _PARALLEL:
        return start
    between = (np.sin((1 - mix) * angle) * a + np.sin(mix * angle) * b) / np.sin(angle)
    noise: Noise = between.astype(np.float32).reshape(start.shape)
    return noise
