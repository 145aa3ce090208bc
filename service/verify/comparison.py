"""Two images, one that is to be proved and the same drawn again: how far apart, and what of it."""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from service.bundle import TOLERANCES, Tolerance

_OPAQUE = 255


class Verdict(IntEnum):
    """What is so; as a number, the exit status of `sid verify` (2 is an error, as everywhere)."""

    GENUINE = 0
    ALTERED = 1
    NEARLY = 3
    NO_PROVENANCE = 4
    NOT_OURS = 5
    NOT_HERE = 6


def compare(
    shown: npt.NDArray[np.uint8], drawn: npt.NDArray[np.uint8], graphs: tuple[str, str]
) -> tuple[Verdict, str]:
    """Compare an image with the one that was drawn again.

    The same pixels are genuine. Another graph, another processor or another release of an engine
    differs in a little: what `publish` allows either graph is allowed here, for both together.

    Args:
        shown: uint8 [H, W, 4].
        drawn: uint8 [H, W, 4], opaque.
        graphs: which graph drew the first, by its own words, and which the second, as
            `bundle.variant` names them.

    Returns:
        GENUINE, NEARLY or ALTERED, and the difference in words.
    """
    if shown.shape != drawn.shape:
        sizes = (f"{one.shape[1]}x{one.shape[0]}" for one in (shown, drawn))
        return Verdict.ALTERED, "it is {}, and the model draws {}".format(*sizes)
    if shown[:, :, 3].min() < _OPAQUE:
        return Verdict.ALTERED, "part of it is transparent, which no model's images are"
    difference = np.abs(shown[:, :, :3].astype(np.int16) - drawn[:, :, :3])
    if not difference.any():
        return Verdict.GENUINE, "drawn again, every pixel is the same"
    text = (
        f"drawn again, {np.mean(difference > 0):.2%} of the values differ, by up to "
        f"{difference.max()} levels of 255, by {difference.mean():.3g} on average"
    )
    allowed = _together(*graphs)
    if allowed.allow(difference):
        return Verdict.NEARLY, f"{text}, as {graphs[0]} there and {graphs[1]} here may"
    return Verdict.ALTERED, (
        f"{text}; {graphs[0]} there and {graphs[1]} here may differ in "
        f"{allowed.max_differing_share:.0%}, by {allowed.max_difference}, by "
        f"{allowed.max_mean_difference:g} on average"
    )


def _together(first: str, second: str) -> Tolerance:
    """How far images of two graphs may be apart: each is so far from float32 torch's at most."""
    one, other = (
        next(allowed for name, allowed in TOLERANCES.items() if graph.split("-")[0] == name)
        for graph in (first, second)
    )
    return Tolerance(
        max_difference=min(255, one.max_difference + other.max_difference),
        max_differing_share=min(1, one.max_differing_share + other.max_differing_share),
        max_mean_difference=(one.max_mean_difference or 0) + (other.max_mean_difference or 0),
    )
