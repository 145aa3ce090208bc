"""The curve of a run: distance against images seen, a straight line in log-log."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from distill.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """What a run measured of itself along the way, in order of images seen.

    Attributes:
        images: images seen [P].
        distances: Fréchet distances [P].
        accuracies: share of images taken for the class asked for [P]; NaN where not measured.
        features: the feature extractor's name; None where the run did not write it down.
    """

    images: Array
    distances: Array
    accuracies: Array
    features: str | None

    def since(self, images: float) -> "Curve":
        """Leave out what was measured before so many images."""
        late = self.images >= images
        return Curve(self.images[late], self.distances[late], self.accuracies[late], self.features)


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
    points: dict[float, tuple[float, float, str | None]] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            point = json.loads(line)
            accuracy = point.get("accuracy")
            points[float(point["images_seen"])] = (
                float(point["distance"]),
                float("nan") if accuracy is None else float(accuracy),
                point.get("features"),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{file}, line {number}, is damaged: remove that line") from None
    if not points:
        raise UserError(f"{file} is empty: the run has measured nothing yet")
    last = points[max(points)][2]
    images = [n for n in sorted(points) if points[n][2] in (None, last)]
    return Curve(
        np.array(images),
        np.array([points[n][0] for n in images]),
        np.array([points[n][1] for n in images]),
        last,
    )


def fit_power_law(images: Array, distances: Array) -> PowerLaw:
    """Fit ln distance = ln factor + slope ln images.

    The interval takes the points' errors as independent, which those of neighbouring points of
    one run are not: read it as a lower bound of the uncertainty.

    Raises:
        UserError: fewer than three points, or a distance that has no logarithm.
    """
    if len(images) < 3:
        raise UserError(f"a line with an interval needs three points, the run has {len(images)}")
    if not (np.isfinite(distances).all() and (distances > 0).all() and (images > 0).all()):
        raise UserError("a distance that is not a positive number has no place in log-log")
    fit = stats.linregress(np.log(images), np.log(distances))
    reach = stats.t.ppf(0.975, len(images) - 2) * fit.stderr
    return PowerLaw(
        float(fit.slope),
        float(fit.slope - reach),
        float(fit.slope + reach),
        float(np.exp(fit.intercept)),
    )
