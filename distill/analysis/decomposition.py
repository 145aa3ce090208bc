"""From a probe's inner products: norms, shares and angles for any alpha. Pure functions.

With g1 the gradient of the identity part and g2 that of the squared gap, the loss at alpha has
the gradient g1 - alpha g2, so three inner products tell everything about every alpha.
"""

from typing import NamedTuple

import numpy as np

from distill.analysis.curve import Array


class Products(NamedTuple):
    """Inner products of the parts' gradients, means over pictures [L].

    Attributes:
        identity: <g1, g1>.
        squared: <g2, g2>.
        product: <g1, g2>.
    """

    identity: Array
    squared: Array
    product: Array

    def squared_norm(self, alpha: float) -> Array:
        """|g1 - alpha g2|^2, at least 0 (an estimate from two draws may fall below)."""
        norm: Array = self.identity - 2 * alpha * self.product + alpha**2 * self.squared
        return np.maximum(norm, 0)

    def norm(self, alpha: float) -> Array:
        """|g1 - alpha g2|, root mean square an element."""
        return np.sqrt(self.squared_norm(alpha))

    def cosine(self, alpha: float, other: float) -> Array:
        """Cosine between the gradients at two alphas; NaN where one of them is zero."""
        inner = self.identity - (alpha + other) * self.product + alpha * other * self.squared
        length = self.norm(alpha) * self.norm(other)
        return np.divide(inner, length, out=np.full_like(inner, np.nan), where=length > 0)

    def identity_share(self, alpha: float) -> Array:
        """<g1, g> / |g|^2: what part of the step the identity term supplies.

        The squared gap supplies the rest, 1 - this. Above 1 the squared gap holds back; NaN where
        there is no gradient.
        """
        inner = self.identity - alpha * self.product
        norm = self.squared_norm(alpha)
        return np.divide(inner, norm, out=np.full_like(inner, np.nan), where=norm > 0)

    def over(self, chosen: np.ndarray) -> "Products":
        """The same summed over chosen levels: arrays of one element."""
        return Products(*(part[chosen].sum(keepdims=True) for part in self))


def shares(values: Array) -> Array:
    """Each value's part of their sum; zeros where all are zero."""
    total = values.sum()
    return values / total if total > 0 else np.zeros_like(values)


def level_below(sigmas: Array, parts: Array, wanted: float = 0.5) -> tuple[float, float]:
    """The first noise level up to which `wanted` of the whole lies, and how much does."""
    held = np.cumsum(parts)
    index = min(int(np.searchsorted(held, wanted)), len(sigmas) - 1)
    return float(sigmas[index]), float(held[index])
