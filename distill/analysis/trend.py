"""What more training would buy: the recent trend of a run's curve, and when it is enough.

The trend is the power law of the last three and a half doublings of the images seen: eight points,
as a run measures two a doubling. Earlier ones say little about the next doubling, for a run falls
faster at its beginning. Points of a cooldown are left out: there the distance falls because the
learning rate does, and it would not go on to fall.

The interval is that of the slope (95 %, Student's t). It takes the points' errors as independent,
and the power law as the curve's true form over these doublings: read it as a lower bound of the
uncertainty. How often the rule of `explain_end` is wrong at a gain of 10 % was simulated, with
noise of 2 to 10 % on each distance and a look at each of the points 10 to 27: no run of slope -0.3
(19 % a doubling) was ended, and of slope -0.2 (13 %) 2 in 100 at 10 % noise, but 22 in 100 where
errors of neighbours were correlated by 0.5. Runs that fell by -0.3 and were then flat were ended
five to seven points later, some three doublings: fewer do not tell a trend from noise.
"""

from dataclasses import dataclass

import numpy as np

from distill.analysis.curve import Curve, PowerLaw, fit_power_law
from distill.errors import UserError

MIN_POINTS = 8
SPAN = 12.0  # eight points by factors of sqrt(2) span 11.3; batches round them up a little
# After four half-lives the first weights are a sixteenth of the average that is measured.
MIN_HALFLIVES = 4
DEFAULT_GAIN = 0.1


@dataclass(frozen=True)
class Trend:
    """How the distance went lately, and what the same promises for a doubling of the images.

    A gain is the share of the distance that a doubling takes away; negative where it rises.

    Attributes:
        law: the power law of the points.
        points: how many there are.
        since: images seen at the first of them.
        until: at the last.
        rates_known: whether all of them say at which learning rate they were measured.
    """

    law: PowerLaw
    points: int
    since: float
    until: float
    rates_known: bool

    @property
    def gain(self) -> float:
        """By the fitted slope."""
        return 1 - 2**self.law.slope

    @property
    def low(self) -> float:
        """By the upper end of the slope's interval: the least that is to be expected."""
        return 1 - 2**self.law.high

    @property
    def high(self) -> float:
        """By the lower end of the slope's interval: the most that is to be expected."""
        return 1 - 2**self.law.low


def recent_trend(curve: Curve) -> Trend:
    """Fit the last points at the full learning rate.

    Raises:
        UserError: there are fewer than `MIN_POINTS`, or a distance has no logarithm.
    """
    full = curve.at_full_rate()
    recent = full.since(full.images[-1] / SPAN) if len(full.images) else full
    if len(recent.images) < MIN_POINTS:
        raise UserError(
            f"a trend needs {MIN_POINTS} points at the full learning rate, of the last three and a "
            f"half doublings; the run has {len(recent.images)}"
        )
    law = fit_power_law(recent.images, recent.distances)
    rates_known = bool(np.isfinite(recent.rate_shares).all())
    first, last = float(recent.images[0]), float(recent.images[-1])
    return Trend(law, len(recent.images), first, last, rates_known)


def describe_trend(trend: Trend) -> str:
    """What a doubling of the images promises, in a sentence."""
    rate = " at the full learning rate" if trend.rates_known else ""
    doubt = "" if trend.rates_known else "; the run does not say which of them are of a cooldown"
    return (
        f"A doubling of the images promises {_less(trend.gain)} distance (95 %: between "
        f"{_less(trend.low)} and {_less(trend.high)}), by the trend of {trend.points} points"
        f"{rate}, {trend.since:,.0f} to {trend.until:,.0f} images{doubt}."
    )


def explain_end(curve: Curve, gain: float, not_before: float) -> str | None:
    """Say why a run need not go on at the full learning rate; None: it should, or nobody knows.

    Args:
        curve: what was measured so far.
        gain: a doubling must promise as much, at the upper end of the interval: a share of the
            distance.
        not_before: images that the run must have seen.
    """
    if curve.images[-1] < not_before:
        return None
    try:
        trend = recent_trend(curve)
    except UserError:
        return None
    if trend.high >= gain:
        return None
    what = "the distance rises" if trend.high < 0 else "the distance has flattened"
    sentence = describe_trend(trend)
    sentence = sentence[0].lower() + sentence[1:-1]
    return f"{what}: {sentence}; it goes on for {100 * gain:g} % or more only"


def _less(gain: float) -> str:
    """A share of the distance in words."""
    return f"{100 * abs(gain):.1f} % {'less' if gain >= 0 else 'more'}"
