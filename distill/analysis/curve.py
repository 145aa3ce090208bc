"""The curve of a run: distance against images seen, a straight line in log-log."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from distill.errors import UserError

Array = NDArray[np.float64]

_OPTIONAL = ("accuracy", "precision", "recall", "rate_share")


@dataclass(frozen=True)
class Curve:
    """What a run measured of itself along the way, in order of images seen.

    Attributes:
        images: images seen [P].
        distances: Fréchet distances [P].
        accuracies: share of images taken for the class asked for [P]; NaN where not measured.
        precisions: do the images look real [P]; NaN where not measured.
        recalls: is everything real drawn [P]; NaN where not measured.
        rate_shares: the learning rate, as a share of its full value [P]: below 1 in a cooldown; NaN
            where the run is older than this entry.
        features: the feature extractor's name; None where the run did not write it down.
    """

    images: Array
    distances: Array
    accuracies: Array
    precisions: Array
    recalls: Array
    rate_shares: Array
    features: str | None

    def since(self, images: float) -> "Curve":
        """Leave out what was measured before so many images."""
        return self._only(self.images >= images)

    def until(self, images: float) -> "Curve":
        """Leave out what was measured after so many images."""
        return self._only(self.images <= images)

    def at_full_rate(self) -> "Curve":
        """Leave out what was measured in a cooldown; points that do not say are kept."""
        return self._only(~(self.rate_shares < 1))

    def _only(self, chosen: NDArray[np.bool_]) -> "Curve":
        return Curve(
            self.images[chosen],
            self.distances[chosen],
            self.accuracies[chosen],
            self.precisions[chosen],
            self.recalls[chosen],
            self.rate_shares[chosen],
            self.features,
        )


@dataclass(frozen=True)
class Line:
    """y = intercept + slope * x, fitted by least squares.

    Attributes:
        slope: the change of y where x grows by 1.
        low: lower end of the slope's 95 % confidence interval (Student's t).
        high: its upper end.
        intercept: y at 0.
    """

    slope: float
    low: float
    high: float
    intercept: float


@dataclass(frozen=True)
class PowerLaw:
    """distance = factor * images^slope, fitted by least squares of the logarithms.

    Attributes:
        slope: the exponent; negative where the distance falls.
        low: lower end of the slope's 95 % confidence interval (Student's t).
        high: its upper end.
        factor: the distance at one image, an extrapolation.
    """

    slope: float
    low: float
    high: float
    factor: float


def read_curve(run: Path) -> Curve:
    """Read what a run measured; a mark measured twice counts once, the last time.

    Distances over two feature extractors are no one curve: only those over the last line's are
    kept (lines that name none are of a run older than the name).

    Raises:
        UserError: the run measured no distance, or its file is damaged.
    """
    file = run / "curve.jsonl"
    if not file.exists():
        raise UserError(f"{file} is missing: 'sid-distill run' writes it unless --features none")
    points: dict[float, tuple[Array, str | None]] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            point = json.loads(line)
            given = [point.get(name) for name in _OPTIONAL]
            values = [float("nan") if value is None else float(value) for value in given]
            points[float(point["images_seen"])] = (
                np.array([float(point["distance"]), *values]),
                point.get("features"),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file}, line {number}, is damaged: remove that line") from None
    if not points:
        raise UserError(f"{file} is empty: the run has measured nothing yet")
    last = points[max(points)][1]
    images = [n for n in sorted(points) if points[n][1] in (None, last)]
    distances, *optional = np.array([points[n][0] for n in images]).T
    accuracies, precisions, recalls, rate_shares = optional
    return Curve(
        np.array(images), distances, accuracies, precisions, recalls, rate_shares, features=last
    )


def fit_line(x: Array, y: Array) -> Line:
    """Fit a line.

    The interval takes the points' errors as independent, which those of neighbouring points of
    one run are not: read it as a lower bound of the uncertainty.

    Raises:
        UserError: fewer than three points.
    """
    if len(x) < 3:
        raise UserError(f"a line with an interval needs three points, the run has {len(x)}")
    fit = stats.linregress(x, y)
    stderr = 0.0 if np.ptp(y) == 0 else float(fit.stderr)  # scipy has none where all are alike
    slope, reach = float(fit.slope), float(stats.t.ppf(0.975, len(x) - 2)) * stderr
    return Line(slope, slope - reach, slope + reach, float(fit.intercept))


def fit_power_law(images: Array, distances: Array) -> PowerLaw:
    """Fit ln distance = ln factor + slope ln images, as `fit_line` does.

    Raises:
        UserError: fewer than three points, or a distance that has no logarithm.
    """
    if not (np.isfinite(distances).all() and (distances > 0).all() and (images > 0).all()):
        raise UserError("a distance that is not a positive number has no place in log-log")
    line = fit_line(np.log(images), np.log(distances))
    return PowerLaw(line.slope, line.low, line.high, float(np.exp(line.intercept)))
